"""Parts of the pipelines that read CLIP or T5."""

from __future__ import annotations

from typing import Any

from tests.tiny import denoisers, encoders, words
from tests.tiny.denoisers import flow


def stable_diffusion(width: int, prediction: str) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    return {
        "vae": denoisers.kl(4, 2),
        "text_encoder": encoders.clip(width),
        "tokenizer": words.clip(),
        "unet": denoisers.unet(width),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type=prediction),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sdxl() -> dict[str, Any]:
    from diffusers import EulerDiscreteScheduler

    return {
        "vae": denoisers.kl(4, 2),
        "text_encoder": encoders.clip(32),
        "text_encoder_2": encoders.clip(48, projection=24),
        "tokenizer": words.clip(),
        "tokenizer_2": words.clip(),
        "unet": denoisers.unet(32 + 48, pooled=24),
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
        "add_watermarker": False,
    }


def sd3() -> dict[str, Any]:
    tokenizer = words.t5()
    return {
        "vae": denoisers.kl(4, 2),
        "text_encoder": encoders.clip(16, projection=16),
        "text_encoder_2": encoders.clip(32, projection=24),
        "text_encoder_3": encoders.t5(64, len(tokenizer)),
        "tokenizer": words.clip(),
        "tokenizer_2": words.clip(),
        "tokenizer_3": tokenizer,
        "transformer": denoisers.transformer(
            "SD3Transformer2DModel",
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=64,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=8,
        ),
        "scheduler": flow(),
    }


def flux() -> dict[str, Any]:
    tokenizer = words.t5()
    return {
        "vae": denoisers.kl(1),
        "text_encoder": encoders.clip(32),
        "text_encoder_2": encoders.t5(48, len(tokenizer)),
        "tokenizer": words.clip(),
        "tokenizer_2": tokenizer,
        "transformer": denoisers.transformer(
            "FluxTransformer2DModel",
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": flow(),
    }


def pixart() -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler

    tokenizer = words.t5()
    return {
        "vae": denoisers.kl(4, 2),
        "text_encoder": encoders.t5(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "PixArtTransformer2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=32,
            use_additional_conditions=False,
        ),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def wan() -> dict[str, Any]:
    tokenizer = words.t5()
    return {
        "vae": denoisers.video("AutoencoderKLWan", 4),
        "text_encoder": encoders.umt5(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "WanTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ),
        "scheduler": flow(),
    }
