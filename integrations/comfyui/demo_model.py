"""Excise's bundled model as ComfyUI's MODEL, CLIP and VAE: 64 by 64 pictures in seconds on a CPU, without a download.

It needs the distribution `excise-reference`, and diffusers, which computes its U-Net and VAE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from excise.errors import MissingExtra
from excise.files import read_json, read_tensors

CLIP_SETTINGS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act",
    "max_position_embeddings", "eos_token_id",
)  # fmt: skip
"""What ComfyUI reads of a CLIP's configuration."""


def folder() -> Path:
    """Return the model's folder. Raise MissingExtra if it is not installed."""
    try:
        import diffusers  # noqa: F401

        from excise.reference import data
    except ImportError as error:
        raise MissingExtra(f"the demo model needs {error.name}; pip install 'excise[reference]'") from error
    return data.folder() / "model"


class Latents(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
    """The demo model's latents: 16 channels, not scaled."""

    latent_channels = 16
    scale_factor = 1.0


class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """What ComfyUI must know of the demo model."""

    latent_format = Latents
    supported_inference_dtypes = (torch.float32,)
    memory_usage_factor = 1.0

    def __init__(self, unet: dict[str, Any]) -> None:
        super().__init__({"in_channels": unet["in_channels"], "context_dim": unet["cross_attention_dim"]})


class UNet(torch.nn.Module):
    """Diffusers' U-Net under the arguments that ComfyUI calls a model with."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.inner = UNet2DConditionModel.from_pretrained(folder() / "unet", torch_dtype=torch.float32)
        self.dtype = torch.float32

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        """Return the prediction for noisy latents `x` at `timesteps`, given text states `context`."""
        made: Tensor = self.inner(x, timesteps, encoder_hidden_states=context).sample
        return made


class VAE:
    """Diffusers' VAE with the methods that VAE Decode and VAE Encode call."""

    def __init__(self) -> None:
        from diffusers import AutoencoderKL

        self.inner = AutoencoderKL.from_pretrained(folder() / "vae", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """Return pixels `[B, H, W, 3]` from 0 to 1 of latents `[B, 16, h, w]`."""
        pixels: Tensor = self.inner.decode(latents.float().cpu()).sample
        return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    @torch.no_grad()
    def encode(self, pixels: Tensor, **_: Any) -> Tensor:
        """Return the latents of pixels from 0 to 1."""
        made: Tensor = self.inner.encode(pixels[..., :3].movedim(-1, 1).float().cpu() * 2 - 1).latent_dist.mean
        return made

    def spacial_compression_decode(self) -> int:
        """Return the number of pixels per latent, along one side."""
        return 8


def load() -> tuple[Any, Any, VAE]:
    """Return the demo model as ComfyUI's MODEL, CLIP and VAE. Raise MissingExtra if it is not installed."""
    return _model(), _clip(), VAE()


def _model() -> Any:
    config = Config(read_json(folder() / "unet" / "config.json"))
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.V_PREDICTION, unet_model=UNet)
    model.model_sampling.set_sigmas(sigmas(read_json(folder() / "scheduler" / "scheduler_config.json")))
    model.eval()
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def sigmas(schedule: dict[str, Any]) -> Tensor:
    """Return σ_t = sqrt((1 - ᾱ_t) / ᾱ_t) `[T]` of diffusers' schedule `squaredcos_cap_v2`.

    ComfyUI's own version of this schedule raises.
    """
    from diffusers import DDIMScheduler

    kept = DDIMScheduler.from_config(schedule).alphas_cumprod
    made: Tensor = ((1 - kept) / kept).sqrt()
    return made


def _clip() -> Any:
    text = folder() / "text_encoder"
    config, weights = read_json(text / "config.json"), dict[str, Tensor]()
    for part in sorted(text.glob("*.safetensors")):
        weights |= load_tensors(read_tensors(part))
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in weights.items()}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    settings = {"clip_l_model_config": {name: config[name] for name in CLIP_SETTINGS}}
    count = sum(tensor.numel() for tensor in named.values())
    return comfy.sd.CLIP(target, parameters=count, state_dict=[named], model_options=settings)
