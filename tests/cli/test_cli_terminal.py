from __future__ import annotations

import re
import time

import pytest

from excise.cli import terminal
from excise.cli.terminal import table


def test_a_cell_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table("about [red]", ("name", "tokens"), [("[bold]x", "[/] :cat:")])
    out = capsys.readouterr().out
    assert all(text in out for text in ("about [red]", "[bold]x", "[/] :cat:"))


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    with terminal.progress("pictures", 8) as advance:
        advance(2)
        time.sleep(1.1)
        advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pictures ..."
    assert re.fullmatch(r"pictures: 4 of 8, \d(\.\d+)?/s, \d+ min left", lines[-1])
