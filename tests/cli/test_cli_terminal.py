from __future__ import annotations

import pytest

from excise.cli.terminal import table


def test_a_cell_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table("about [red]", ("name", "tokens"), [("[bold]x", "[/] :cat:")])
    out = capsys.readouterr().out
    assert all(text in out for text in ("about [red]", "[bold]x", "[/] :cat:"))
