"""Pictures to a pipeline's latents, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from excise.drawn import Pixels
from excise.pipeline import Pipeline, as_diffusers


@torch.no_grad()
def encoded(pipe: Pipeline, pictures: Pixels) -> Tensor:
    """Return the scaled latents `[n, C, h, w]`, in the autoencoder's dtype, of pictures `[n, height, width, 3]`."""
    vae: Any = as_diffusers(pipe).vae
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents: Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
    return latents.mul(vae.config.scaling_factor)


def decoded(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Return the pictures `[n, 3, height, width]` of scaled latents, float32, in [-1, 1] where they are sound."""
    vae: Any = as_diffusers(pipe).vae
    made: Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()
    return made
