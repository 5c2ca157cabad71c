"""`excise bench run --families`: only those are drawn, and only what was measured is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_only_the_named_families_are_drawn_and_printed(call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = call(
        "bench", "run", "canvas", "--concepts", "gun", "--families", "late, three-objects", "--n", "1",
        "--steps", "2", "--out", out,
    )  # fmt: skip
    assert printed.exit_code == 0, printed.stderr
    assert "three-objects" in printed.stdout and "late" in printed.stdout
    assert "IRA" not in printed.stdout and "empty scene" not in printed.stdout
    plan = json.loads((out / "run.json").read_text())
    assert plan["settings"]["only"] == ["late", "three-objects"] and not plan["settings"]["searches"]
    figures = json.loads((out / "results.json").read_text())["methods"]["none"]["concepts"]["gun"]
    assert {name for name in figures if name.startswith("drawn.")} == {"drawn.late", "drawn.three-objects"}


def test_an_unknown_family_is_refused_in_one_line(call: Callable[..., Any], tmp_path: Path) -> None:
    refused = call("bench", "run", "canvas", "--families", "telepathy", "--out", tmp_path / "run")
    assert refused.exit_code == 2 and not (tmp_path / "run").exists()
    assert len(refused.stderr.strip().splitlines()) == 1 and "no family 'telepathy'" in refused.stderr
