"""Parts of the pipelines that read a language model."""

from __future__ import annotations

from typing import Any

from tests.tiny import denoisers, encoders, words
from tests.tiny.denoisers import flow


def _flux2(encoder: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "vae": denoisers.flux2_kl(),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "Flux2Transformer2DModel",
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ),
        "scheduler": flow(),
    }


def flux2() -> dict[str, Any]:
    # The pipeline reads hidden states 10, 20 and 30; like the real model, this one has more layers.
    processor = words.mistral_processor()
    return _flux2(encoders.mistral3(16, len(processor.tokenizer), layers=32), processor)


def flux2_klein() -> dict[str, Any]:
    # Hidden states 9, 18 and 27.
    tokenizer = words.qwen()
    return _flux2(encoders.qwen3(16, len(tokenizer), layers=29, head=True), tokenizer)


def sana() -> dict[str, Any]:
    tokenizer = words.gemma()
    return {
        "vae": denoisers.deep_compression(),
        "text_encoder": encoders.gemma2(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "SanaTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
        ),
        "scheduler": flow(),
    }


def lumina2() -> dict[str, Any]:
    tokenizer = words.gemma()
    return {
        "vae": denoisers.kl(4, 4),
        "text_encoder": encoders.gemma2(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "Lumina2Transformer2DModel",
            sample_size=4,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 16, 16),
            cap_feat_dim=32,
        ),
        "scheduler": flow(),
    }


def qwen_image() -> dict[str, Any]:
    tokenizer = words.qwen()
    return {
        "vae": denoisers.video("AutoencoderKLQwenImage", 4),
        "text_encoder": encoders.qwen2_5_vl(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "QwenImageTransformer2DModel",
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
        ),
        "scheduler": flow(),
    }


def z_image() -> dict[str, Any]:
    tokenizer = words.qwen()
    return {
        "vae": denoisers.kl(4, 2),
        "text_encoder": encoders.qwen3(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": denoisers.transformer(
            "ZImageTransformer2DModel",
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        ),
        "scheduler": flow(),
    }


def kandinsky5() -> dict[str, Any]:
    processor = words.qwen_processor()
    return {
        "vae": denoisers.kl(4, 4),
        "text_encoder": encoders.qwen2_5_vl(32, len(processor.tokenizer)),
        "tokenizer": processor,
        "text_encoder_2": encoders.clip(48),
        "tokenizer_2": words.clip(),
        "transformer": denoisers.transformer(
            "Kandinsky5Transformer3DModel",
            in_text_dim=32,
            in_text_dim2=48,
            time_dim=16,
            model_dim=24,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 4, 4),
        ),
        "scheduler": flow(),
    }


def hunyuan_image() -> dict[str, Any]:
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    tokenizer, glyphs = words.qwen(), words.byt5()
    return {
        "vae": denoisers.hunyuan(),
        "text_encoder": encoders.qwen2_5_vl(32, len(tokenizer)),
        "tokenizer": tokenizer,
        "text_encoder_2": encoders.t5(48, len(glyphs)),
        "tokenizer_2": glyphs,
        "transformer": denoisers.transformer(
            "HunyuanImageTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=32,
            text_embed_2_dim=48,
            rope_axes_dim=(4, 4),
        ),
        "scheduler": flow(),
        "guider": AdaptiveProjectedMixGuidance(),
        "ocr_guider": AdaptiveProjectedMixGuidance(),
    }
