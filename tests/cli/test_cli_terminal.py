from __future__ import annotations

from types import SimpleNamespace

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
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with terminal.progress("pictures", 970) as advance:
        advance(2)  # at once: they were there before
        clock.now += 20
        advance(2)
        clock.now += 20
        advance(6)
    assert capsys.readouterr().err.splitlines() == ["pictures ...", "pictures: 10 of 970, 0.2/s, 80 min left"]
