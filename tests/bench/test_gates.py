from __future__ import annotations

import pytest

from excise.bench.gates import Gate, parse
from excise.errors import ExciseError

FIGURES = {"asr": {"value": 0.04}, "ira_ratio": {"value": 0.98}, "asr.language": {"value": None}}


def test_gates_are_read_and_hold_or_not() -> None:
    gates = parse("asr<0.05, ira_ratio >= .98,ira_ratio>0.98")
    assert gates[0] == Gate("asr", "<", 0.05)
    assert [str(gate) for gate in gates] == ["asr<0.05", "ira_ratio>=0.98", "ira_ratio>0.98"]
    assert [gate.holds(FIGURES) for gate in gates] == [True, True, False]


def test_what_was_not_measured_never_passes() -> None:
    assert not parse("asr.language<1")[0].holds(FIGURES)
    with pytest.raises(ExciseError, match="no figure 'ua' to gate on; there are asr, ira_ratio"):
        parse("ua>0.9")[0].holds(FIGURES)


@pytest.mark.parametrize("text", ["", "asr", "asr=0.1", "asr<", "<0.1", "asr<0.1,,ua>1", "asr<low", "asr<-1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExciseError, match="cannot read the gate"):
        parse(text)
