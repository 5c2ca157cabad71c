from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.erasers import Attachments, Eraser, eraser_folders, load_erasers
from excise.errors import ExciseError


def states(pipe: Any, prompt: str = "a gun on grass") -> Any:
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, True)[0]


def further(eraser: Eraser, name: str = "second", lam: float = 3.0) -> Eraser:
    """Another eraser for the same pipeline: the same neuron, turned down further."""
    return replace(eraser, name=name, edits=(replace(eraser.edits[0], lam=lam),))


@pytest.fixture
def erasers(gun_eraser: Eraser, tmp_path: Path) -> Path:
    """A folder of two erasers, as `excise erase gun,knife --out erasers` makes it, and a training that goes on."""
    gun_eraser.save(tmp_path / "erasers" / "gun-snce")
    further(gun_eraser).save(tmp_path / "erasers" / "knife-snce")
    (tmp_path / "erasers" / "cat-esd.training").mkdir()
    (tmp_path / "erasers" / "cat-esd.training" / "checkpoint.safetensors").write_bytes(b"")
    return tmp_path / "erasers"


def test_a_folder_of_erasers_is_loaded_whole(tiny_pipe: Any, gun_eraser: Eraser, erasers: Path) -> None:
    plain = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), further(gun_eraser).attach(tiny_pipe):
        both = states(tiny_pipe)
    attached = excise.load_eraser(tiny_pipe, erasers)
    assert isinstance(attached, Attachments)
    assert excise.get_active_erasers(tiny_pipe) == ["gun-test", "second"] == list(attached.status())
    assert torch.equal(states(tiny_pipe), both)
    attached.strength = 0.5
    assert attached.strength == (0.5, 0.5)
    attached.enabled = False
    assert not attached.enabled
    assert torch.equal(states(tiny_pipe), plain)
    attached.detach()
    assert excise.list_erasers(tiny_pipe) == {}
    with excise.load_eraser(tiny_pipe, erasers):
        assert torch.equal(states(tiny_pipe), both)
    assert torch.equal(states(tiny_pipe), plain)


def test_all_are_attached_or_none(tiny_pipe: Any, gun_eraser: Eraser, erasers: Path) -> None:
    before = states(tiny_pipe)
    mute = replace(gun_eraser, name="mute", canary=("a cat",), canary_shift=0.5)
    mute.save(erasers / "zebra")
    with pytest.raises(excise.EraserDidNotFire):
        excise.load_eraser(tiny_pipe, erasers)
    assert excise.list_erasers(tiny_pipe) == {}
    assert torch.equal(states(tiny_pipe), before)


def test_a_damaged_eraser_in_the_folder_is_never_passed_over(tiny_pipe: Any, erasers: Path) -> None:
    (erasers / "knife-snce" / "manifest.json").unlink()
    with pytest.raises(ExciseError, match=r"knife-snce is not a complete eraser: manifest\.json"):
        excise.load_eraser(tiny_pipe, erasers)
    assert excise.list_erasers(tiny_pipe) == {}


def test_names_are_the_folders_where_erasers_share_theirs(gun_eraser: Eraser, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "a" / "gun-snce")
    further(gun_eraser, gun_eraser.name).save(tmp_path / "a" / "gun-uce")
    further(gun_eraser, "knife", 2.5).save(tmp_path / "b")
    assert list(load_erasers([tmp_path / "a", tmp_path / "b"])) == ["gun-snce", "gun-uce", "knife"]
    further(gun_eraser, gun_eraser.name, 2.0).save(tmp_path / "c" / "gun-uce")
    names = list(load_erasers([tmp_path / "a", tmp_path / "c"]))
    assert names == ["gun-snce", str(tmp_path / "a" / "gun-uce"), str(tmp_path / "c" / "gun-uce")]
    with pytest.raises(ExciseError, match="are the same eraser"):
        load_erasers([tmp_path / "a" / "gun-uce", tmp_path / "a"])


def test_a_name_is_for_one_eraser(tiny_pipe: Any, erasers: Path) -> None:
    with pytest.raises(ExciseError, match="holds 2 erasers, which keep their own names"):
        excise.load_eraser(tiny_pipe, erasers, name="gun")
    only = erasers / "gun-snce"
    assert eraser_folders(only) == [only]
    assert eraser_folders(erasers / "nowhere") == [erasers / "nowhere"]
    with excise.load_eraser(tiny_pipe, only, name="gun"):
        assert excise.get_active_erasers(tiny_pipe) == ["gun"]
