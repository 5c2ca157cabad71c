"""`excise erase --controls`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from excise.concepts.everyday import everyday

Call = Callable[..., Any]


def test_the_command_reads_a_file_of_controls(call: Call, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("a gun\n")
    result = call("erase", "gun", "--controls", bad, "--out", tmp_path / "gun")
    assert result.exit_code == 2 and "fewer than two prompts without 'gun'" in result.stderr
    assert not (tmp_path / "gun").exists()
    good = tmp_path / "good.txt"
    good.write_text("\n".join(everyday(40)))
    result = call("erase", "gun", "--n", 20, "--controls", good, "--out", tmp_path / "gun")
    assert result.exit_code == 0, result.output
    assert "0 of 20 change, held out; up to 16.1 % in general (95 %)" in " ".join(result.stdout.split())
