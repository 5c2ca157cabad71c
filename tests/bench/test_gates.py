from __future__ import annotations

import re
from pathlib import Path

import pytest

from excise.bench.canvas.sizes import PROMPTS, QUICK
from excise.bench.gates import Gate, parse
from excise.errors import ExciseError
from excise.statistics import share_over

FIGURES = {
    "asr": {"value": 0.04, "low": 0.01, "high": 0.09, "n": 16, "pictures": 128},
    "ira_ratio": {"value": 0.98, "low": 0.975, "high": 1.0, "n": 16, "pictures": 128},
    "frechet": {"value": 0.4, "low": None, "high": None, "n": 96},
    "asr.language": {"value": None, "low": 0.0, "high": 1.0, "n": 0},
}


def test_gates_are_read() -> None:
    gates = parse("asr<0.05, ira_ratio >= .98,ira_ratio>0.98")
    assert gates[0] == Gate("asr", "<", 0.05, "bound")
    assert [str(gate) for gate in gates] == ["asr<0.05", "ira_ratio>=0.98", "ira_ratio>0.98"]
    with pytest.raises(ExciseError, match="cannot be 'mean'; choose bound or point"):
        parse("asr<0.05", "mean")


@pytest.mark.parametrize(
    ("text", "on", "holds"),
    [
        ("asr<0.05", "point", True),
        ("asr<0.05", "bound", False),
        ("asr<0.09", "bound", False),
        ("asr<=0.09", "bound", True),
        ("ira_ratio>=0.98", "point", True),
        ("ira_ratio>=0.98", "bound", False),
        ("ira_ratio>=0.975", "bound", True),
        ("ira_ratio>0.975", "bound", False),
        ("frechet<0.5", "bound", True),
        ("frechet<0.4", "bound", False),
    ],
)
def test_a_gate_holds_by_the_worse_end_of_the_interval(text: str, on: str, holds: bool) -> None:
    assert parse(text, on)[0].holds(FIGURES) is holds


def test_what_is_missed_is_said_with_n() -> None:
    assert parse("asr<0.05")[0].missed(FIGURES) == (
        "asr<0.05 is missed: the value 0.04 passes, but the end of its 95 % interval, 0.09, does not "
        "(n 16 concepts, 128 pictures); measure more, or gate on the value with --gate-on point"
    )
    assert parse("frechet<0.3")[0].missed(FIGURES) == "frechet<0.3 is missed: the value is 0.4 (n 96)"


def test_a_bound_belongs_to_a_gate_that_says_or_equal() -> None:
    gates = [parse(f"asr{sign}0.04", "point")[0] for sign in ("<", "<=", ">", ">=")]
    assert [gate.holds(FIGURES) for gate in gates] == [False, True, False, True]


def test_what_was_not_measured_never_passes() -> None:
    for on in ("bound", "point"):
        assert not parse("asr.language<1", on)[0].holds(FIGURES)
        assert not parse("asr.language<=1", on)[0].holds(FIGURES)
    assert parse("asr.language<1")[0].missed(FIGURES) == "asr.language<1 is missed: the figure could not be measured"
    with pytest.raises(ExciseError, match="unknown figure 'ua' in a gate; choose one of asr, ira_ratio"):
        parse("ua>0.9")[0].holds(FIGURES)


@pytest.mark.parametrize("text", ["", "asr", "asr=0.1", "asr<", "<0.1", "asr<0.1,,ua>1", "asr<low", "asr<-1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExciseError, match="cannot read the gate"):
        parse(text)


def test_the_documents_gate_cannot_be_passed_at_quick_as_they_say() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "bench.md").read_text()
    (example,) = re.findall(r"excise bench report run --gate '(.+)'", text)
    perfect = share_over([[1.0] * PROMPTS["quick"] for _ in QUICK])
    assert (perfect.value, perfect.n, perfect.pictures) == (1, 2, 12)
    assert f"an interval that begins at {100 * perfect.low:.0f} %" in text
    figures = {name: perfect.to_json() for name in ("ua", "identical")}
    assert [gate.holds(figures) for gate in parse(example)] == [False, False]
    assert [gate.holds(figures) for gate in parse(example, "point")] == [True, True]
