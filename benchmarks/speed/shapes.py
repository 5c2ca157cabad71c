"""Models of published shapes with random weights, for timings that do not depend on the weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from excise import reference


def clip_l(device: str) -> Any:
    """Return a pipeline with Stable Diffusion 1.4's text encoder, random weights and a small U-Net."""
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
        )
    )
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=4,
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=2),
        text_encoder=encoder.eval(),
        tokenizer=reference.load().tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def sd14(device: str) -> Any:
    """Return a pipeline with Stable Diffusion 1.4's text encoder and U-Net with random weights."""
    pipe = clip_l(device)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().to(device)
    return pipe
