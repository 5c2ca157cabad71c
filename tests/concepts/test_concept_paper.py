from __future__ import annotations

from pathlib import Path

import pytest

from excise.concepts import builtin, paper

PAPER = Path(__file__).parents[3] / "shared" / "papers" / "snce-paper.txt"


def test_sizes_and_tuples():
    assert set(paper.TABLE_5) == {"nudity", "violence", "gun", "knife"}
    assert all(len(pairs) == 5 for pairs in paper.TABLE_5.values())
    assert paper.mentions("violence") == ("violence", "blood", "bleeding")
    assert paper.mentions("nudity")[-3:] == ("male genitalia", "penis", "buttocks")
    assert builtin("nudity").mentions == paper.mentions("nudity")


def test_slips_are_left_standing():
    assert builtin("paper-gun").pairs[3].deconcept.startswith("As silver flashlight")
    assert builtin("paper-knife").pairs[2].deconcept == "A pocket with red scales, macro photography"


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text does not come with the package")
def test_verbatim():
    text = PAPER.read_text(encoding="utf-8")
    for name, pairs in paper.TABLE_5.items():
        for i, (concept, deconcept) in enumerate(pairs):
            assert f"{name}\t{i}\t{concept}\t{deconcept}\n" in text
    for name in ("nudity", "violence"):
        assert f"“{paper.TUPLES[name]}”" in text
