"""No byte of a saved eraser can change unnoticed: every one of both jsons, 2,000 of the tensors'."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from excise.erasers import Eraser, SAEEdit, verify
from excise.erasers.artefact.files import FILES
from excise.errors import ExciseError
from excise.sites import Site

FLIP, SAMPLE = 0x2A, 2000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    k, d = 2, 400
    shapes = ((k, d), (k,), (d,), (k, d), (k,), (k,))
    edit = SAEEdit(Site("text_encoder", "encoder.layers.2", d), torch.tensor([3, 11]), *map(torch.randn, shapes))
    Eraser((edit,), "Waffe – 銃", "gun", ("gun",), canary=("a gun",), measured={"auroc": 0.99}).save(tmp_path / "gun")
    return tmp_path / "gun"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_fails_load_and_verify(saved: Path, name: str) -> None:
    path = saved / name
    original = path.read_bytes()
    places = list(range(len(original)))
    if name.endswith(".safetensors") and len(places) > SAMPLE:
        header = 8 + int.from_bytes(original[:8], "little")
        places = sorted({*range(header), *random.Random(0).sample(places, SAMPLE)})
        assert len(places) >= SAMPLE
    for place in places:
        altered = bytearray(original)
        altered[place] ^= FLIP
        path.write_bytes(altered)
        with pytest.raises(ExciseError):
            Eraser.load(saved)
        assert not all(check.passed for check in verify(saved)), place
    path.write_bytes(original)
    assert all(check.passed for check in verify(saved))
