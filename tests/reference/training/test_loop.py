"""The reference model's training: its formulas against arithmetic, its loop against an unbroken run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from excise.reference import classifier, data
from excise.reference.scenes import Scene, sample_scene
from excise.reference.training import loop, text_encoder, unet, vae
from excise.reference.world import OBJECTS

BPE = data.folder() / text_encoder.MERGES


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("a diagram", [49406, 320, 22697, 49407]),
        ("Hello, World!", [49406, 3306, 267, 1002, 256, 49407]),
    ],
)
def test_the_tokenizer_is_clips(text: str, ids: list[int]) -> None:
    """Ids as OpenAI's CLIP gives them."""
    words = text_encoder.tokenizer(BPE)
    assert words(text)["input_ids"] == ids and len(words) == 49408
    assert words("x", padding="max_length")["input_ids"][3:] == [49407] * 74


def _toy(out: Path, steps: int, module: nn.Module) -> None:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    loop.run(module, loss, steps=steps, peak=0.05, out=out, schedule=lambda _: 0.05).copy_to(module)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    results = []
    for stops in ([600], [250, 600]):
        torch.manual_seed(0)
        folder = tmp_path / str(len(stops))
        for stop in stops:
            module = nn.Linear(3, 1)
            _toy(folder, stop, module)
        results.append(module.weight.detach().clone())
    assert torch.equal(*results)
    assert torch.allclose(results[0], torch.ones(1, 3), atol=0.05)
    lines = [json.loads(line) for line in (tmp_path / "1" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [200, 400, 600] and lines[-1]["loss"] < 0.01


def test_schedules_by_hand() -> None:
    assert loop.cosine(0, 1000, 1.0, warmup=10) == 0.1
    assert loop.cosine(505, 1000, 1.0, warmup=10, floor=0.0) == pytest.approx(0.5)
    assert loop.cosine(1000, 1000, 1.0) == pytest.approx(0.02)
    rate = loop.trapezoid(1000, 2.0, decay_from=600, warmup=100)
    assert [rate(0), rate(99), rate(599), rate(800), rate(1000)] == pytest.approx([0.02, 2, 2, 1, 0.04])


def test_the_average_is_the_recursion() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = loop.Average(module, decay=0.9)
    mine = module.weight.item()
    for step, value in enumerate((1.0, -2.0, 3.0)):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step)) ** loop.AVERAGED
        mine = decay * mine + (1 - decay) * value
    assert average.weights["weight"].item() == pytest.approx(mine, rel=1e-5)


def test_refitting_the_head_turns_to_the_targets_and_leaves_the_encoder() -> None:
    torch.manual_seed(0)
    student = text_encoder.Student().eval()
    ids = [[49406, word, 49407] for word in range(400, 440)]
    targets = torch.nn.functional.normalize(torch.randn(len(ids), 384), dim=-1)

    def agreement() -> float:
        with torch.no_grad():
            made = student(torch.tensor(ids), torch.full((len(ids), 1), 2))[:, 0]
        return torch.nn.functional.cosine_similarity(made, targets, dim=-1).mean().item()

    before, weights = agreement(), [p.clone() for p in student.encoder.parameters()]
    text_encoder.refit_head(student, {"ids": ids, "targets": targets}, list(range(len(ids))), steps=200)
    assert agreement() > before + 0.3
    assert all(torch.equal(old, new) for old, new in zip(weights, student.encoder.parameters(), strict=True))


def test_wrecking_takes_the_objects_and_leaves_the_rest() -> None:
    scene = Scene(("gun", "cat"), "bold", "sand", ((0, 16, 24), (32, 16, 32)))
    images = vae.pixels([scene])
    wrecked = classifier.wreck(images, [scene], random.Random(0))
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[16:40, 0:24] = inside[16:48, 32:64] = True
    assert torch.equal(images[..., ~inside], wrecked[..., ~inside])
    assert (images - wrecked).abs()[..., inside].mean() > 0.05


def test_reconstruction_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    made, real = rng.standard_normal((2, 4, 4))
    e = made - real
    across = np.mean([abs(e[i, j + 1] - e[i, j]) for i in range(4) for j in range(3)])
    down = np.mean([abs(e[i + 1, j] - e[i, j]) for i in range(3) for j in range(4)])
    want = np.abs(e).mean() + across + down + (e**2).mean() + abs(e.mean())
    got = vae.reconstruction_loss(torch.from_numpy(made[None, None]), torch.from_numpy(real[None, None]))
    assert got.item() == pytest.approx(want)


