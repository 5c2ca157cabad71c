"""Pins: which eraser of a signer is loaded, attached or verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import excise
from excise.erasers import Eraser, load_erasers, verify
from excise.erasers.artefact.checks import check_files
from excise.errors import ExciseError, InvalidSetting, Tampered


@pytest.fixture
def folder(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def test_the_pinned_eraser_is_attached_and_no_other(gun_eraser: Eraser, folder: Path, tiny_pipe: Any) -> None:
    """All of the folder was exchanged for another eraser, whose manifest is as valid."""
    pins = {"digest": gun_eraser.digest, "concept": "Gun"}
    with excise.load_eraser(tiny_pipe, folder, **pins):
        pass
    assert Eraser.from_pretrained(folder, **pins).digest == gun_eraser.digest
    replace(gun_eraser, name="other", concept="pistol").save(folder)
    for given, message in (
        ({"digest": gun_eraser.digest}, "its digest is"),
        ({"digest": gun_eraser.digest.upper()}, "its digest is"),
        ({"concept": "gun"}, "it erases 'pistol', not 'gun'"),
    ):
        for load in (
            Eraser.load,
            Eraser.from_pretrained,
            lambda path, **pin: excise.load_eraser(tiny_pipe, path, **pin),
        ):
            with pytest.raises(Tampered, match=message) as refused:
                load(folder, **given)  # type: ignore[operator]
            assert "\n" not in str(refused.value)
        for checks in (verify(folder, **given), check_files(folder, **given)):
            assert [check.name for check in checks if not check.passed] == ["pins"]
    assert excise.list_erasers(tiny_pipe) == {}


def test_a_digest_is_given_whole(gun_eraser: Eraser, folder: Path) -> None:
    for digest in (gun_eraser.digest[:12], "", "gun"):
        with pytest.raises(InvalidSetting, match="all 64"):
            Eraser.load(folder, digest=digest)


def test_several_erasers_have_no_one_digest(gun_eraser: Eraser, tiny_pipe: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        replace(gun_eraser, name=name).save(tmp_path / "all" / name)
    for pin in ({"digest": gun_eraser.digest}, {"concept": "gun"}):
        with pytest.raises(InvalidSetting, match="pin one of them"):
            excise.load_eraser(tiny_pipe, tmp_path / "all", **pin)


def test_a_file_without_a_concept_is_refused(folder: Path) -> None:
    from excise.erasers.artefact.pins import check_pins

    for text in (b"[]", b"{}", b"nonsense", b'{"concept": 3}'):
        with pytest.raises(ExciseError):
            check_pins(folder, {"eraser.json": text}, concept="gun")


def test_several_erasers_are_pinned_in_their_order_or_by_name(gun_eraser: Eraser, tmp_path: Path) -> None:
    erasers = {name: replace(gun_eraser, name=name) for name in ("a", "b", "c")}
    for name, eraser in erasers.items():
        eraser.save(tmp_path / ("all" if name != "c" else "one") / name)
    places = [tmp_path / "all", tmp_path / "one" / "c"]
    whole = [eraser.digest for eraser in erasers.values()]
    for good in (whole, [f"c={whole[2]}"], [f"{places[1]}={whole[2].upper()}", f"a={whole[0]}"], []):
        assert list(load_erasers(places, digests=good)) == ["a", "b", "c"]
    for swapped in (whole[::-1], [f"b={whole[0]}"]):
        with pytest.raises(Tampered, match="another eraser than the one pinned"):
            load_erasers(places, digests=swapped)
    for bad, message in (
        (whole[:2], "3 erasers but 2 digests"),
        ([f"d={whole[0]}"], "'d' is the name of 0 of the erasers' folders"),
        ([f"a={whole[0]}"] * 2, "'a' is pinned twice"),
        ([f"a={whole[0]}", whole[1]], "'' is the name of 0"),
        ([f"a={whole[0][:60]}"], "all 64"),
    ):
        with pytest.raises(InvalidSetting, match=message):
            load_erasers(places, digests=bad)
