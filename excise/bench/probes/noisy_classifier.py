"""A classifier of noised latents, for guidance towards a concept (Dhariwal and Nichol 2021).

It is trained when it is first needed, in about half a minute, on rendered scenes that the bundled model's own training
could have had. It only pushes: judges are others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.bench.canvas.captioned import is_style
from excise.bench.latents import encoded
from excise.bench.probes.sampling import Schedule, Score
from excise.pipeline import Pipeline, as_diffusers
from excise.reference.classifier import labels
from excise.reference.scenes import render, sample_scene
from excise.reference.world import OBJECTS, STYLES

SCENES, STEPS, BATCH, PEAK = 3000, 800, 64, 4e-3
"""Scenes, training steps, scenes a step, and the highest learning rate."""


class NoisyClassifier(nn.Module):
    """Objects and style of latents with noise, given the share ᾱ of the signal's variance."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.level = nn.Linear(2, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.more = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.out = nn.Linear(2 * width, len(OBJECTS) + len(STYLES))

    def forward(self, latents: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of objects `[n, 40]` and styles `[n, 8]` of latents `[n, C, h, w]` at `share` `[n]`."""
        level = self.level(torch.stack([share.sqrt(), (1 - share).sqrt()], 1))[:, :, None, None]
        h = F.silu(self.first(latents) + level)
        for layer in self.more:
            h = h + F.silu(layer(h) + level)
        found = self.out(torch.cat([h.amax((2, 3)), h.mean((2, 3))], 1))
        return found[:, : len(OBJECTS)], found[:, len(OBJECTS) :]

    def score(self, concepts: Sequence[str]) -> Score:
        """Return a function from latents `[n, C, h, w]` and ᾱ to the log-probability `[n]` of one concept each."""

        def score(latents: Tensor, share: Tensor) -> Tensor:
            objects, styles = self(latents, share.expand(len(latents)))
            likely = F.logsigmoid(objects), styles.log_softmax(1)
            places = [(1, STYLES.index(name)) if is_style(name) else (0, OBJECTS.index(name)) for name in concepts]
            return torch.stack([likely[kind][n, at] for n, (kind, at) in enumerate(places)])

        return score


_TRAINED: WeakKeyDictionary[nn.Module, NoisyClassifier] = WeakKeyDictionary()
"""By autoencoder."""


def trained(pipe: Pipeline) -> NoisyClassifier:
    """Return the classifier for a pipeline's latents, trained on the first call."""
    vae = as_diffusers(pipe).vae
    if vae not in _TRAINED:
        _TRAINED[vae] = _train(pipe)
    return _TRAINED[vae]


def _train(pipe: Pipeline) -> NoisyClassifier:
    rng, draw = random.Random("noisy classifier"), torch.Generator().manual_seed(0)
    scenes = [sample_scene(rng) for _ in range(SCENES)]
    parts = [scenes[start : start + BATCH] for start in range(0, SCENES, BATCH)]
    latents = torch.cat([encoded(pipe, np.stack([render(scene) for scene in part])).float().cpu() for part in parts])
    objects, styles, _ = labels(scenes)
    shares = Schedule.of(pipe, as_diffusers(pipe).scheduler.config.num_train_timesteps).shares[:-1]
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(False):
        torch.manual_seed(0)
        model = NoisyClassifier(latents.shape[1])
        adam = torch.optim.AdamW(model.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, PEAK, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(SCENES, (BATCH,), generator=draw)
            share = shares[torch.randint(len(shares), (BATCH,), generator=draw)]
            clean = latents[rows]
            mixed = share.sqrt()[:, None, None, None] * clean
            noise = torch.randn(clean.shape, generator=draw)
            mixed = mixed + (1 - share).sqrt()[:, None, None, None] * noise
            seen, style = model(mixed, share)
            loss = F.binary_cross_entropy_with_logits(seen, objects[rows]) * len(OBJECTS) / 4
            loss = loss + F.cross_entropy(style, styles[rows])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            rate.step()
    return model.eval().requires_grad_(False)