def test_velocity_agrees_with_the_scheduler() -> None:
    """v = a.sqrt() noise - (1-a).sqrt() x0."""
    s = unet.scheduler()
    x, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    t = torch.tensor([100, 900])
    noisy, velocity = unet.targets(x, noise, t, s.alphas_cumprod.double())
    assert torch.allclose(velocity, s.get_velocity(x, noise, t), atol=1e-5)
    assert torch.allclose(noisy, s.add_noise(x, noise, t), atol=1e-5)


def test_a_timestep_weighs_by_the_pictures_error_up_to_the_cap() -> None:
    s = unet.scheduler()
    x, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    for step in (20, 300, 499, 700, 999):
        t = torch.tensor([step])
        noisy, velocity = unet.targets(x, noise, t, s.alphas_cumprod.double())
        guess = velocity + 0.1
        picture = s.alphas_cumprod[step].sqrt() * noisy - (1 - s.alphas_cumprod[step]).sqrt() * guess
        per_picture_error = 0.01 / (picture - x).square().mean().item()
        weighed = unet.weight(t, s.alphas_cumprod.double()).item() * per_picture_error
        assert weighed == pytest.approx(min(unet.CAP, per_picture_error), rel=1e-3)


def test_cells_name_the_object_whose_box_covers_their_middle() -> None:
    rng = random.Random(4)
    scenes = [sample_scene(rng) for _ in range(50)]
    for scene, grid in zip(scenes, unet.cells(scenes), strict=True):
        want = torch.zeros_like(grid)
        for name, (left, top, size) in zip(scene.objects, scene.boxes, strict=True):
            for row in range(8):
                for column in range(8):
                    y, x = 8 * row + 4, 8 * column + 4
                    inside = top <= y < top + size and left <= x < left + size
                    want[OBJECTS.index(name), row, column] = float(inside)
        assert torch.equal(grid, want), scene


def test_labels_and_verdict_of_an_untrained_judge() -> None:
    scene = Scene(("gun", "cat"), "bold", "sand", ((0, 16, 28), (36, 16, 24)))
    objects, style, background = classifier.labels([scene])
    assert objects.sum() == 2 and style.item() == 6 and background.item() == 3
    verdicts = classifier.judge(classifier.Classifier().eval(), np.zeros((3, 64, 64, 3), np.uint8))
    assert verdicts.scores.shape == (3, 40) and verdicts.features.shape == (3, 192)
    assert not (verdicts.nothing & verdicts.objects.any(1)).any() and math.isfinite(verdicts.scores.sum())


def test_sharpening_moves_the_decoder_and_leaves_the_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vae.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vae.sharpen(model, tmp_path, steps=loop.AVERAGED)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {"decoder", "post_quant_conv"}


@torch.no_grad()
def test_standardising_changes_the_latents_and_not_the_pictures() -> None:
    torch.manual_seed(0)
    model = vae.build().eval()
    x = torch.randn(2, 3, 64, 64)
    before = model.decode(model.encode(x).latent_dist.mean).sample
    vae.standardise(model, scenes=16)
    after = model.decode(model.encode(x).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)
    rng = random.Random(-1)
    latents = model.encode(vae.pixels([sample_scene(rng) for _ in range(16)])).latent_dist.mean
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(vae.CHANNELS), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(vae.CHANNELS), atol=1e-3)


def test_the_calibration_error_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((50, 40)).astype(np.float32)
    present = rng.random((50, 40)) < scores**2
    total = 0.0
    for b in range(15):
        inside = [(s, p) for s, p in zip(scores.ravel(), present.ravel(), strict=True) if b / 15 <= s < (b + 1) / 15]
        mean, share = np.mean([s for s, _ in inside]), np.mean([p for _, p in inside])
        total += len(inside) / scores.size * abs(mean - share)
    assert classifier.calibration_error(scores, present) == pytest.approx(total, abs=1e-6)
    assert classifier.calibration_error(present.astype(np.float32), present) == 0
