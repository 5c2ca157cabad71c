"""MACE: both closed forms and the loss against the paper written out, and what comes out is an eraser as any other."""

from __future__ import annotations

import copy
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.concepts import Concept, Pair
from excise.erasers import Eraser, WeightEdit, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.trained import MACEConfig
from excise.methods.cross_attention import keys_and_values, text_states
from excise.methods.trained import mace
from excise.methods.trained.attention_maps import attention, concept_positions, layer_size, shared_states
from excise.methods.trained.mace import anchor_prompts, density, generate_pictures, objective
from excise.methods.trained.sampling import add_noise, encode_conditioning, frozen_unet
from excise.methods.trained.trainer import LowRank, watch_training
from tests import tiny

CONCEPT = Concept(
    "gun",
    ("gun", "pistol"),
    (Pair("a gun on grass", "a cat on grass"), Pair("two guns and a dog", "two ice creams and a dog")),
    ("a house",),
)
CONFIG = MACEConfig(iterations=4, lr=1e-2, batch=2, steps=2, pictures=2, lam=0.5, keep=0.7)
PROMPT = "a gun on grass"


def draw(pipe: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **how).images
    return made


def changed(eraser: Eraser) -> dict[str, Tensor]:
    """ΔW by path, float64."""
    made = {}
    for edit in eraser.edits:
        assert isinstance(edit, WeightEdit)
        made[edit.site.path] = edit.change().double()
    return made


def student_of(pipe: Any) -> LowRank:
    """One whose ΔW is not nothing."""
    weights: dict[Any, Any] = {site: layer.weight for site, layer in keys_and_values(pipe, "mace").items()}
    generator = torch.Generator().manual_seed(1)
    before = {site: 0.1 * torch.randn(weight.shape, generator=generator) for site, weight in weights.items()}
    student = LowRank(pipe.unet, weights, before, 1, generator)
    with torch.no_grad():
        for change in student.changes.values():
            change.normal_(0, 0.3, generator=generator)
    return student


def least(rows: list[tuple[float, Tensor, Tensor]]) -> Tensor:
    """The W `[out, d]` with the least Σ weight |W x - y|², by least squares over stacked rows."""
    left = torch.stack([math.sqrt(weight) * x for weight, x, _ in rows])
    right = torch.stack([math.sqrt(weight) * y for weight, _, y in rows])
    found: Tensor = torch.linalg.lstsq(left, right, driver="gelsd").solution
    return found.T


