"""CASteer behind a gate: thresholds from pictures without the concept, and images that open it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, made_for, verify
from excise.erasers.apply.shared_gates import SharedGates
from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.vectors import GatedDirectionEdit
from excise.erasers.gates import attacking
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import CASteerGatedConfig
from excise.methods.steering.casteer import directions
from excise.methods.steering.casteer_gated import controls, cross_fitted, level_exceeded_by, peaks, scales
from excise.sites import Site
from tests.methods.steering.test_steering import draw

PLACES = ("grass", "sand", "wood", "the beach", "a table", "snow")
THINGS = ("cat", "rose", "bus", "house", "frog", "star", "tree", "crown")
PAIRS = tuple(Pair(f"a gun on {place}", f"a {thing} on {place}") for thing in THINGS for place in PLACES)
CONCEPT = Concept("gun", ("gun", "pistol"), PAIRS, controls=("a cup", "a cup on grass"))
STEPS, DIM = 4, 5
CONFIG = CASteerGatedConfig(pairs=2, steps=STEPS, guidance=4.0, controls=40, false_openings=0.1)


def edits(*thresholds: float) -> list[GatedDirectionEdit]:
    """Edits of as many blocks, with the same two steps and other directions."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for n, threshold in enumerate(thresholds):
        s = torch.nn.functional.normalize(torch.randn(2, DIM, generator=generator), dim=1)
        bounds = torch.tensor([threshold, 2 * threshold])
        made.append(
            GatedDirectionEdit(Site("unet", f"{n}.attn2", DIM), s, torch.tensor([900.0, 100.0]), thresholds=bounds)
        )
    return made


def test_an_image_is_edited_from_the_block_and_step_at_which_its_gate_opens() -> None:
    blocks, gates = edits(1.2, 2.0, 1.6), SharedGates()
    generator = torch.Generator().manual_seed(4)
    opened = [False] * 6
    seen = []
    for row, timestep in enumerate((900.0, 100.0)):
        step = StepInfo((timestep,))
        for edit in blocks:
            x = torch.randn(6, 3, DIM, generator=generator)
            delta = edit.delta(x, 0.5, step=step, opened=gates)
            assert delta is not None
            for b in range(6):
                along = [float(edit.directions[row] @ patch) for patch in x[b]]
                opened[b] = opened[b] or any(value > float(edit.thresholds[row]) for value in along)
                for n, value in enumerate(along):
                    wanted = 0.5 * 2.0 * max(0.0, value) * edit.directions[row] if opened[b] else torch.zeros(DIM)
                    torch.testing.assert_close(delta[b, n], wanted)
                assert opened[b] or not delta[b].any()
            seen.append(sum(opened))
    assert 0 < seen[0] < seen[2] < seen[-1] < 6, "gates have to open at several blocks and steps, and one to stay shut"
    gates.begin()
    still = torch.zeros(6, 3, DIM)
    assert not blocks[0].delta(still, step=StepInfo((900.0,)), opened=gates).any()  # type: ignore[union-attr]


def test_two_calls_at_one_step_are_two_images() -> None:
    """Guidance in two calls: the block's second run in one call continues the first, in the next call it does not."""
    (edit,) = edits(1.0)
    gates = SharedGates()
    loud, quiet = 3 * edit.directions[0].expand(1, 2, DIM), torch.zeros(1, 2, DIM)
    loud_later, first, second = 3 * edit.directions[1].expand(1, 2, DIM), StepInfo((900.0,)), StepInfo((900.0,))
    assert first is not second
    for state, step, edited in ((loud, first, True), (loud, second, True), (quiet, second, False)):
        delta = edit.delta(state, step=step, opened=gates)
        assert delta is not None and bool(delta.any()) is edited
    gates.begin()
    for state, step in ((loud, first), (quiet, second)):
        edit.delta(state, step=step, opened=gates)
    for n, step in enumerate((StepInfo((100.0,)), StepInfo((100.0,)))):
        delta = edit.delta(0.4 * loud_later, step=step, opened=gates)  # below the threshold
        assert delta is not None and bool(delta.any()) is (n == 0)


