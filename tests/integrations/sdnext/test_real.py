"""The extension on SD.Next's own prompt parser, embedder and callbacks, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
TREE = os.environ.get("EXCISE_SDNEXT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TREE, reason="EXCISE_SDNEXT names no checkout of SD.Next"),
]
EARLY = "InvalidSetting: clip_skip={} reads the text encoder before"
EXPECTED = {
    "cat": "the same",
    "gun": "another",
    "gun, compel": "another",
    "gun, a1111": "another",
    "gun, fixed": "another",
    "cat, not gun": "the same",
    "cat, zeros": "the same",
    "gun, zeros": "another",
    "cat BREAK sky": "the same",
    "gun BREAK sky": "another",
    "long cat": "the same",
    "long gun": "another",
    "cat to dog": "the same",
    "cat to gun": "another",
    "cat and long cat": "the same, the same",
    "cat and gun": "the same, another",
    "gun, clip skip 2": EARLY.format(1),
    "gun, clip skip 6": EARLY.format(5),
    "cat, xhinker": "another",
    "gun, xhinker": "another",
}
"""Pictures with the extension, compared to those without it. With xhinker the prompt is passed as text instead."""


TWO = {
    "cat, weighted pool": "the same",
    "gun, weighted pool": "another",
    "cat, then cat": "the same",
    "cat, then gun": "another",
}
"""The same for a model with two text encoders."""


def run(*args: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.integrations.sdnext.real", TREE, *args]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("erasers") == ["gun-snce"]
    return found


def check(found: dict[str, Any], expected: dict[str, str]) -> None:
    assert set(found) == set(expected)
    for name, pair in found.items():
        assert [each[: len(expected[name])] for each in pair] == [expected[name]] * 2, name


def test_pictures_by_sdnexts_own_embedder() -> None:
    found = run("bundled", str(ROOT / "tests/erasers/old/snce"))
    before, after = found.pop("guns")
    assert before >= 7 and after == 0
    check(found, EXPECTED)


def test_two_text_encoders(tmp_path: Path) -> None:
    found = run("sdxl", str(tmp_path))
    first, _ = found.pop("cat and long cat")
    assert first.startswith("EraserDidNotFire"), "SD.Next pads the shorter prompt outside of its embedder"
    check(found, {name: how for name, how in (EXPECTED | TWO).items() if name in found})