def test_the_closed_forms_minimise_what_the_paper_says(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 1 with the words counted by hand, and eq. 7 of the student as the training left it."""
    students: list[LowRank] = []

    def kept(student: LowRank, *rest: Any) -> list[float]:
        students.append(student)
        with torch.no_grad():
            for n, change in enumerate(student.changes.values()):
                change.normal_(0, 0.1, generator=torch.Generator().manual_seed(n))
        return [1.0]

    monkeypatch.setattr(mace, "tune", kept)
    made = changed(method("mace").fit(tiny_pipe, CONCEPT, replace(CONFIG, preserve="horse")))

    def states(text: str) -> Tensor:
        found: Tensor = tiny_pipe.encode_prompt(text, "cpu", 1, False)[0][0]
        return found.double()

    gun, cat = states("a gun on grass"), states("a cat on grass")
    guns, creams = states("two guns and a dog"), states("two ice creams and a dog")
    # BOS a [gun] on grass EOS padding, and BOS two [guns | ice creams] and a dog EOS padding, one token longer.
    pairs = [(gun[n], cat[n]) for n in (0, 1, *range(3, 77))]
    pairs += [(guns[n], creams[n]) for n in (0, 1)] + [(guns[n], creams[n + 1]) for n in range(3, 76)]
    held = [row for text in ("horse", "a house") for row in states(text)]
    axes = math.sqrt(CONFIG.lam) * torch.eye(64, dtype=torch.float64)
    for site, layer in keys_and_values(tiny_pipe, "mace").items():
        W = layer.weight.detach().double()
        own = [(CONFIG.keep, p, W @ p) for p in held] + [(1.0, axis, W @ axis) for axis in axes]
        refined = least([(1.0, f, W @ g) for f, g in pairs] + own)
        torch.testing.assert_close(students[0].before[site].double(), refined - W, atol=1e-4, rtol=1e-3)
        up, down = students[0].changes[site].detach().double().split([site.width, 64])
        trained = refined + torch.outer(up[:, 0], down[:, 0])
        fused = least([(1.0, f, trained @ f) for f in (*gun, *guns)] + own)
        torch.testing.assert_close(made[site.path], fused - W, atol=2e-4, rtol=2e-3)
        assert float(made[site.path].norm()) > 0.1


def test_attention_maps_are_the_layers_own(tiny_pipe: Any) -> None:
    """Maps times values, through the layer's last projection, are what it computes."""
    student, seen = student_of(tiny_pipe), list[Tensor]()
    layers = [m for path, m in tiny_pipe.unet.named_modules() if path.endswith(".attn2")]
    handles = [layer.register_forward_hook(lambda m, a, k, out: seen.append(out), with_kwargs=True) for layer in layers]
    side = encode_conditioning(tiny_pipe, PROMPT, "mace")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attention(tiny_pipe.unet) as maps:
        student(x, 300, *side.of(2))
    for handle in handles:
        handle.remove()
    assert len(maps) == len(seen) == len(layers) == 4
    written = copy.deepcopy(tiny_pipe.unet)
    for site in student.changes:
        written.get_submodule(site.path).weight.data += student.change(site).detach()
    # A pre-hook sees layers as they run, which is not as they are listed.
    order: list[str] = []
    for path, layer in written.named_modules():
        if path.endswith(".attn2"):
            layer.register_forward_pre_hook(lambda m, a, path=path: order.append(path))
    with torch.no_grad():
        written(x, 300, side.states.expand(2, -1, -1))
        for path, A, out in zip(order, maps, seen, strict=True):
            layer = written.get_submodule(path)
            torch.testing.assert_close(A.sum(-1), torch.ones(A.shape[:3]))
            values = layer.to_v(side.states)[0].view(77, layer.heads, -1)
            mixed = torch.einsum("bhpt,thd->bphd", A, values).flatten(2)
            torch.testing.assert_close(layer.to_out[0](mixed), out, atol=1e-4, rtol=1e-4)


def test_the_loss_is_equation_3(tiny_pipe: Any) -> None:
    """Head by head, pixel by pixel, token by token, with the softmax written out."""
    student = student_of(tiny_pipe)
    config = replace(CONFIG, threshold=0.5)
    pictures = generate_pictures(tiny_pipe, CONCEPT, [PROMPT], config)
    assert 0 < float(pictures[0].mask.mean()) < 1
    assert list(pictures[0].tokens) == [2, *range(5, 77)]
    chances = density(1000, config)
    made = objective(tiny_pipe, student, pictures, chances, torch.Generator().manual_seed(7), config)
    written = copy.deepcopy(tiny_pipe.unet)
    for site in student.changes:
        written.get_submodule(site.path).weight.data += student.change(site).detach()
    inputs: list[tuple[Any, Tensor]] = []
    for path, layer in written.named_modules():
        if path.endswith(".attn2"):
            layer.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0].detach())))
    generator = torch.Generator().manual_seed(7)
    torch.randint(1, (1,), generator=generator)
    t = torch.multinomial(chances, 2, replacement=True, generator=generator)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    share = tiny_pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    states = tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with torch.no_grad():
        written(share.sqrt() * pictures[0].latents + (1 - share).sqrt() * noise, t, states.expand(2, -1, -1))
    total = 0.0
    for layer, hidden in inputs:
        size = math.isqrt(hidden.shape[1])
        q, k = layer.to_q.weight.detach(), layer.to_k.weight.detach()
        wide = len(q) // layer.heads
        for picture in range(2):
            for head in range(layer.heads):
                part = slice(head * wide, (head + 1) * wide)
                keys = [k[part] @ state for state in states[0]]
                for pixel in range(hidden.shape[1]):
                    row, column = (8 // size * place for place in divmod(pixel, size))
                    if not pictures[0].mask[row : row + 8 // size, column : column + 8 // size].any():
                        continue
                    query = q[part] @ hidden[picture, pixel]
                    weights = [math.exp(float(query @ key) / math.sqrt(wide)) for key in keys]
                    total += sum((weights[n] / sum(weights)) ** 2 for n in pictures[0].tokens) / 2
    assert float(made.detach()) == pytest.approx(total, rel=1e-3)
    assert total > 0


def test_the_density_is_equation_5() -> None:
    config = MACEConfig()
    made = density(1000, config)

    def share(t: int) -> float:
        return 1 / (1 + math.exp(-0.05 * (t - 200))) - 1 / (1 + math.exp(-0.05 * (t - 400)))

    whole = sum(share(t) for t in range(1000))
    assert float(made.sum()) == pytest.approx(1)
    assert made.tolist() == pytest.approx([share(t) / whole for t in range(1000)])
    assert int(made.argmax()) == 300
    assert int(density(100, config).argmax()) == 30


def test_noise_is_that_of_the_timestep(tiny_pipe: Any) -> None:
    clean = torch.full((2, 4, 64, 64), 3.0)
    made = add_noise(tiny_pipe, clean, torch.tensor([0, 900]), torch.Generator().manual_seed(0))
    for own, t in zip(made, (0, 900), strict=True):
        share = float(tiny_pipe.scheduler.alphas_cumprod[t])
        assert float(own.mean()) == pytest.approx(3 * math.sqrt(share), abs=0.05)
        assert float(own.std()) == pytest.approx(math.sqrt(1 - share), abs=0.02)
    with pytest.raises(ExciseError, match="does not say how much noise a timestep has"):
        add_noise(SimpleNamespace(scheduler=object()), clean, torch.tensor([0, 900]), torch.Generator())


def test_a_mask_is_where_the_untouched_model_attends_to_the_word(tiny_pipe: Any) -> None:
    config = replace(CONFIG, threshold=0.5)
    (one,) = generate_pictures(tiny_pipe, CONCEPT, [PROMPT], config)
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 4, 8, 8, generator=generator)
    times = torch.tensor([199, 299, 399])
    x = add_noise(tiny_pipe, one.latents.expand(3, -1, -1, -1), times, generator)
    with attention(tiny_pipe.unet) as maps:
        frozen_unet(tiny_pipe)(x, times, *encode_conditioning(tiny_pipe, PROMPT, "mace").of(3))
    total = torch.zeros(8, 8)
    for A in maps:
        own = A[..., 2].mean((0, 1)).view(1, 1, *layer_size(8, 8, A.shape[2]))
        total += F.interpolate(own, (8, 8), mode="bilinear")[0, 0]
    wanted = (total - total.min()) / (total.max() - total.min()) >= 0.5
    assert torch.equal(one.mask.bool(), wanted)
    (style,) = generate_pictures(tiny_pipe, replace(CONCEPT, kind="style"), [PROMPT], config)
    (whole,) = generate_pictures(tiny_pipe, CONCEPT, [PROMPT], replace(config, threshold=0.0))
    assert style.mask.all() and whole.mask.all()
    (word,) = generate_pictures(tiny_pipe, CONCEPT, [PROMPT], replace(config, pooled=False))
    assert list(word.tokens) == [2]
    assert layer_size(65, 33, 33 * 17) == (33, 17)


def test_words_are_found_where_they_stand(tiny_pipe: Any) -> None:
    cream = replace(CONCEPT, mentions=("ice cream",))
    assert concept_positions(tiny_pipe, "an ice cream and two ice creams", cream) == ([2, 3, 6, 7], 8)
    assert concept_positions(tiny_pipe, "nice cream", cream) == ([], 3)
    assert anchor_prompts(CONCEPT, "") == {pair.concept: pair.deconcept for pair in CONCEPT.pairs}
    twice = replace(CONCEPT, pairs=(CONCEPT.pairs[0], Pair("a gun on grass", "grass")))
    assert anchor_prompts(twice, "") == {"a gun on grass": "a cat on grass"}
    assert anchor_prompts(CONCEPT, "tool") == {
        "a gun on grass": "a tool on grass",
        "two guns and a dog": "two tool and a dog",
    }
    assert anchor_prompts(replace(CONCEPT, pairs=()), "") == {
        "a picture of gun": "a picture of",
        "a picture of pistol": "a picture of",
    }
    same = {"a gun": "a gun"}
    states = text_states(tiny_pipe, ["a gun"])
    f, g = shared_states(tiny_pipe, same, states, states)
    assert torch.equal(f, states[0]) and torch.equal(g, f)


@pytest.mark.usefixtures("short_removal")
def test_training_lowers_the_loss_and_makes_an_eraser(tiny_pipe: Any, tmp_path: Path) -> None:
    calls: list[tuple[int, int, float]] = []
    before = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}
    with watch_training(lambda *line: calls.append(line)):
        eraser = method("mace").fit(tiny_pipe, CONCEPT, replace(CONFIG, iterations=30, lr=3e-2, pictures=1, t2=201.0))
    assert [line[:2] for line in calls] == [(n + 1, 30) for n in range(30)]
    assert calls[-1][2] < 0.8 * calls[0][2]
    assert all(torch.equal(value, before[key]) for key, value in tiny_pipe.unet.state_dict().items())
    layers = {n for n, _ in tiny_pipe.unet.named_modules() if n.endswith((".attn2.to_k", ".attn2.to_v"))}
    assert {edit.site.path for edit in eraser.edits} == layers
    plain_one = draw(tiny_pipe)
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe), plain_one)
    assert np.array_equal(draw(tiny_pipe), plain_one)


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("mace").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with watch_training(stop), pytest.raises(KeyboardInterrupt):
        method("mace").fit(tiny_pipe, CONCEPT, config)
    steps: list[int] = []
    with watch_training(lambda step, *_: steps.append(step)):
        again = method("mace").fit(tiny_pipe, CONCEPT, config)
    assert steps == [3, 4]
    assert again.digest == whole.digest
    for path, change in changed(whole).items():
        assert torch.equal(changed(again)[path], change)
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("mace").fit(tiny_pipe, CONCEPT, replace(config, anchor="cat"))