def test_a_call_outside_of_a_generation_opens_no_gate_for_later() -> None:
    """Within the call, its blocks open the gate together, as they do in a generation."""
    first, second = edits(1.0, 1.0)
    gates = SharedGates()
    outside = StepInfo((900.0,), drawing=False)
    loud, faint = 3 * first.directions[0].expand(1, 2, DIM), 0.5 * first.directions[1].expand(1, 2, DIM)
    for edit, state, changed in ((second, 0 * loud, False), (first, loud, True)):
        assert bool(edit.delta(state, step=outside, opened=gates).any()) is changed  # type: ignore[union-attr]
    quiet = 0.5 * second.directions[0].expand(1, 2, DIM)
    assert second.delta(quiet, step=outside, opened=gates).any()  # type: ignore[union-attr]
    later = StepInfo((900.0,), drawing=False)
    assert not second.delta(quiet, step=later, opened=gates).any()  # type: ignore[union-attr]
    assert not first.delta(faint, step=StepInfo((100.0,)), opened=gates).any()  # type: ignore[union-attr]


def masks(gates: SharedGates, *calls: tuple[float, list[list[bool]]]) -> list[list[bool]]:
    """Return the open gates after every block of these calls: `[timestep, masks by block]`."""
    found = []
    for timestep, blocks in calls:
        step = StepInfo((timestep,))
        for mask in blocks:
            found.append(gates.across(torch.tensor(mask)[:, None], step)[:, 0].tolist())
    return found


def test_a_picture_that_only_a_rising_timestep_begins() -> None:
    """A loop of one's own: nothing tells the gates of the next picture, and its first block opens them for the rest."""
    gates, shut = SharedGates(), [False, False]
    masks(gates, (900.0, [[True, True]] * 3), (500.0, [shut] * 3))
    found = masks(gates, (900.0, [[False, True], shut, shut]), (500.0, [shut, [True, False], shut]))
    assert found == [[False, True]] * 4 + [[True, True]] * 2


class Call:
    """Stands for the setting of a pipeline's call."""


def test_a_picture_of_another_call_begins_with_shut_gates() -> None:
    """Image to image starts at a lower timestep than the picture before ended at."""
    gates, one, other = SharedGates(), Call(), Call()
    gates.belong_to(one)
    assert masks(gates, (900.0, [[True], [False]])) == [[True], [True]]
    gates.belong_to(one)
    assert masks(gates, (500.0, [[False]])) == [[True]]
    gates.belong_to(other)
    assert masks(gates, (300.0, [[False]])) == [[False]]


def test_a_batch_that_changes_its_size_keeps_its_gates() -> None:
    gates, shut = SharedGates(), [False]
    assert masks(gates, (900.0, [[True, False, False, True]]))[-1] == [True, False, False, True]
    assert masks(gates, (800.0, [[False, False], [True, False], [False, False]])) == [
        [False, True],
        [True, True],
        [True, True],
    ], "guidance ended, and what the conditional rows open stays open"
    gates = SharedGates()
    assert masks(gates, (900.0, [shut]), (800.0, [[False, True], [False, False]])) == [
        [False],
        [False, True],
        [False, True],
    ]
    assert masks(gates, (700.0, [[False, False]])) == [[True, True]], "rows of other batches are not known"
    gates = SharedGates()
    assert masks(gates, (900.0, [[True], [False, False, False], [False], [False, True, False]])) == [
        [True],
        [False, False, False],
        [True],
        [False, True, False],
    ], "blocks with other batches in one call, such as of motion modules"


