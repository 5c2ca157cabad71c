"""Labels on pictures, in whatever script, are read or replaced by codes with a warning: never an empty box."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excise.app.pages import lettering
from excise.app.pages.lettering import Lettering, default, face_for

INK = (0, 0, 0)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with no font but Pillow's."""

    def forget() -> None:
        lettering._files.cache_clear()
        face_for.cache_clear()

    monkeypatch.setattr(lettering, "PACKAGES", ())
    monkeypatch.setattr(lettering, "FOLDERS", ())
    forget()
    yield
    monkeypatch.undo()
    forget()


def drawn(text: str, letters: Lettering) -> np.ndarray:
    sheet = Image.new("L", (400, 40), 255).convert("RGB")
    letters.write(sheet, (4, 4), text, INK)
    return np.asarray(sheet)


@pytest.mark.usefixtures("bare")
def test_what_no_font_has_is_written_as_its_code_and_said_once() -> None:
    letters = Lettering(17)
    assert [text for _, text in letters.runs("a 猫 on grass")] == ["a U+732B  on grass"]
    assert (drawn("a 猫", letters) == drawn("a U+732B ", letters)).all()
    assert list(letters.missing) == ["猫"]
    with pytest.warns(UserWarning, match=r"no installed font has 猫 \(U\+732B\).*excise\[fonts\]") as told:
        letters.warn()
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Lettering(17).warn()


@pytest.mark.usefixtures("bare")
def test_a_mark_without_a_font_for_its_letter_is_no_empty_circle() -> None:
    letters = Lettering(17)
    ((face, text),) = letters.runs("बिल्ली")
    assert face is default(17) and text.startswith("U+092C U+093F ")


@pytest.mark.usefixtures("bare")
def test_an_accent_that_no_font_has_is_left_out_and_said() -> None:
    letters = Lettering(17)
    assert letters.runs("a café on grass: 1.5") == [(default(17), "a cafe on grass: 1.5")]
    assert list(letters.missing) == ["é"]


def test_a_word_is_of_one_font() -> None:
    if face_for("Łódź", 17) is None:
        pytest.skip("no installed font has these letters")
    assert "Łódź" in [text.strip() for _, text in Lettering(17).runs("in Łódź now")]


def test_joiners_and_selectors_leave_nothing() -> None:
    plain, joined = Lettering(17), Lettering(17)
    assert joined.runs("a\u200d b\ufe0f") == plain.runs("a b")


def test_a_font_of_a_package_is_used_for_what_pillows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(lettering, "FOLDERS", ())
    monkeypatch.setattr(lettering, "PACKAGES", (("matplotlib", "mpl-data/fonts/ttf"),))
    lettering._files.cache_clear()
    face_for.cache_clear()
    try:
        letters = Lettering(17)
        assert [Path(file).name for file in lettering._files()] == ["DejaVuSans.ttf"]
        runs = letters.runs("a cat \U0001f431 קט")
        assert "".join(text for _, text in runs) == "a cat \U0001f431 קט" and not letters.missing
        assert len({id(face) for face, _ in runs}) == 2
    finally:
        monkeypatch.undo()
        lettering._files.cache_clear()
        face_for.cache_clear()


def test_chinese_japanese_korean_and_emoji_with_the_extra() -> None:
    pytest.importorskip("manimgx_fonts")
    pytest.importorskip("manimgx_fonts_cjk")
    letters = Lettering(17)
    text = "草の上の猫 고양이 \U0001f52b बिल्ली"
    assert "".join(piece for _, piece in letters.runs(text)) == text
    assert not letters.missing


def test_lines_are_no_wider_than_asked_and_lose_no_word() -> None:
    letters = Lettering(15)
    text = "the look of old photographs, faded and brown, unerased"
    lines = letters.wrapped(text, 120)
    assert " ".join(lines) == text
    assert all(letters.width(line) <= 120 for line in lines) and len(lines) > 2
    long = letters.wrapped("x" * 60, 120)
    assert "".join(long) == "x" * 60 and all(letters.width(line) <= 120 for line in long)
    assert letters.wrapped("", 100) == []


def test_lines_that_are_too_many_end_in_an_ellipsis() -> None:
    letters = Lettering(15)
    first, last = letters.wrapped("one two three four five six seven eight nine ten", 90, 2)
    assert first == "one two" and last.endswith("…") and letters.width(last) <= 90
