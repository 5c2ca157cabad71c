"""The reference model's denoiser: a small UNet2DConditionModel on 8x8x16 latents, v-prediction.

Salimans & Ho 2022 (v-prediction), Ho & Salimans 2022 (one caption in ten is dropped, for classifier-free guidance). At
low noise the loss is the picture's error and not the velocity's (Hang et al. 2023 cap the same end): there the velocity
is nearly the noise itself, and learning to copy it exactly would distract from the picture. An auxiliary linear head,
discarded after training, predicts from the decoder's 8x8 features which object is in which cell. At this size the
slowest thing to learn is which words mean which drawing, and this teaches it directly (after Yu et al. 2024, who align
a denoiser's features with a classifier's).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from excise.files import open_regular
from excise.reference.scenes import SIZE, Scene, sample_caption, sample_scene
from excise.reference.training.loop import Average, faster_products, run, trapezoid
from excise.reference.training.vae import CHANNELS, SIDE, pixels
from excise.reference.world import OBJECTS

WIDTHS = (160, 288)
BATCH, PEAK, STEPS = 32, 5e-4, 20_000
POOL, PASSES = 16_384, 10
"""Scenes encoded at a time, and how often each is used (with new noise) before the next pool."""
DROPPED = 0.1
CELLS, CELLS_WEIGHT = 8, 0.03
"""Side of the grid of the auxiliary head, and the weight of its loss."""
TIMESTEPS = 1000
CAP = 2.0
"""Largest weight of a timestep, relative to the picture's squared error."""
SKEW = 0.7
"""Timesteps are sampled as u ** SKEW. Below 1, more are noisy, where the prompt decides the content."""


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D",) * len(WIDTHS),
        up_block_types=("CrossAttnUpBlock2D",) * len(WIDTHS),
        layers_per_block=1,
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@torch.inference_mode()
def encode_captions(words: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Encode captions as the denoiser reads them: all 77 states, `[N, 77, 256]` bfloat16."""
    batch = words(captions, padding="max_length", truncation=True, return_tensors="pt")
    with faster_products():
        states: Tensor = encoder(input_ids=batch["input_ids"]).last_hidden_state
    return states.bfloat16()


@torch.inference_mode()
def encode_pixels(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode pictures as scaled latents `[N, 16, 8, 8]` (the posterior's mean)."""
    with faster_products():
        means: Tensor = vae.encode(images).latent_dist.mean
    scaling: float = vae.config.scaling_factor
    return means.float() * scaling


class Pool:
    """Encoded scenes, renewed every `POOL * PASSES` samples. A batch depends only on the step number."""

    def __init__(self, words: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL, batch: int) -> None:
        self.words, self.encoder, self.vae, self.batch = words, encoder, vae, batch
        self.number = -1
        self.latents = torch.empty(POOL, CHANNELS, SIDE, SIDE)
        self.states = torch.empty(POOL, 77, 256, dtype=torch.bfloat16)
        self.cells = torch.empty(POOL, len(OBJECTS), CELLS, CELLS, dtype=torch.bool)
        self.empty = encode_captions(words, encoder, [""])

    def _fill(self, number: int) -> None:
        rng = random.Random(1_000_003 * number)
        for start in range(0, POOL, 256):
            scenes = [sample_scene(rng) for _ in range(256)]
            self.cells[start : start + 256] = cells(scenes).bool()
            self.latents[start : start + 256] = encode_pixels(self.vae, pixels(scenes))
            self.states[start : start + 256] = encode_captions(
                self.words, self.encoder, [sample_caption(rng, s) for s in scenes]
            )
        self.number = number

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        per_pass = POOL // self.batch
        number, within = divmod(step, per_pass * PASSES)
        if number != self.number:
            self._fill(number)
        turn, row = divmod(within, per_pass)
        order = torch.randperm(POOL, generator=torch.Generator().manual_seed(number * PASSES + turn))
        rows = order[row * self.batch : (row + 1) * self.batch]
        return self.latents[rows], self.states[rows], self.cells[rows].float()


def targets(latents: Tensor, noise: Tensor, t: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return noisy latents and the velocity to predict. `signal` is alpha-bar `[T]`."""
    a = signal[t].float()[:, None, None, None]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    return noisy, a.sqrt() * noise - (1 - a).sqrt() * latents


def weight(t: Tensor, signal: Tensor) -> Tensor:
    """Return the weight of the squared velocity error at timesteps `t`, `[N]`, at most 1.

    A velocity error e is a picture error sqrt(1 - a) e. At weight 1 the picture's squared error has weight 1 / (1 - a)
    = SNR + 1; the weight is reduced where that would exceed CAP.
    """
    return (CAP * (1 - signal[t].float())).clamp(max=1)


def cells(scenes: list[Scene]) -> Tensor:
    """Return whether each object's box covers the middle of each cell: `[N, 40, 8, 8]` of 0 and 1."""
    out = torch.zeros(len(scenes), len(OBJECTS), CELLS, CELLS)
    side = SIZE // CELLS
    for row, scene in enumerate(scenes):
        for name, (left, top, size) in zip(scene.objects, scene.boxes, strict=True):
            # Round up to the first cell whose middle is at or after an edge.
            span = [slice(*(-((side // 2 - edge) // side) for edge in (at, at + size))) for at in (top, left)]
            out[row, OBJECTS.index(name), span[0], span[1]] = 1
    return out


def train(out: Path, parts: Path, steps: int = STEPS, decay_from: int | None = None) -> UNet2DConditionModel:
    """Train with `vae/`, `text_encoder/` and `tokenizer/` in `parts`. The learning rate decays from `decay_from` on."""
    torch.manual_seed(0)
    unet = build()
    # Plain attention, because PyTorch's fused kernel has a slow backward pass on CPUs (a quarter of the step).
    unet.set_attn_processor(AttnProcessor())
    words = CLIPTokenizer.from_pretrained(parts / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(parts / "vae").eval()
    pool = Pool(words, encoder, vae, BATCH)
    signal = scheduler().alphas_cumprod.double().clamp(min=1e-8)

    learner = torch.nn.ModuleDict({"unet": unet, "cells": torch.nn.Conv2d(WIDTHS[-1], len(OBJECTS), 1)})
    seen: list[Tensor] = []
    unet.up_blocks[0].register_forward_hook(lambda module, given, made: seen.append(made))

    @torch.compile
    def predict(noisy: Tensor, t: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        velocity: Tensor = unet(noisy, t, encoder_hidden_states=states).sample
        return velocity, learner["cells"](seen.pop())

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        latents, states, where = pool(step)
        draw = torch.Generator().manual_seed(step)
        # Stratified timesteps, one from each of BATCH equal intervals, halve the loss's variance.
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=draw)) / BATCH
        t = (u**SKEW * TIMESTEPS).long()
        dropped = torch.rand(BATCH, generator=draw) < DROPPED
        states = torch.where(dropped[:, None, None], pool.empty, states)
        noise = torch.randn(latents.shape, generator=draw)
        noisy, velocity = targets(latents, noise, t, signal)
        with faster_products():
            made, named = predict(noisy, t, states)
        error = ((made.float() - velocity).square().mean((1, 2, 3)) * weight(t, signal)).mean()
        naming = F.binary_cross_entropy_with_logits(named.float(), where, reduction="none").sum(1).mean()
        return error + CELLS_WEIGHT * naming, {"mse": round(error.item(), 4), "naming": round(naming.item(), 4)}

    average: Average = run(
        learner, loss, steps=steps, peak=PEAK, out=out, decay=0.999, schedule=trapezoid(steps, PEAK, decay_from)
    )
    average.copy_to(learner)
    return unet.eval()


def snapshot(out: Path) -> UNet2DConditionModel:
    """Load the averaged weights of the last checkpoint in `out`. Training may still be running."""
    unet = build()
    with open_regular(out / "checkpoint.pt") as file:
        saved = torch.load(file, weights_only=True)
    weights = {k.removeprefix("unet."): v for k, v in saved["average"].items() if k.startswith("unet.")}
    unet.load_state_dict(weights)
    return unet.eval()
