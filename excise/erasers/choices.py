"""Choices shared by the edits of an eraser and the settings of the methods that make them."""

from __future__ import annotations

import re
from typing import Final, Literal

Uncond = Literal["none", "same", "flip"]
Gate = Literal["whole", "threshold", "relu", "topk"]
Source = Literal["prompt", "concept"]
Align = Literal["position", "pooled"]
BlockGate = Literal["whole", "threshold", "topk"]
BlockChange = Literal["scale", "replace"]
Steps = Literal["exact", "nearest"]
REPLACEMENT: Final = re.compile(r"(?=.{1,60}$)\w+(?:[ '-]\w+)*")
"""What may take a concept's place: a file's text is printed and put on cards."""
REPLACEMENTS: Final = "a word or a short phrase, such as apple, or nothing"
