"""WordNet's files as they are read for the text encoder's corpus and for natural prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures.natural_prompts import wordnet
from excise.errors import ExciseError
from excise.reference.training import text_corpus

LICENCE = '  1 This software and database is being provided to you, "the LICENSEE".  \n'
LINES = {
    "noun": '00001740 03 n 02 entity 0 dark_horse(p) 1 001 ~ 00001930 n 0000 | that exists; "he saw the entity"\n',
    "verb": '00002000 29 v 01 breathe 0 000 01 + 02 00 | draw air; "I can breathe"; "go"; "The patient is respiring"\n',
    "adj": '00003000 00 a 01 able(p) 0 000 | having the means; "able to swim"\n',
    "adv": "00004000 02 r 01 barely 0 000 | only just\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a database of four synsets, which is found by default."""
    for part, line in LINES.items():
        (tmp_path / f"data.{part}").write_text(LICENCE + line)
    monkeypatch.setattr(text_corpus, "WORDNET", tmp_path)
    return tmp_path


def test_synsets_have_their_lemmas_definition_and_longer_examples(folder: Path) -> None:
    assert list(text_corpus.synsets()) == [
        ("03", ["entity", "dark horse"], "that exists", ["he saw the entity"]),
        ("29", ["breathe"], "draw air", ["I can breathe", "The patient is respiring"]),
        ("00", ["able"], "having the means", ["able to swim"]),
        ("02", ["barely"], "only just", []),
    ]


def test_natural_prompts_are_the_examples_in_the_order_of_the_files_names(folder: Path) -> None:
    wanted = ["able to swim", "he saw the entity", "I can breathe", "The patient is respiring"]
    assert wordnet() == wanted, "neither two letters nor the licence"


def test_a_missing_part_of_speech_is_one_line(folder: Path) -> None:
    (folder / "data.adv").unlink()
    with pytest.raises(ExciseError, match=r"^no data\.adv of WordNet in .*; install Debian's package wordnet-base$"):
        wordnet()
