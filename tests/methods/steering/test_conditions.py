"""The safety filter and SAFREE: what the U-Net reads instead of a prompt that mentions the concept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.apply.conditioning import reattended
from excise.erasers.edits.blocklist import FilterEdit
from excise.erasers.edits.projection import ProjectionEdit, projection
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.steering.safety_filter import best_threshold
from excise.sentences import sentence_vectors
from excise.sites import Site
from excise.sites.pooled import eos_without_each
from tests import tiny

PAIRS = (
    Pair("a gun on grass", "a cat on grass"),
    Pair("a soldier with a gun", "a soldier with a flower"),
    Pair("a photo of a gun", "a photo of a cup"),
)
CONCEPT = Concept("gun", ("gun", "pistol"), PAIRS)
STEPS = 4
SITE = Site("unet", "", 4)


class UNetStates:
    """Keeps the text states of every run of a U-Net."""

    def __init__(self, pipe: Any) -> None:
        self.states: list[torch.Tensor] = []
        self._unet, self._pipe = pipe.unet, pipe

    def __enter__(self) -> list[torch.Tensor]:
        conv = self._unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
        self._handle = conv.register_forward_pre_hook(lambda module, args: self.states.append(args[0].detach().clone()))
        return self.states

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def draw(pipe: Any, prompts: list[str], **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **how}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


def states_of(pipe: Any, text: str) -> torch.Tensor:
    made: torch.Tensor = pipe.encode_prompt(text, "cpu", 1, False)[0][0]
    return made


def test_projection_is_on_the_span() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    basis = np.linalg.qr(rows.numpy().T)[0]
    np.testing.assert_allclose(projection(rows).numpy(), basis @ basis.T, atol=1e-10)
    twice = projection(torch.cat([rows, rows[:1]]))
    np.testing.assert_allclose(twice.numpy(), basis @ basis.T, atol=1e-10)


def test_words_near_the_concept_are_projected_as_the_paper_says() -> None:
    generator = torch.Generator().manual_seed(1)
    d, count = 12, 4
    concept = torch.randn(2, d, generator=generator)
    states = torch.randn(7, d, generator=generator)
    without = torch.randn(count, d, generator=generator)
    without[:3] = 0.3 * without[:3] + 3 * concept[0]
    edit = ProjectionEdit(SITE, concept, alpha=0.05, most=10)
    made, hit = edit.projected(states, without)

    def onto(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        coefficients = np.linalg.lstsq(rows.T, vector, rcond=None)[0]
        return rows.T @ coefficients

    c, w = concept.double().numpy(), without.double().numpy()
    distance = [np.linalg.norm(row - onto(c, row)) for row in w]
    for i in range(count):
        others = [value for j, value in enumerate(distance) if j != i]
        assert bool(hit[i]) == bool(distance[i] >= 1.05 * sum(others) / len(others))
    assert hit.tolist() == [False, False, False, True]
    z = 0.0
    for t, row in enumerate(states.double().numpy()):
        inside = onto(w, row)
        safe = inside - onto(c, inside)
        wanted = safe if t == 4 else row
        np.testing.assert_allclose(made[t].numpy(), wanted, atol=1e-5)
        if t < count + 2:
            z += (1 - row @ safe / np.linalg.norm(row) / np.linalg.norm(safe)) / (count + 2)
    share = 1 / (1 + math.exp(-2 * 2.5 * (10 * z - 5.333)))
    assert edit.steps(states, without) == round(10 * share) + 1
    assert ProjectionEdit(SITE, concept, most=0).steps(states, without) is None


def test_a_word_is_measured_against_the_others_alone() -> None:
    """1.06 is 6 % more than the others' 1, but less than 5 % more than the mean of all."""
    without = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.06]))
    edit = ProjectionEdit(SITE, torch.eye(5)[4:], alpha=0.05, most=10)
    _, hit = edit.projected(torch.ones(7, 5), torch.nn.functional.pad(without, (0, 1)))
    assert hit.tolist() == [False, False, False, True]


def test_a_prompt_without_each_of_its_words(tiny_pipe: Any) -> None:
    made = eos_without_each(tiny_pipe, "a gun on grass")
    ids = tiny_pipe.tokenizer("a gun on grass").input_ids
    assert made.shape == (4, tiny_pipe.text_encoder.config.hidden_size)
    for n in range(4):
        changed = [0 if at == n + 1 else token for at, token in enumerate(ids)]
        with torch.no_grad():
            wanted = tiny_pipe.text_encoder(torch.tensor([changed])).last_hidden_state[0, -1]
        torch.testing.assert_close(made[n], wanted, atol=1e-5, rtol=1e-4)


def test_safree_tells_the_projected_states_for_the_first_steps(tiny_pipe: Any) -> None:
    eraser = method("safree").fit(tiny_pipe, CONCEPT, method("safree").Config(alpha=0.0, most=1))
    (edit,) = eraser.edits
    assert isinstance(edit, ProjectionEdit)
    prompts = ["a gun on grass", "a cat"]
    plain = [states_of(tiny_pipe, text) for text in prompts]
    without = [eos_without_each(tiny_pipe, text) for text in prompts]
    safe = [edit.projected(*pair)[0] for pair in zip(plain, without, strict=True)]
    steps = [edit.steps(*pair) for pair in zip(plain, without, strict=True)]
    assert all(count is not None and 1 <= count <= 2 for count in steps)
    with eraser.attach(tiny_pipe), UNetStates(tiny_pipe) as states_read:
        draw(tiny_pipe, prompts)
    empty = states_of(tiny_pipe, "")
    assert len(states_read) == STEPS
    for step, states in enumerate(states_read):
        assert torch.equal(states[0], empty)
        assert torch.equal(states[1], empty)
        for row, (own, other, count) in enumerate(zip(plain, safe, steps, strict=True)):
            torch.testing.assert_close(states[2 + row], other if step < (count or 0) else own)


