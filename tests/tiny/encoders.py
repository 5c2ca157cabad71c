"""Text encoders of real classes with random weights: a few narrow layers, more if a pipeline reads deeper ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.tiny.words import FOUR


def seeded(make: Callable[[], nn.Module]) -> Any:
    """Return `make()` in evaluation mode, with the same weights whatever was built before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def telling(make: Callable[[], nn.Module]) -> Any:
    """Return a text encoder whose states differ between prompts, for which its own initialisation is too small."""

    def made() -> Any:
        encoder: Any = make()
        with torch.no_grad():
            for module in encoder.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(std=module.in_features**-0.5)
            encoder.get_input_embeddings().weight.normal_()
        return encoder

    return seeded(made)


def body(encoder: Any) -> Any:
    """Return the module with a CLIP's embeddings, layers and norm; in transformers < 5.6 it is one level deeper."""
    return getattr(encoder, "text_model", encoder)


def clip(width: int, projection: int | None = None) -> Any:
    """Return a CLIPTextModel, or with `projection` a CLIPTextModelWithProjection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=projection or width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return telling(lambda: (CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def t5(width: int, vocabulary: int, layers: int = 3) -> Any:
    from transformers import T5Config, T5EncoderModel

    return telling(lambda: T5EncoderModel(T5Config(**_t5(width, vocabulary, layers))))


def umt5(width: int, vocabulary: int, layers: int = 3) -> Any:
    """Return a T5 with a relative attention bias in every layer."""
    from transformers import UMT5Config, UMT5EncoderModel

    return telling(lambda: UMT5EncoderModel(UMT5Config(**_t5(width, vocabulary, layers))))


def _t5(width: int, vocabulary: int, layers: int) -> dict[str, Any]:
    shape = {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": layers, "num_heads": 2}
    return {**shape, "vocab_size": vocabulary, "feed_forward_proj": "gated-gelu"}


def gemma2(width: int, vocabulary: int, layers: int = 4) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**_decoder(width, vocabulary, layers), query_pre_attn_scalar=width // 2)
    return telling(lambda: Gemma2Model(config))


def qwen3(width: int, vocabulary: int, layers: int = 4, head: bool = False) -> Any:
    """Return a Qwen3Model (Z-Image), or with `head` a Qwen3ForCausalLM (FLUX.2 Klein)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**_decoder(width, vocabulary, layers))
    return telling(lambda: (Qwen3ForCausalLM if head else Qwen3Model)(config))


def qwen2_5_vl(width: int, vocabulary: int, layers: int = 4) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    eighth = width // 32
    text = _decoder(width, vocabulary, layers, head_dim=False)
    sections = {"rope_type": "default", "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth]}
    if FOUR:
        text |= {"rope_scaling": sections, "rope_theta": 1e6}
    else:
        text["rope_parameters"] = {**sections, "rope_theta": 1e6}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    tokens = {"vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 5, "video_token_id": 6}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return telling(lambda: Qwen2_5_VLForConditionalGeneration(config))


def mistral3(width: int, vocabulary: int, layers: int) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {"model_type": "mistral", **_decoder(width, vocabulary, layers)}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "pixtral", **shape, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=8)
    return telling(lambda: Mistral3ForConditionalGeneration(config))


def _decoder(width: int, vocabulary: int, layers: int, head_dim: bool = True) -> dict[str, Any]:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return {**shape, "head_dim": width // 2} if head_dim else shape
