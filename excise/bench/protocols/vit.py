"""UnlearnCanvas's classifiers: two ViT-L/16, one for the 51 styles and one for the 20 objects, from their checkpoints.

Parameters are named as in timm's `vit_large_patch16_224.augreg_in21k` (Dosovitskiy et al. 2021), so that the published
checkpoints load unchanged and without timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from excise.bench.pictures import Pixels
from excise.errors import ExciseError, reason
from excise.pickled import read_checkpoint

SIDE, PATCH = 224, 16


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map states `[N, T, d]` to states `[N, T, d]`."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))
        return mixed


class Block(nn.Module):
    """Transformer block: attention and MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Map states `[N, T, d]` to states `[N, T, d]`."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out


class ViT(nn.Module):
    """Vision transformer, ViT-L/16 by default.

    Maps pictures `[N, 3, side, side]`, normalised to [-1, 1], to logits `[N, classes]`.
    """

    def __init__(
        self, classes: int, width: int = 1024, depth: int = 24, heads: int = 16, side: int = SIDE, patch: int = PATCH
    ) -> None:
        super().__init__()
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def load_vit(path: Path | str, classes: int, **shape: Any) -> ViT:
    """Load a classifier from a checkpoint (`model_state_dict` in a `.pth`, or the tensors alone), without pickle.

    Raises ExciseError if the file is missing, holds anything but tensors, or fits another network.
    """
    model = ViT(classes, **shape)
    try:
        tensors = read_checkpoint(Path(path), "model_state_dict")
        if (head := tensors.get("head.weight")) is not None and len(head) != classes:
            others = {51: "--style-classifier, of styles", 20: "--object-classifier, of objects"}
            hint = f"; it is the one for {others[len(head)]}" if len(head) in others else ""
            raise ValueError(f"it has {len(head)} classes{hint}")
        model.load_state_dict(tensors)
    except Exception as error:  # for bytes that are not a checkpoint, torch raises all sorts of exceptions
        raise ExciseError(
            f"{path} is not UnlearnCanvas's classifier of {classes} classes ({reason(error)}); name its checkpoint"
        ) from error
    return model.eval()


@torch.no_grad()
def classify(model: ViT, pictures: Sequence[Pixels]) -> list[tuple[int, float]]:
    """Return the most probable class of each picture `[height, width, 3]`, and its softmax probability.

    Pictures are resized to the network's side (bilinear).
    """
    made = []
    for picture in pictures:
        image = Image.fromarray(picture).resize((model.side, model.side), Image.Resampling.BILINEAR)
        made.append(torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1))
    batch = torch.stack(made).permute(0, 3, 1, 2).to(model.head.weight)
    sure, likeliest = model(batch).softmax(1).max(1)
    return [(int(index), float(share)) for index, share in zip(likeliest, sure, strict=True)]