def test_low_frequencies_that_grew_are_weakened() -> None:
    generator = torch.Generator().manual_seed(0)
    safe, plain = torch.randn(2, 2, 3, 6, 6, generator=generator)
    made = np.fft.fft2(reattended(safe, plain, 0.3).numpy())
    own, other = np.fft.fft2(safe.numpy()), np.fft.fft2(plain.numpy())
    changed = 0
    for b, c, y, x in np.ndindex(2, 3, 6, 6):
        # Features are real, so a frequency and its mirror image come out as the mean of both.
        share = 0.0
        for v, u in ((y, x), (-y % 6, -x % 6)):
            low = (v, u) in ((0, 0), (0, 5), (5, 0), (5, 5))
            share += (0.3 if low and abs(own[b, c, v, u]) > abs(other[b, c, v, u]) else 1.0) / 2
        np.testing.assert_allclose(made[b, c, y, x], share * own[b, c, y, x], atol=1e-4)
        changed += share != 1.0
    assert changed
    torch.testing.assert_close(reattended(safe, plain, 1.0), safe, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("short_removal")
def test_re_attention_leaves_other_pictures_and_the_model_alone(tiny_pipe: Any, tmp_path: Path) -> None:
    prompts = ["a gun on grass", "soup"]
    plain, made = draw(tiny_pipe, prompts), {}
    for reattention in (1.0, 0.2):
        config = method("safree").Config(most=0, alpha=0.0, reattention=reattention)
        eraser = method("safree").fit(tiny_pipe, CONCEPT, config)
        eraser.save(tmp_path / f"gun-{reattention}")
        assert all(check.passed for check in verify(tmp_path / f"gun-{reattention}"))
        with Eraser.load(tmp_path / f"gun-{reattention}").attach(tiny_pipe):
            made[reattention] = draw(tiny_pipe, prompts)
    assert not np.array_equal(made[0.2][0], made[1.0][0])
    assert np.array_equal(draw(tiny_pipe, prompts), plain)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if m._forward_pre_hooks]


@pytest.mark.usefixtures("short_removal")
def test_the_filter_draws_nothing_in_particular(tiny_pipe: Any, tmp_path: Path) -> None:
    eraser = method("safety-filter").fit(tiny_pipe, CONCEPT)
    prompts = ["a soldier with a gun", "a bowl of soup"]
    plain, empty = draw(tiny_pipe, prompts), draw(tiny_pipe, ["", ""])
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with Eraser.load(tmp_path / "gun").attach(tiny_pipe) as attachment:
        made = draw(tiny_pipe, prompts)
        np.testing.assert_allclose(made[0], empty[0], atol=1e-5)
        assert np.array_equal(made[1], plain[1])
        attachment.enabled = False
        assert np.array_equal(draw(tiny_pipe, prompts), plain)
        attachment.enabled = True
        embeds = [tiny_pipe.text_encoder(torch.arange(77)[None] + n).last_hidden_state for n in (3, 5)]
        with pytest.raises(EraserDidNotFire, match="not encoded under eraser"):
            tiny_pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], num_inference_steps=1)
    assert np.array_equal(draw(tiny_pipe, prompts), plain)


def test_several_pictures_of_a_prompt_and_an_eraser_of_text_beside_it(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """`gun_eraser` edits the text encoder: its denoiser guard must know the states that the filter puts in."""
    filtered = method("safety-filter").fit(tiny_pipe, CONCEPT)
    with (
        gun_eraser.attach(tiny_pipe, name="text"),
        filtered.attach(tiny_pipe, name="filter"),
        UNetStates(tiny_pipe) as states_read,
    ):
        made = tiny_pipe("a photo of a gun", num_images_per_prompt=2, num_inference_steps=1, output_type="latent")
    assert made.images.shape[0] == 2
    torch.testing.assert_close(states_read[0][2:], states_read[0][:2])


def test_the_threshold_tells_the_sides_apart_best() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        loud, quiet = torch.rand(2, 9, generator=generator)
        loud = loud + 0.3
        at = best_threshold(loud, quiet)

        def right(value: float, loud: torch.Tensor = loud, quiet: torch.Tensor = quiet) -> int:
            return sum(x >= value for x in loud.tolist()) + sum(x < value for x in quiet.tolist())

        assert right(at) == max(right(float(value)) for value in torch.linspace(-0.1, 1.4, 3001))


def test_sentence_vectors_are_near_for_what_means_the_same() -> None:
    gun, weapon, soup = sentence_vectors(["a gun", "a weapon", "tomato soup"])
    assert float(gun.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(gun @ weapon) > float(gun @ soup) + 0.3


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    for family in ("sd3", "sdxl"):
        pipe = tiny.build(family)
        for name in ("safree", "safety-filter", "sld"):
            with pytest.raises(ExciseError, match="choose another method, such as snce"):
                method(name).fit(pipe, CONCEPT)
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("safety-filter").fit(tiny_pipe, Concept("gun", ("gun",)))
    with pytest.raises(ExciseError, match="at least -1 and at most 1"):
        method("safety-filter").Config(threshold=2.0)
    with pytest.raises(ExciseError, match="at least 0"):
        method("safree").Config(most=-1)
    with pytest.raises(ExciseError, match="a filter needs"):
        FilterEdit(SITE, torch.zeros(3), 0.5)
    with pytest.raises(ExciseError, match="a projection needs"):
        ProjectionEdit(SITE, torch.zeros(0, 3))
