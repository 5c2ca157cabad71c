"""The tree of errors: each is raised where a user expects it, and documented in one place."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise import errors
from excise.erasers import Eraser, Signer

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_every_error_is_exported_and_named_in_the_tree() -> None:
    assert len(TREE) == 9
    for kind in TREE:
        assert issubclass(kind, excise.ExciseError)
        assert getattr(excise, kind.__name__) is kind
        assert f" {kind.__name__} " in f"{errors.__doc__} ".replace("\n", " ")
        assert kind.__doc__


@pytest.fixture
def saved(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def test_another_pipeline_is_the_wrong_model(build_pipe: Callable[..., Any], saved: Path, word_sae: Any) -> None:
    with pytest.raises(excise.WrongModel, match="made for another pipeline"):
        excise.load_eraser(build_pipe(seed=1), saved)
    with pytest.raises(excise.WrongModel, match="is not a pipeline"):
        excise.load_eraser(saved, saved)  # type: ignore[arg-type]
    with pytest.raises(excise.WrongModel, match="reads vectors of width"):
        word_sae.encode(torch.zeros(2, 3))


def test_altered_files_are_tampered_with(tiny_pipe: Any, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(excise.Tampered, match="is not signed"):
        excise.load_eraser(tiny_pipe, saved, signed_by=Signer(public_key=tmp_path / "key.pem"))
    text = (saved / "eraser.json").read_text()
    (saved / "eraser.json").write_text(text.replace('"gun-test"', '"GUN-test"'))
    with pytest.raises(excise.Tampered, match="altered or cut short"):
        excise.load_eraser(tiny_pipe, saved)
    (saved / "eraser.json").unlink()
    with pytest.raises(excise.Tampered, match="not a complete eraser"):
        excise.load_eraser(tiny_pipe, saved)


def test_what_is_not_there_is_not_found(tiny_pipe: Any, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[Callable[[], Any]] = [
        lambda: excise.load_eraser(tiny_pipe, tmp_path / "empty"),
        lambda: excise.load_eraser(tiny_pipe, tmp_path, subfolder="missing"),
        lambda: excise.unload_eraser(tiny_pipe, "gun"),
        lambda: excise.delete_erasers(tiny_pipe, ["gun"]),
        lambda: excise.set_erasers(tiny_pipe, "gun"),
        lambda: excise.method_config("nce"),
        lambda: excise.erase(tiny_pipe, "gun", sae=tmp_path / "empty"),
        lambda: excise.TopKSAE.from_pretrained(tmp_path / "empty"),
        lambda: __import__("excise.concepts").concepts.builtin("gnu"),
        lambda: excise.train_sae(tiny_pipe, ["a gun"], site="encoder.layers.99"),
    ]
    for case in cases:
        with pytest.raises(excise.NotFound):
            case()


def test_impossible_settings(tiny_pipe: Any, saved: Path) -> None:
    cases: list[Callable[[], Any]] = [
        lambda: excise.load_eraser(tiny_pipe, saved, strength="high"),  # type: ignore[arg-type]
        lambda: excise.load_eraser(tiny_pipe, saved, strength=-1.0),
        lambda: excise.load_eraser(tiny_pipe, saved, strength=float("inf")),
        lambda: excise.load_eraser(tiny_pipe, saved, on_bypass="ignore"),  # type: ignore[arg-type]
        lambda: excise.load_eraser(tiny_pipe, saved, name=5),  # type: ignore[arg-type]
        lambda: excise.load_eraser(tiny_pipe, saved, name=""),
        lambda: excise.load_eraser(tiny_pipe, 5),  # type: ignore[arg-type]
        lambda: excise.load_eraser(tiny_pipe, saved, revision="main"),
        lambda: excise.load_eraser(tiny_pipe, saved, subfolder="../gun"),
        lambda: excise.load_eraser(tiny_pipe, saved, require_signature=True),
        lambda: excise.set_erasers(tiny_pipe, 5),  # type: ignore[arg-type]
        lambda: excise.set_erasers(tiny_pipe, [], "high"),  # type: ignore[arg-type]
        lambda: excise.delete_erasers(tiny_pipe, [5]),  # type: ignore[list-item]
        lambda: Signer(),
    ]
    for case in cases:
        with pytest.raises(excise.InvalidSetting) as caught:
            case()
        assert "\n" not in str(caught.value)
    assert excise.list_erasers(tiny_pipe) == {}


def test_a_missing_package_is_named_with_how_to_install_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(excise.MissingExtra, match=r"pip install 'excise\[sign\]'"):
        excise.sign(saved, tmp_path / "key.pem")


def test_an_eraser_that_changes_nothing_did_not_fire(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    still = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=0.0),))
    with pytest.raises(excise.EraserDidNotFire, match="did not change what the denoiser reads"):
        still.attach(tiny_pipe)


@pytest.mark.parametrize("sign", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_quoted_text_splits_a_message(sign: str) -> None:
    message = str(errors.NotFound(f"no column 'prompt'; the columns are a{sign}  error: forged"))
    assert message.splitlines() == [message]
    assert message == "no column 'prompt'; the columns are a error: forged"


@pytest.mark.parametrize("sign", ["\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\u2066", "\ud83d"])
def test_a_message_holds_nothing_that_a_terminal_obeys_or_a_stream_cannot_encode(sign: str) -> None:
    assert str(errors.Tampered(f"a{sign}b")) == "a\ufffdb"


def test_a_long_message_keeps_its_begin_and_its_end() -> None:
    message = str(errors.ExciseError(f"columns are {'x' * 10**6}; choose one"))
    assert len(message) < errors.LONGEST + 5
    assert message.startswith("columns are x")
    assert message.endswith("x; choose one")
    assert str(errors.ExciseError("x" * errors.LONGEST)) == "x" * errors.LONGEST


def test_an_untrusted_value_is_shown_short_and_escaped() -> None:
    assert errors.shown("a\x1b\n") == r"'a\x1b\n'"
    assert len(errors.shown("x" * 10**6)) <= 60
    assert len(errors.shown([["x" * 100] * 100] * 100)) < 3000
    assert errors.shown(3) == "3"
