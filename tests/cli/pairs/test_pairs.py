from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.concepts import load_pairs


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_made_pairs_pass_the_check(ending: str, ask: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / f"gun.{ending}"
    made = ask("pairs", "make", "gun", "--out", file, "--n", 30)
    assert made["pairs"] == 30
    assert made["problems"] == []
    assert len(load_pairs(file)) == 30
    assert ask("pairs", "check", file, "--mentions", "gun")["problems"] == []


def test_mentions_make_pairs_for_any_concept(ask: Callable[..., Any], tmp_path: Path) -> None:
    made = ask("pairs", "make", "weapons", "--mentions", "halberd, mace", "--out", tmp_path / "w.csv", "--n", 20)
    assert made["mentions"] == ["halberd", "mace"]
    assert any("halberd" in p.concept for p in load_pairs(tmp_path / "w.csv"))


def test_check_finds_a_conjunction_and_exits_with_1(call: Callable[..., Any], tmp_path: Path) -> None:
    nouns = ("cat", "dog", "bus", "house", "star", "rose")
    rows = [f"a {a} and a gun near the {b},a {a} near the {b}" for a in nouns for b in nouns if a != b]
    file = tmp_path / "bad.csv"
    file.write_text("\n".join(["concept,deconcept", *rows]))
    result = call("pairs", "check", file, "--mentions", "gun")
    assert result.exit_code == 1
    assert "'and'" in result.stdout


def test_a_wrong_column_names_those_found(call: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("with,without\na,b\n")
    result = call("pairs", "check", file, "--mentions", "gun")
    assert result.exit_code == 2
    assert "with, without" in result.stderr
