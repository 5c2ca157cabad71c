from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from excise.cli import terminal
from excise.cli.terminal import aligned, complain, echo, emit, key_values, note, progress, prose, table


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
        clock.now += 8
        advance(2)
        clock.now += 20
        advance(2)  # too soon after the last line
        clock.now += 12
        advance(4)
    assert capsys.readouterr().err.splitlines() == [
        "pictures ...",
        "pictures: 4 of 970, 0.25/s, 64 min left",
        "pictures: 10 of 970, 0.2/s, 80 min left",
    ]


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_text_stands_left_and_numbers_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("neuron", "interval", "moved", "tokens", "bar")
    rows = [("1153", "1 (0 to 2)", "-", "gun next", "≤ 5 %"), ("12", "100 (90-100)", "3.5 pts", "a", "")]
    table("Found", columns, rows)
    title, heads, _, first, second = lines_of(capsys)
    assert title == "Found"
    ends = {name: heads.index(name) + len(name) for name in columns}
    for row, (neuron, interval) in ((first, ("1153", "1 (0 to 2)")), (second, ("12", "100 (90-100)"))):
        assert row[: ends["neuron"]].strip() == neuron and row[ends["neuron"] - 1] == neuron[-1]
        assert row[: ends["interval"]].endswith(interval[-8:])
        assert row[heads.index("tokens") :].split()[0] in ("gun", "a") and row[heads.index("tokens") - 1] == " "
    assert first[ends["moved"] - 1] == "-" and second[: ends["moved"]].endswith("3.5 pts")


def test_a_number_is_never_broken_and_a_narrow_terminal_gets_a_card_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("method", *(f"figure {n}" for n in range(5)))
    rows = [(name, *["100.0 (95 to 100)"] * 5) for name in ("snce:k=10,lam=2", "none")]
    monkeypatch.setenv("COLUMNS", "140")
    table("Run", columns, rows)
    wide = lines_of(capsys)
    assert len(wide) == 5 and wide[-1].count("100.0 (95 to 100)") == 5
    monkeypatch.setenv("COLUMNS", "80")
    table("Run", columns, rows)
    narrow = lines_of(capsys)
    assert narrow[0] == "Run: snce:k=10,lam=2" and narrow[6] == "Run: none"
    assert narrow[1] == "  figure 0  100.0 (95 to 100)"


def test_what_belongs_to_one_thing_is_listed_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    key_values("Neuron 7 [red]", [("tags", "gun"), ("patterns", ""), ("explanation", "[b] long " + "word " * 8)])
    shown = lines_of(capsys)
    assert shown[:2] == ["Neuron 7 [red]", "  tags         gun"]
    assert shown[2].startswith("  explanation  [b] long word") and shown[3].startswith(" " * 15 + "word")
    assert not any("patterns" in line for line in shown)


def test_a_column_of_figures_has_one_precision() -> None:
    assert aligned([36.199, 7.6007, 0.009023, None]) == ["36.199", "7.601", "0.009", "-"]
    assert aligned([1234.6, 20.0]) == ["1235", "20"]
    assert aligned([0.0, 0.5]) == ["0.000", "0.500"]
    assert aligned([None, 0.0]) == ["-", "0"]
    assert aligned([1e-9, 1.0]) == ["0.000000", "1.000000"]


def test_shares_of_a_step_are_no_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    with terminal.progress("drawing 2 pictures", 40, "steps") as advance:
        for _ in range(10):
            advance(0.1)
        advance(1.9)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "drawing 2 pictures, 40 steps ..."
    counted = [line.split(",")[0] for line in lines[1:]]
    assert counted[0] == "drawing 2 pictures: 0 of 40 steps" and counted[-2:] == [
        "drawing 2 pictures: 1 of 40 steps",
        "drawing 2 pictures: 2 of 40 steps",
    ]


def test_prose_is_wrapped_where_somebody_watches_and_one_line_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a long sentence of many words that goes on well past the edge of a narrow terminal"
    terminal.prose(text, indent=2)
    assert capsys.readouterr().out == f"  {text}\n"
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.prose(text, indent=2, hanging=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("  a long") and second.startswith("    ") and f"{first} {second.strip()}".strip() == text


def test_text_is_not_squeezed_into_a_column_of_single_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = ("change in how often other objects are recognised", "+0.0 pts", "-39.0 pts to +39.0 pts", "6")
    table("Figures", ("share", "value", "95 % interval", "n", "bar", ""), [(*row, "within 2.0 pts", "point only")])
    shown = lines_of(capsys)
    assert shown[0] == f"Figures: {row[0]}"
    assert [line.split()[0] for line in shown[1:]] == ["value", "95", "n", "bar", "point"]


EVIL = "a\x1b]52;c;cHduZWQ=\x07b\x1b[2Jc\x9b31md\x90e\x7ff\rg\u202eh\u2066i\u200fj\ud83dk\u2028l"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")


def test_no_text_of_a_file_or_server_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    complain(EVIL)
    note(EVIL)
    echo(EVIL)
    echo(EVIL, err=True)
    prose(EVIL)
    table(EVIL, (EVIL, EVIL), [(EVIL, "1")])
    key_values(EVIL, [(EVIL, EVIL)])
    emit(False, {}, lambda: echo(EVIL))
    with progress(EVIL, 3) as advance:
        advance(1)
    out, err = capsys.readouterr()
    assert OBEYED.findall(out) == OBEYED.findall(err) == []
    assert out.count("]52;c;cHduZWQ=") >= 7 and err.count("]52;c;cHduZWQ=") >= 4


def test_json_keeps_every_character_and_obeys_none(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {EVIL: EVIL}, lambda: None)
    out = capsys.readouterr().out
    assert OBEYED.findall(out) == []
    assert json.loads(out) == {EVIL: EVIL}


def test_ordinary_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("two\nlines\tand a tab", "déjà vu 猫 हिन्दी", "👩\u200d🚀 🏴󠁧󠁢󠁳󠁣󠁴󠁿 می\u200cخواهم", "a\u00a0b"):
        echo(text)
        assert capsys.readouterr().out == f"{text}\n"


def test_a_warning_commands_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminal.filter_warnings()
    text = warnings.formatwarning(EVIL, UserWarning, "file.py", 1, "")
    assert OBEYED.findall(text) == [] and "UserWarning: a\N{REPLACEMENT CHARACTER}]52;c;" in text


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("one\ntwo\x0bthree\u2028four\x85error: five")
    assert capsys.readouterr().err == "error: one two three four error: five\n"


def test_every_command_prints_through_the_filter() -> None:
    folder = Path(terminal.__file__).parent
    unfiltered = re.compile(r"typer\.(echo|secho)|(?<![\w.])print\(|sys\.std(out|err)\.write")
    for path in folder.rglob("*.py"):
        if path.name != "terminal.py":
            assert not unfiltered.search(path.read_text()), path
