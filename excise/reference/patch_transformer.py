"""The second judge's network: a transformer over patches, unlike the first judge's convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES

PATCH, WIDTH, DEPTH, HEADS = 8, 96, 4, 4
SIDE = 64
"""Side of the pictures, in pixels."""


class PatchTransformer(nn.Module):
    """A transformer over 64 patches of 8x8 pixels, with the outputs of `excise.reference.classifier.Classifier`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.objects = nn.Linear(2 * WIDTH, len(OBJECTS))
        self.nothing = nn.Linear(2 * WIDTH, 1)
        self.style = nn.Linear(2 * WIDTH, len(STYLES))
        self.background = nn.Linear(2 * WIDTH, len(BACKGROUNDS))
        self.register_buffer("thresholds", torch.full((len(OBJECTS),), 0.5))
        self.thresholds: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map images `[N, 3, 64, 64]` in [-1, 1] to logits and features.

        Returns:
            Logits of objects `[N, 40]`, nothing `[N]`, style `[N, 8]` and background `[N, 8]`, and features `[N, 192]`:
            the patches' largest and mean states.
        """
        pieces = nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
        states = self.body(self.patches(pieces) + self.places)
        both = torch.cat([states.amax(1), states.mean(1)], 1)
        return self.objects(both), self.nothing(both)[:, 0], self.style(both), self.background(both), both
