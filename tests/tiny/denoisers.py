"""VAEs, denoisers and their scheduler, of real classes with random weights."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny.encoders import seeded


def kl(latents: int, levels: int = 1) -> Any:
    """Return an AutoencoderKL; each level after the first halves the picture. Most pipelines need a shift."""
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4,) * levels,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=latents,
            shift_factor=0.0,
        )
    )


def narrow(pipe: Any) -> Any:
    """Give a pipeline a U-Net and a VAE of the same configuration and dtype, but narrow and with random weights.

    A processor that emulates bfloat16 takes minutes for the bundled ones.
    """
    for name in ("unet", "vae"):
        part = getattr(pipe, name)
        narrower = {**part.config, "block_out_channels": [32 for _ in part.config.block_out_channels]}
        setattr(pipe, name, seeded(lambda part=part, given=narrower: type(part).from_config(given)).to(part.dtype))
    return pipe


def flux2_kl() -> Any:
    from diffusers import AutoencoderKLFlux2

    return seeded(
        lambda: AutoencoderKLFlux2(
            block_out_channels=(4,),
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            layers_per_block=1,
            latent_channels=1,
        )
    )


def video(name: str, latents: int) -> Any:
    """Return Wan's causal VAE, or Qwen-Image's copy of it, which divides each side by four."""
    import diffusers

    shape = {"base_dim": 4, "z_dim": latents, "dim_mult": [1, 1, 1], "num_res_blocks": 1}
    scale = {"temperal_downsample": [False, True], "latents_mean": [0.0] * latents, "latents_std": [1.0] * latents}
    if name == "AutoencoderKLWan":
        scale["scale_factor_spatial"] = 4
        scale["scale_factor_temporal"] = 2
    return seeded(lambda: getattr(diffusers, name)(**shape, **scale))


def deep_compression() -> Any:
    from diffusers import AutoencoderDC

    return seeded(
        lambda: AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
        )
    )


def hunyuan() -> Any:
    from diffusers import AutoencoderKLHunyuanImage

    return seeded(
        lambda: AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.5,
        )
    )


def unet(width: int, pooled: int | None = None) -> Any:
    """Return Stable Diffusion's U-Net, or SDXL's if there is also a pooled state of width `pooled`."""
    from diffusers import UNet2DConditionModel

    extra: dict[str, Any] = {}
    if pooled is not None:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": pooled + 6 * 8,
            "use_linear_projection": True,
        }
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=4,
            **extra,
        )
    )


def transformer(name: str, **config: Any) -> Any:
    """Return the diffusers transformer `name` with doubled matrices: with the initial ones, text hardly matters.

    Gates that start at zero, like Kandinsky's, let nothing through, and are initialised like the rest.
    """
    import diffusers

    def make() -> torch.nn.Module:
        model: torch.nn.Module = getattr(diffusers, name)(**config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    if not module.weight.any():
                        module.reset_parameters()
                    module.weight.mul_(2)
            for path, parameter in model.named_parameters():
                if path.endswith("pad_token"):  # Z-Image's are uninitialised
                    parameter.normal_()
        return model

    return seeded(make)


def flow() -> Any:
    """Return the scheduler of the families trained by flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()
