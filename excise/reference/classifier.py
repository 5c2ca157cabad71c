"""The independent judges of pictures: which of the 40 objects, which style, which background, or nothing.

There are two networks without a common layer, a convolutional one and a transformer over patches, so that an eraser
cannot gain from what one of them overlooks. The first decides, and the second one's agreement is reported. Both are
trained on real scenes only, never on generated ones. Some scenes pass through the autoencoder and some are slightly
distorted, so that the judge learns the content and not how the pixels were made. In others the objects are destroyed,
and the judge learns to report nothing. Thresholds are calibrated once on real scenes, before any concept is erased, and
are stored with the weights.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from excise.files import read_tensors, write_atomic
from excise.reference.patch_transformer import PatchTransformer
from excise.reference.scenes import Pixels, Scene, render, sample_scene
from excise.reference.training.loop import faster_products, run
from excise.reference.training.vae import pixels
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES

STEPS, BATCH, PEAK = 5000, 64, 2e-3
WRECKED = 8
"""Pictures of each batch whose objects are made unrecognisable."""
FALSE_POSITIVES = 0.01
"""Largest share of false positives of an object's threshold, on real scenes without the object."""
LEAST_THRESHOLD = 0.5


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts on N pictures."""

    scores: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each object, `[N, 40]`."""
    objects: np.ndarray[Any, np.dtype[np.bool_]]
    """Whether each object is recognised (score at or above its threshold), `[N, 40]`."""
    nothing: np.ndarray[Any, np.dtype[np.bool_]]
    """Whether no object is recognised and the judge's output for "nothing recognisable" is at least 0.5, `[N]`."""
    style: np.ndarray[Any, np.dtype[np.int64]]
    """Index of the most likely style, `[N]`."""
    background: np.ndarray[Any, np.dtype[np.int64]]
    """Index of the most likely background, `[N]`."""
    style_scores: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each style, `[N, 8]`."""
    background_scores: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each background, `[N, 8]`."""
    features: np.ndarray[Any, np.dtype[np.float32]]
    """Penultimate features, `[N, 192]`, for Fréchet distances."""


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 192, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.objects = nn.Linear(192, len(OBJECTS))
        self.nothing = nn.Linear(2 * 192, 1)
        self.style = nn.Linear(2 * 192, len(STYLES))
        self.background = nn.Linear(2 * 192, len(BACKGROUNDS))
        self.register_buffer("thresholds", torch.full((len(OBJECTS),), LEAST_THRESHOLD))
        self.thresholds: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map images `[N, 3, 64, 64]` in [-1, 1] to logits and features.

        Returns:
            Logits of objects `[N, 40]`, nothing `[N]`, style `[N, 8]` and background `[N, 8]`, and features `[N, 192]`.
        """
        maps = self.body(images)
        peak, mean = maps.amax((2, 3)), maps.mean((2, 3))
        both = torch.cat([peak, mean], 1)
        return self.objects(peak), self.nothing(both)[:, 0], self.style(both), self.background(both), peak


def spoil(images: Tensor, rng: torch.Generator) -> Tensor:
    """Apply slight changes of tone, noise and blur, each to a random half of the pictures."""
    n = len(images)

    def half() -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=rng) < 0.5).float()

    images = images * (1 + 0.15 * half() * (torch.rand(n, 3, 1, 1, generator=rng) - 0.5))
    images = images + half() * 0.08 * torch.rand(n, 1, 1, 1, generator=rng) * torch.randn(images.shape, generator=rng)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = half() * torch.rand(n, 1, 1, 1, generator=rng) * 0.8
    return (images + amount * (blurred - images)).clamp(-1, 1)


def wreck(images: Tensor, scenes: list[Scene], rng: random.Random) -> Tensor:
    """Make every object unrecognisable: smeared, shuffled in 4x4 pieces, or covered with noise."""
    images = images.clone()
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    for image, scene in zip(images, scenes, strict=True):
        for left, top, size in scene.boxes:
            box = image[:, top : top + size, left : left + size]
            how = rng.choice(("smeared", "torn", "drowned"))
            if how == "smeared":
                coarse = F.interpolate(box[None], size=(3, 3), mode="area")
                box.copy_(F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)[0])
            elif how == "torn":
                pieces = F.unfold(box[None], 4, stride=4)[0]
                shuffled = pieces[:, torch.randperm(pieces.shape[1], generator=draw)]
                box.copy_(F.fold(shuffled[None], (size, size), 4, stride=4)[0])
            else:
                box.mul_(0.3).add_(0.6 * torch.randn(box.shape, generator=draw)).clamp_(-1, 1)
    return images


def labels(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scenes' objects `[N, 40]`, style `[N]` and background `[N]`."""
    objects = torch.zeros(len(scenes), len(OBJECTS))
    for row, scene in enumerate(scenes):
        for name in scene.objects:
            objects[row, OBJECTS.index(name)] = 1
    style = torch.tensor([STYLES.index(s.style) for s in scenes])
    return objects, style, torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])


