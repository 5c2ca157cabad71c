"""The reference model's autoencoder, from 64x64 pictures to 8x8x16 latents and back."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from excise.reference.scenes import Scene, render, sample_scene
from excise.reference.training.loop import faster_products, run

STEPS, BATCH, PEAK = 4000, 16, 1e-3
DECODER_STEPS, DECODER_PEAK = 2000, 6e-4
"""Settings of the second training, of the decoder alone. It makes pictures crisper and keeps the latents."""
CHANNELS, SIDE = 16, 8
"""Shape of the latents. They hold as many numbers as 16x16x4, but at four times fewer positions for the denoiser."""
SPREAD = 0.1
"""Standard deviation of the noise added to latents in training, relative to the latents' own."""
PULL = 1e-4
"""Weight of the squared latents in the loss, which keeps their scale from drifting."""


def build() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        latent_channels=CHANNELS,
        block_out_channels=(24, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def pixels(scenes: list[Scene]) -> Tensor:
    """Render scenes as pictures in [-1, 1], `[N, 3, 64, 64]`."""
    stack = np.stack([render(s) for s in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def reconstruction_loss(made: Tensor, real: Tensor) -> Tensor:
    """Return the error of pixels, of their differences (for crisp edges) and of 4x4 means (for colours)."""
    error = made - real
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + edges + error.square().mean() + F.avg_pool2d(error, 4).abs().mean()


def train(out: Path, steps: int = STEPS) -> AutoencoderKL:
    """Train from scratch, with the posterior's spread fixed at a share of the latents' spread.

    A learnt spread collapses here, because an untrained decoder gains by ignoring its input.
    """
    torch.manual_seed(0)
    vae = build()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        fidelity, means = _attempt(vae, step, SPREAD * min(1, step / 500))
        figures = {"fidelity": round(fidelity.item(), 5), "scale": round(means.std().item(), 3)}
        return fidelity + PULL * means.square().mean(), figures

    run(vae, loss, steps=steps, peak=PEAK, out=out, weight_decay=0.0).copy_to(vae)
    vae.eval()
    standardise(vae)
    sharpen(vae, out / "decoder")
    vae.save_pretrained(out / "vae")
    return vae


def sharpen(vae: AutoencoderKL, out: Path, steps: int = DECODER_STEPS) -> None:
    """Freeze the encoder and train the decoder alone on its latents."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    decoder = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        fidelity, _ = _attempt(vae, 10_000_000 + step, SPREAD)
        return fidelity, {"fidelity": round(fidelity.item(), 5)}

    run(decoder, loss, steps=steps, peak=DECODER_PEAK, out=out, weight_decay=0.0).copy_to(decoder)


def _attempt(vae: AutoencoderKL, seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Return the loss on new scenes with noise of `spread` times the latents' deviation, and the latents."""
    rng = random.Random(seed)
    real = pixels([sample_scene(rng) for _ in range(BATCH)])
    noise = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    with faster_products():
        means = vae.encode(real).latent_dist.mean
        made = vae.decode(means + spread * means.std().detach() * noise).sample.float()
    return reconstruction_loss(made, real), means.float()


@torch.no_grad()
def standardise(vae: AutoencoderKL, scenes: int = 512) -> None:
    """Normalise every latent channel to zero mean and unit variance, by folding this into the two 1x1 convolutions.

    Reconstructions stay the same, and the pipeline does not need a scaling factor.
    """
    rng = random.Random(-1)
    means = vae.encode(pixels([sample_scene(rng) for _ in range(scenes)])).latent_dist.mean
    shift, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:CHANNELS] /= spread[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - shift) / spread
    into.weight[CHANNELS:] = 0
    into.bias[CHANNELS:] = 2 * math.log(SPREAD)
    back.bias += back.weight[:, :, 0, 0] @ shift
    back.weight *= spread[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