def test_many_runs_at_one_timestep_and_samplers_that_go_back() -> None:
    gates = SharedGates()
    for _ in range(2 * SharedGates.MOST_RUNS):
        assert masks(gates, (1.0, [[True], [False]])) == [[True], [True]]
    gates = SharedGates(rising=False)
    found = masks(gates, *((timestep, [[timestep == 900.0], [False]]) for timestep in (900.0, 800.0, 700.0, 800.0)))
    assert all(found) and len(found) == 8


def test_an_attack_can_learn_how_to_shut_the_gate() -> None:
    (edit,) = edits(1.0)
    x = (0.9 * edit.directions[0]).expand(1, 2, DIM).clone().requires_grad_()
    for gradient in ("exact", "straight-through", "soft"):
        with attacking(gradient) as gates:  # type: ignore[arg-type]
            delta = edit.delta(x, step=StepInfo((900.0,), drawing=False))
        assert delta is not None and not delta.any()
        (slope,) = torch.autograd.grad(delta.square().sum() + delta.sum(), x, allow_unused=True)
        assert (slope is not None and bool(slope.any())) is (gradient != "exact")
        assert gates.excess[0].item() == pytest.approx(-0.1)


def test_thresholds_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(30, 2, 5, generator=generator) + torch.rand(30, 1, 1, generator=generator)
    seen[:, 1, 3] -= 5  # a step at which no picture comes near the direction
    seen[:, 0, [0, 1, 3, 4]] += 10  # and one at which they come less near than at the others

    def by_hand(rows: Tensor) -> Tensor:
        found = torch.empty(2, 5)
        for site in range(2):
            quantiles = [float(np.quantile(rows[:, site, step].double().numpy(), 0.99)) for step in range(5)]
            middles = [float(rows[:, site, step].sort().values[(len(rows) - 1) // 2]) for step in range(5)]
            apart = median(quantile - middle for quantile, middle in zip(quantiles, middles, strict=True))
            least = max(0.25 * median(quantiles), apart)
            found[site] = torch.tensor([max(quantile, least) for quantile in quantiles])
        return found

    torch.testing.assert_close(scales(seen), by_hand(seen))
    assert float(scales(seen)[1, 3]) > 0.2 and float(scales(seen)[0, 2]) > 2.5
    ratios = cross_fitted(seen)
    for n in range(30):
        others = seen[[k for k in range(30) if k % 10 != n % 10]]
        assert float(ratios[n]) == pytest.approx(float((seen[n] / by_hand(others)).max()), rel=1e-5)
    start = float(np.quantile(ratios.double().numpy(), 0.8))
    above = [float(ratio) - start for ratio in ratios if ratio > start]
    k = len(above)
    wanted = start + sum(above) * ((0.2 / 0.01) ** (1 / k) - 1)
    assert level_exceeded_by(0.01, ratios) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("n", "share", "within"), [(160, 0.05, 0.06), (160, 0.005, 0.1), (40, 0.005, 0.3)])
def test_the_stated_share_of_new_pictures_exceeds_the_level(n: int, share: float, within: float) -> None:
    """On ratios whose tail is exponential, which the fit supposes."""
    generator = torch.Generator().manual_seed(0)
    levels = [level_exceeded_by(share, torch.empty(n).exponential_(generator=generator)) for _ in range(2000)]
    exceeded = sum(math.exp(-level) for level in levels) / len(levels)
    assert exceeded == pytest.approx(share, rel=within)


def test_controls_come_from_every_source_in_turn() -> None:
    concept = Concept("gun", ("gun",), PAIRS, controls=("a cup", "a pistol grip"), benign=("a lamp", "a GUN shop"))
    known = controls(concept, replace(CONFIG, controls=1000))
    assert known[:6] == ["a cup", "a cat on wood", "a lamp", "a pistol grip", "a cat on the beach", "a cat on a table"]
    assert len(known) == len(set(known)) == len(PAIRS) - CONFIG.pairs + 3, "without the pairs for the direction"
    assert controls(concept, CONFIG) == known[:40]
    with pytest.raises(ExciseError, match=r"'gun' has 10 prompts without it .* the gate needs 40"):
        controls(Concept("gun", ("gun",), PAIRS[:12]), CONFIG)


@pytest.fixture(scope="module")
def measured(build_pipe: Any) -> tuple[Any, dict[Site, Tensor], Tensor]:
    """A random pipeline, and the directions and timesteps measured on it."""
    pipe = build_pipe()
    return pipe, *directions(pipe, CONCEPT, CONFIG, "casteer-gated")


def test_peaks_are_those_of_the_pictures(measured: tuple[Any, dict[Site, Tensor], Tensor]) -> None:
    pipe, found, timesteps = measured
    prompts = controls(CONCEPT, CONFIG)[:3]
    read = peaks(pipe, found, timesteps, prompts, CONFIG)
    branches = set()
    for (n, prompt), (k, (site, s)) in product(enumerate(prompts), enumerate(found.items())):
        outputs: list[Tensor] = []
        module = pipe.unet.get_submodule(site.path)
        handle = module.register_forward_hook(lambda m, args, out, to=outputs: to.append(out.detach().clone()))
        how = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
        pipe(prompt, generator=torch.Generator().manual_seed(n), **how)
        handle.remove()
        for step, out in enumerate(outputs):
            by_branch = [max(float(s[step] @ patch) for patch in row) for row in out]
            branches.add(by_branch.index(max(by_branch)))
            assert float(read[n, k, step]) == pytest.approx(max(by_branch), rel=1e-3, abs=1e-4)
    assert branches == {0, 1}, "each branch has to have the maximum somewhere"


def test_a_concept_that_no_picture_shows_is_refused(build_pipe: Any) -> None:
    """A random model draws nothing, so that no threshold tells the concept's pictures from others."""
    with pytest.raises(ExciseError, match=r"no picture of 'gun' differs enough .* raise false_openings above 0.1"):
        method("casteer-gated").fit(build_pipe(), CONCEPT, CONFIG)


def test_an_eraser_is_saved_and_leaves_other_pictures_alone(
    measured: tuple[Any, dict[Site, Tensor], Tensor], tmp_path: Path
) -> None:
    """The threshold is between the peaks of two pictures."""
    pipe, found, timesteps = measured
    prompts = ["a gun on grass", "a cat on grass"]
    high, low = peaks(pipe, found, timesteps, prompts, CONFIG).clamp(min=0)
    site, step = divmod(int((high - low).argmax()), STEPS)
    bounds = torch.full((len(found), STEPS), 1e6)
    bounds[site, step] = (high + low)[site, step] / 2
    parts = tuple(
        GatedDirectionEdit(site, s, timesteps, thresholds=own)
        for (site, s), own in zip(found.items(), bounds, strict=True)
    )
    eraser = Eraser(parts, "gun", "gun", ("gun",), made_for(pipe, ["unet"]), canary=(prompts[0],))
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    plain = draw(pipe, prompts, guidance_scale=4.0)
    with again.attach(pipe):
        made, twice = (draw(pipe, prompts, guidance_scale=4.0) for _ in range(2))
    assert np.array_equal(made[1], plain[1]) and np.array_equal(made, twice)
    assert not np.array_equal(made[0], plain[0])
    assert np.array_equal(draw(pipe, prompts, guidance_scale=4.0), plain)


def test_impossible_thresholds() -> None:
    site, s, timesteps = Site("unet", "x", 2), torch.ones(2, 2), torch.tensor([2.0, 1.0])
    for wrong in (torch.tensor([1.0, 0.0]), torch.tensor([1.0]), torch.tensor([[1.0], [1.0]])):
        with pytest.raises(ExciseError, match="thresholds must be 2 positive numbers"):
            GatedDirectionEdit(site, s, timesteps, thresholds=wrong)
    for wrong in ({"controls": 39}, {"false_openings": 0.0}, {"false_openings": 0.2}):
        with pytest.raises(ExciseError):
            method("casteer-gated").Config(**wrong)
