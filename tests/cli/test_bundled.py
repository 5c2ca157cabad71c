"""The bundled model through the commands, as every combination of versions in `make matrix` must do it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from excise import reference
from excise.erasers import Eraser
from excise.erasers.guard.model_digest import encoder_digests, tokenizer_digest
from excise.reference.world import OBJECTS


def test_its_text_encoder_and_tokenizer_are_the_same_on_every_version() -> None:
    """Wrong weights draw scribble, and other token ids other pictures, neither with an error."""
    pipe = reference.load()
    assert encoder_digests(pipe.text_encoder)["float16"][0].startswith("5cce258a"), "weights"
    assert tokenizer_digest(pipe.tokenizer).startswith("91c5d9a0"), "token ids, odd text among it"


@pytest.mark.usefixtures("one_bundled_pipe")
def test_a_concept_is_found_erased_verified_and_gone(call: Callable[..., Any], tmp_path: Path) -> None:
    def ran(*words: Any) -> None:
        result = call(*words)
        assert result.exit_code == 0, result.output

    def drawn(eraser: Eraser | None) -> bool:
        with nullcontext() if eraser is None else eraser.attach(pipe):
            picture = reference.generate(pipe, ["a gun on grass"], [3], steps=12, batch_size=1)
        return bool(reference.judge()(picture).objects[0, OBJECTS.index("gun")])

    ran("find", "gun", "--n", 40)
    ran("erase", "gun", "--n", 40, "--out", tmp_path / "gun")
    ran("verify", tmp_path / "gun")
    made = ("--eraser", tmp_path / "gun", "--steps", 4, "--out", tmp_path / "gun.png")
    ran("generate", "--prompt", "a gun on grass", *made)
    assert (tmp_path / "gun.png").exists()
    pipe = reference.load()
    assert drawn(None)
    assert not drawn(Eraser.load(tmp_path / "gun"))


@pytest.mark.slow
def test_the_tutorials_words_make_an_eraser_that_passes_the_audit(call: Callable[..., Any], tmp_path: Path) -> None:
    """The tutorial's own commands on "gun, pistol, rifle"; then an audit finds no flag."""
    pairs, made, words = tmp_path / "firearms.csv", tmp_path / "eraser", "gun, pistol, rifle"
    page = Path(__file__, "../../../docs/tutorials/own-concept.md").resolve().read_text()
    assert f'excise erase firearms --mentions "{words}"' in page
    for command in (
        ("pairs", "make", "firearms", "--mentions", words, "--out", pairs),
        ("pairs", "check", pairs, "--mentions", words),
        ("erase", "firearms", "--mentions", words, "--pairs", pairs, "--out", made),
        ("verify", made),
        ("audit", made, "--out", tmp_path / "audit.html"),
    ):
        result = call(*command)
        assert result.exit_code == 0, result.output
    verdict = Eraser.load(made).verdict
    assert [(row["word"], row["caught"]) for row in verdict["mentions"]] == [(word, True) for word in words.split(", ")]
    assert verdict["weak"] == []