def train(out: Path, vae_folder: Path, name: str = "classifier", steps: int = STEPS) -> Judge:
    """Train the judge `name` of `JUDGES` and write `name.safetensors` and `name.json` into `out`."""
    torch.manual_seed(0)
    model = JUDGES[name]()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, noise = random.Random(step), torch.Generator().manual_seed(step)
        scenes = [sample_scene(rng, any_style=True) for _ in range(BATCH)]
        images = pixels(scenes)
        quarter = BATCH // 4
        with torch.no_grad(), faster_products():
            latents = vae.encode(images[:quarter]).latent_dist.mean
            latents = latents + 0.15 * latents.std() * torch.rand(quarter, 1, 1, 1, generator=noise) * torch.randn(
                latents.shape, generator=noise
            )
            images[:quarter] = vae.decode(latents).sample.float()
        images[-WRECKED:] = wreck(images[-WRECKED:], scenes[-WRECKED:], rng)
        model.train()
        with faster_products():
            objects, nothing, style, background, _ = model(spoil(images, noise))
        want, want_style, want_background = labels(scenes)
        want[-WRECKED:] = 0
        value = (
            20 * F.binary_cross_entropy_with_logits(objects.float(), want)
            + F.binary_cross_entropy_with_logits(nothing.float(), 1 - want.amax(1))
            + F.cross_entropy(style.float(), want_style)
            + F.cross_entropy(background.float(), want_background)
        )
        right = ((objects > 0) == want.bool()).all(1).float().mean().item()
        return value, {
            "exact": round(right, 4),
            "style": round((style.argmax(1) == want_style).float().mean().item(), 4),
        }

    run(model, loss, steps=steps, peak=PEAK, out=out, decay=0.998).copy_to(model)
    model.eval()
    figures = calibrate(model)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / f"{name}.safetensors")
    write_atomic(out / f"{name}.json", json.dumps(figures, indent=1))
    return model


Judge = Classifier | PatchTransformer
JUDGES: dict[str, type[Judge]] = {"classifier": Classifier, "second_classifier": PatchTransformer}
"""Judges by the name of their files."""


@torch.inference_mode()
def judge(model: Judge, images: Pixels, batch: int = 256) -> Verdicts:
    """Return verdicts on pictures `[N, 64, 64, 3]` uint8."""
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
        for part, value in zip(parts, model(chunk.permute(0, 3, 1, 2).float().div(127.5).sub(1)), strict=True):
            part.append(value)
    objects, nothing, style, background, features = (torch.cat(p) for p in parts)
    scores = objects.sigmoid()
    recognised = scores >= model.thresholds
    return Verdicts(
        scores.numpy(),
        recognised.numpy(),
        (~recognised.any(1) & (nothing >= 0)).numpy(),
        style.argmax(1).numpy(),
        background.argmax(1).numpy(),
        style.softmax(1).numpy(),
        background.softmax(1).numpy(),
        features.numpy(),
    )


def calibrate(model: Judge, n: int = 8000) -> dict[str, float]:
    """Set each object's threshold on new real scenes, then measure on others, separately on held-out pairs."""
    rng = random.Random(77)
    scores, want = _score(model, [sample_scene(rng, any_style=True) for _ in range(n)])
    for i in range(len(OBJECTS)):
        absent = scores.scores[want[0][:, i] == 0, i]
        cut = float(np.quantile(absent, 1 - FALSE_POSITIVES))
        model.thresholds[i] = max(LEAST_THRESHOLD, cut)
    figures: dict[str, float] = {"largest_threshold": round(float(model.thresholds.max()), 4)}
    for name, held_out in (("seen", False), ("held_out_pairs", True)):
        scenes = [sample_scene(rng, held_out, any_style=True) for _ in range(4000)]
        verdicts, (objects, style, background) = _score(model, scenes)
        present = objects.astype(bool)
        figures |= {
            f"{name}_recall": round(float(verdicts.objects[present].mean()), 4),
            f"{name}_false_positives": round(float(verdicts.objects[~present].mean()), 5),
            f"{name}_exact": round(float((verdicts.objects == present).all(1).mean()), 4),
            f"{name}_style": round(float((verdicts.style == style).mean()), 4),
            f"{name}_background": round(float((verdicts.background == background).mean()), 4),
            f"{name}_called_nothing": round(float(verdicts.nothing[present.any(1)].mean()), 5),
            f"{name}_calibration_error": round(calibration_error(verdicts.scores, present), 5),
        }
    scenes = [sample_scene(rng, any_style=True) for _ in range(2000)]
    empty = [s for s in scenes if not s.objects]
    wrecked = wreck(pixels(scenes), scenes, rng).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    figures |= {
        "empty_called_nothing": round(float(_score(model, empty)[0].nothing.mean()), 4),
        "wrecked_called_nothing": round(float(judge(model, wrecked).nothing.mean()), 4),
    }
    return figures


def calibration_error(
    scores: np.ndarray[Any, np.dtype[np.float32]], present: np.ndarray[Any, np.dtype[np.bool_]], bins: int = 15
) -> float:
    """Return the expected calibration error (Naeini et al. 2015) of probabilities `[N, 40]`.

    In bins of equal width, this is the distance of the mean probability from the share present, weighted by bin size.
    """
    likely, real = scores.ravel().astype(np.float64), present.ravel()
    which = np.minimum((likely * bins).astype(int), bins - 1)
    gaps = [abs(likely[which == b].sum() - real[which == b].sum()) for b in range(bins)]
    return float(np.sum(gaps) / len(likely))


def _score(model: Judge, scenes: list[Scene]) -> tuple[Verdicts, tuple[Any, Any, Any]]:
    verdicts = judge(model, np.stack([render(s) for s in scenes]))
    objects, style, background = labels(scenes)
    return verdicts, (objects.numpy(), style.numpy(), background.numpy())


def load(folder: Path, name: str = "classifier") -> Judge:
    model = JUDGES[name]()
    model.load_state_dict(load_tensors(read_tensors(folder / f"{name}.safetensors")))
    return model.eval()
