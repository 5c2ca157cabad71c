"""What the denoisers of all families of `excise.sites.families` read, and the least that a step of theirs computes.

Configurations are the published models'. Models are built on PyTorch's meta device, without weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]

NOT_OF_IMAGES = ("norm", "context", "add_", "_add", "mod", "txt", "text", "adaLN")
"""Parts of the names of layers that read text states or a timestep."""
CROSS = ("attn2.to_k", "attn2.to_v", "cross_attention.to_key", "cross_attention.to_value")
BLOCKS = ("blocks.", "layers.", "noise_refiner.")


@dataclass(frozen=True)
class Case:
    """One denoiser call of a family at its usual size."""

    model: str
    """Its class in diffusers."""
    states: dict[str, list[Shape]]
    """Shapes of its text states by argument. Several make a list."""
    batch: int
    tokens: int = 0
    """Patches of an image or video; 0 for a U-Net, whose operations are counted."""
    config: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Widths of the vectors that a state is concatenated from, if it is not a single one."""
    size: int = 64
    """Side of a U-Net's latents."""


_EHS, _POOLED, _POOLED_XL = "encoder_hidden_states", "pooled_projections", "text_embeds"
_UNET_XL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_UNET_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
CASES = {
    "SD 1.4": Case("UNet2DConditionModel", {_EHS: [(2, 77, 768)]}, 2, config={"cross_attention_dim": 768}),
    "SD 2.1, 768²": Case("UNet2DConditionModel", {_EHS: [(2, 77, 1024)]}, 2, config=_UNET_2, size=96),
    "SDXL": Case(
        "UNet2DConditionModel",
        {_EHS: [(2, 77, 2048)], _POOLED_XL: [(2, 1280)]},
        2,
        config=_UNET_XL,
        pieces={_EHS: (768, 1280)},
        size=128,
    ),
    "SD 3 medium": Case(
        "SD3Transformer2DModel", {_EHS: [(2, 333, 4096)], _POOLED: [(2, 2048)]}, 2, 4096, _SD3, {_POOLED: (768, 1280)}
    ),
    "FLUX.1": Case("FluxTransformer2DModel", {_EHS: [(1, 512, 4096)], _POOLED: [(1, 768)]}, 1, 4096),
    "FLUX.2": Case("Flux2Transformer2DModel", {_EHS: [(1, 512, 15360)]}, 1, 4096, pieces={_EHS: (5120,) * 3}),
    "FLUX.2 Klein 4B": Case(
        "Flux2Transformer2DModel", {_EHS: [(1, 512, 7680)]}, 1, 4096, _KLEIN, pieces={_EHS: (2560,) * 3}
    ),
    "Sana 1.6B": Case("SanaTransformer2DModel", {_EHS: [(2, 300, 2304)]}, 2, 1024),
    "Lumina 2": Case("Lumina2Transformer2DModel", {_EHS: [(1, 256, 2304)]}, 1, 4096, {"cap_feat_dim": 2304}),
    "Qwen-Image": Case("QwenImageTransformer2DModel", {_EHS: [(1, 1024, 3584)]}, 1, 4096),
    "Z-Image": Case("ZImageTransformer2DModel", {"cap_feats": [(512, 2560)] * 2}, 2, 4096),
    "PixArt": Case("PixArtTransformer2DModel", {_EHS: [(2, 300, 4096)]}, 2, 4096),
    "Kandinsky 5 Lite": Case("Kandinsky5Transformer3DModel", {_EHS: [(1, 512, 3584)], _POOLED: [(1, 768)]}, 1, 4096),
    "HunyuanImage 2.1": Case(
        "HunyuanImageTransformer2DModel", {_EHS: [(1, 1000, 3584)], f"{_EHS}_2": [(1, 128, 1472)]}, 1, 4096
    ),
    "Wan 2.1 14B, 81 frames": Case("WanTransformer3DModel", {_EHS: [(1, 512, 4096)]}, 1, 32_760),
}


def flops(case: Case) -> float:
    """Return the floating-point operations of one denoiser call.

    For a transformer it is less than the true number: twice the weights of the linear layers that read the patches,
    times the patches. Attention, convolutions and the text states' own layers are left out.
    """
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, case.model)(**case.config)
        if case.tokens:
            return 2.0 * case.batch * case.tokens * sum(layer.weight.numel() for layer in _of_images(model))
        latents = torch.empty(case.batch, 4, case.size, case.size)
        states = torch.empty(*case.states[_EHS][0])
        added = {"text_embeds": torch.empty(case.batch, 1280), "time_ids": torch.empty(case.batch, 6)}
        with FlopCounterMode(display=False) as counter:
            model(latents, torch.empty(case.batch), states, added_cond_kwargs=added)
    return float(counter.get_total_flops())


def _of_images(model: nn.Module) -> Iterator[nn.Linear]:
    for name, layer in model.named_modules():
        inside = any(part in name for part in BLOCKS)
        others = any(part in name for part in (*NOT_OF_IMAGES, *CROSS))
        if isinstance(layer, nn.Linear) and inside and not others:
            yield layer


def states_of(case: Case, device: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Return random text states by argument, and the vectors that encoders would have made of them."""
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {}
    made: list[Tensor] = []
    for name, shapes in case.states.items():
        tensors = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        given[name] = tensors[0] if len(tensors) == 1 else tensors
        widths = case.pieces.get(name, (shapes[0][-1],))
        made += [part for tensor in tensors for part in torch.split(tensor, list(widths), dim=-1)]
    return given, made