def test_what_is_attached_does_not_teach(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    alone = method("mace").fit(tiny_pipe, CONCEPT, CONFIG)
    with gun_eraser.attach(tiny_pipe):
        assert method("mace").fit(tiny_pipe, CONCEPT, CONFIG).digest == alone.digest


def test_what_cannot_be_erased_is_refused(tiny_pipe: Any) -> None:
    fit = method("mace").fit
    with pytest.raises(ExciseError, match="the anchor 'two pistols' is 'gun', which is to be erased"):
        fit(tiny_pipe, CONCEPT, replace(CONFIG, anchor="two pistols"))
    with pytest.raises(ExciseError, match="'a gun' is to be kept and is 'gun'"):
        fit(tiny_pipe, CONCEPT, replace(CONFIG, preserve="cat; a gun"))
    with pytest.raises(ExciseError, match="none of the prompts about 'rose' holds one of its mentions"):
        fit(tiny_pipe, replace(CONCEPT, name="rose", mentions=("rose",)), CONFIG)
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match=r"mace changes a U-Net's cross-attention .* has none"):
            fit(tiny.build("sd3"), CONCEPT, CONFIG)


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 0}, {"pictures": 0}, {"steps": 0}, {"lam": 0.0}, {"lam": float("nan")}, {"keep": float("inf")},
        {"keep": -1.0}, {"t1": 400.0}, {"t2": 1001.0}, {"gamma": 0.0}, {"threshold": 1.0}, {"threshold": -0.1},
        {"iterations": 0}, {"lr": 0.0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ExciseError):
        replace(CONFIG, **values)


