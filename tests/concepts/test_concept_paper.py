from __future__ import annotations

import hashlib

from excise.concepts import builtin, paper


def test_sizes_and_tuples():
    assert set(paper.TABLE_5) == {"nudity", "violence", "gun", "knife"}
    assert all(len(pairs) == 5 for pairs in paper.TABLE_5.values())
    assert paper.mentions("violence") == ("violence", "blood", "bleeding")
    assert paper.mentions("nudity")[-3:] == ("male genitalia", "penis", "buttocks")
    assert builtin("nudity").mentions == paper.mentions("nudity")


def test_slips_are_left_standing():
    assert builtin("paper-gun").pairs[3].deconcept.startswith("As silver flashlight")
    assert builtin("paper-knife").pairs[2].deconcept == "A pocket with red scales, macro photography"


def test_verbatim():
    """The digest is of the paper's own text: the rows of its Table 5 and both concept tuples, read from the paper."""
    rows = [
        f"{name}\t{i}\t{concept}\t{deconcept}\n"
        for name, pairs in paper.TABLE_5.items()
        for i, (concept, deconcept) in enumerate(pairs)
    ]
    tuples = [f"“{paper.TUPLES[name]}”\n" for name in ("nudity", "violence")]
    assert hashlib.sha256("".join([*rows, *tuples]).encode()).hexdigest() == (
        "1df4460f19be4edf600832230e14a3bf20830cdba04120c7d1dec656d37fb2f4"
    )
