"""Choices shared by the edits of an eraser and the settings of the methods that make them."""

from __future__ import annotations

from typing import Literal

Uncond = Literal["none", "same", "flip"]
Gate = Literal["whole", "threshold", "relu", "topk"]
Source = Literal["prompt", "concept"]
Align = Literal["position", "pooled"]
BlockGate = Literal["whole", "threshold", "topk"]
BlockChange = Literal["scale", "replace"]
Steps = Literal["exact", "nearest"]