def test_sdxl_is_told_what_else_it_reads() -> None:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    pipe = tiny.build("sdxl")
    assert method("mace").fit(pipe, CONCEPT, replace(CONFIG, iterations=1)).canary_shift > 0


def test_it_erases_an_object_from_the_bundled_model(one_bundled_pipe: Any) -> None:
    canvas, pipe = Canvas(steps=5, batch=8), one_bundled_pipe
    concept = canvas.concept("gun")
    few = replace(concept, pairs=concept.pairs[:40], controls=concept.controls[:30])
    eraser = method("mace").fit(pipe, few, MACEConfig(iterations=10, pictures=2, steps=5))
    direct, others = ([c for c in cases("gun", 4) if c.family == family] for family in ("direct", "unrelated"))

    def seen(drawn: np.ndarray) -> tuple[int, int]:
        """How often the gun is recognised, and how many of the other objects."""
        targets = sum(row["target"] for row in canvas.judge(direct, drawn[:4]))
        return targets, sum(sum(row["kept"]) for row in canvas.judge(others, drawn[4:]))

    before = canvas.draw(pipe, [*direct, *others]).pixels
    guns, things = seen(before)
    assert guns >= 3
    with eraser.attach(pipe):
        left, kept = seen(canvas.draw(pipe, [*direct, *others]).pixels)
    assert left <= 1
    assert kept >= things - 1
    again = canvas.draw(pipe, [direct[0], others[0]]).pixels
    assert np.array_equal(again, before[[0, 4]]), "what was there is there again, bit for bit"
