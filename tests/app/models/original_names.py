"""A pipeline's weights under the names of Stable Diffusion's original checkpoints, as other programs write them."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
ATTENTION = ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("group_norm", "norm")


def checkpoint(pipe: Any) -> dict[str, Tensor]:
    """Return the weights of a Stable Diffusion 1 pipeline by their original names."""
    found = {f"model.diffusion_model.{_unet(pipe, name)}": t for name, t in pipe.unet.state_dict().items()}
    for name, tensor in pipe.vae.state_dict().items():
        original = _vae(pipe, name)
        pixelwise = ".attn_1." in original and original.endswith("weight") and tensor.ndim == 2
        found[f"first_stage_model.{original}"] = tensor[:, :, None, None] if pixelwise else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _replaced(name: str, pairs: Any) -> str:
    for ours, theirs in pairs:
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _unet(pipe: Any, name: str) -> str:
    per = pipe.unet.config.layers_per_block + 1
    for ours, theirs in (
        ("conv_in.", "input_blocks.0.0."), ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    side, *where = re.fullmatch(r"(down|up|mid)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
    block, part, n, rest = int(where[0] or 0), where[1], int(where[2]), f".{where[3]}"
    if part == "resnets":
        rest = _replaced(rest, RESNET)
    if side == "mid":
        return f"middle_block.{2 * n if part == 'resnets' else 1}{rest}"
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * per}.0{rest.replace('.conv.', '.op.')}"
    if part == "upsamplers":
        attends = hasattr(pipe.unet.up_blocks[block], "attentions")
        return f"output_blocks.{block * per + per - 1}.{2 if attends else 1}{rest}"
    at = block * per + n
    place = f"input_blocks.{at + 1}" if side == "down" else f"output_blocks.{at}"
    return f"{place}.{0 if part == 'resnets' else 1}{rest}"


def _vae(pipe: Any, name: str) -> str:
    last = len(pipe.vae.config.block_out_channels) - 1
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    if "mid_block.attentions.0." in name:
        name = _replaced(name.replace("mid_block.attentions.0.", "mid.attn_1."), ATTENTION)
    return name.replace("conv_norm_out.", "norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
