from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.cli import root

COMMANDS = (
    ("demo",),
    ("find",),
    ("erase",),
    ("generate",),
    ("sign",),
    ("verify",),
    ("methods",),
    ("audit",),
    ("app",),
    ("push",),
    *(("neurons", name) for name in ("build", "show", "search", "export", "browse", "import", "tag", "explain")),
    ("bench", "convert-q16"),
    ("pairs", "make"),
    ("pairs", "check"),
    ("pairs", "generate"),
    ("pairs", "review"),
    ("sae", "compare"),
    ("sae", "sweep"),
    ("sae", "train"),
    ("sae", "corpus"),
    ("sae", "info"),
    ("reference", "train"),
    ("reference", "sample"),
    ("reference", "evaluate"),
)
HEAVY = ("torch", "transformers", "diffusers", "numpy", "matplotlib", "safetensors")


@pytest.mark.parametrize(
    "work",
    [
        "import excise",
        "import excise; excise.ExciseError; dir(excise)",
        "from typer.testing import CliRunner; from excise.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
        "from typer.testing import CliRunner; from excise.cli import app\n"
        "assert CliRunner().invoke(app, ['find', '--help']).exit_code == 0",
    ],
)
def test_nothing_heavy_is_imported_for_it(work: str) -> None:
    code = f"import sys\n{work}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: tuple[str, ...], call: Callable[..., Any]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: excise {' '.join(command)}" in result.output
    assert "--json" in result.output


def test_help_wraps_at_the_terminals_width_and_not_where_the_source_does(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    paragraph = " ".join(call("erase", "--help").output.split())
    assert "which of the concept's words it catches, how much of the concept's change its neuron carries" in paragraph
    lines = [line.strip() for line in call("erase", "--help").output.splitlines()]
    start = next(n for n, line in enumerate(lines) if line.startswith("Before it is written"))
    assert all(len(line) > 45 for line in lines[start : start + 3])


def test_version(call: Callable[..., Any]) -> None:
    from importlib.metadata import version

    assert call("--version").output.strip() == version("excise")


def test_lazy_exports_are_the_real_things() -> None:
    import excise
    from excise.concepts import Concept
    from excise.sites import Site

    assert excise.Site is Site
    assert excise.Concept is Concept
    assert all(getattr(excise, name) is not None for name in excise.__all__)
    with pytest.raises(AttributeError, match="Erazer"):
        excise.Erazer  # noqa: B018


def one_line(result: Any) -> str:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return str(lines[0])


def test_a_failure_is_one_line_and_exit_code_2(call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "pairs.csv"
    assert "did you mean gun" in one_line(call("pairs", "make", "gunn", "--out", out))
    assert "empty mention" in one_line(call("pairs", "make", "x", "--mentions", "a,,b", "--out", out))
    assert "kind" in one_line(call("pairs", "make", "x", "--mentions", "a", "--kind", "smell", "--out", out))
    assert "--eraser" in one_line(call("generate", "--prompt", "a cat", "--compare"))
    assert "not a complete eraser" in one_line(call("generate", "--prompt", "a cat", "--eraser", tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused_before_the_work(call: Callable[..., Any], tmp_path: Path) -> None:
    from excise.app.models import resolve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
        assert ".svg, .png or .pdf" in one_line(call("find", "gun", "--plot", tmp_path / "gun.gif"))
        assert "whole numbers" in one_line(call("erase", "gun", "--neurons", "1,x", "--out", tmp_path / "e"))
        assert "each once" in one_line(call("erase", "gun", "--neurons", "1,1", "--out", tmp_path / "e"))
    (tmp_path / "taken").write_text("mine")
    assert "is a file" in one_line(call("demo", "--out", tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_disk_is_one_line_too(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import errno
    import os

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in one_line(call("pairs", "make", "gun", "--out", tmp_path / "gun.csv"))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line_and_exit_code_130(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.app.models import resolve

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resolve, "concept_named", stop)
    result = call("pairs", "make", "gun", "--out", "never.csv")
    assert result.exit_code == 130
    assert len(result.stderr.strip().splitlines()) == 1
    assert "stopped" in result.stderr


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_stops_the_program_as_ctrl_c_does(
    name: str, ctrl_c: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell starts a script's background jobs with Ctrl-C ignored."""
    number = getattr(signal, name)
    monkeypatch.setattr(root, "app", lambda: signal.raise_signal(number))
    monkeypatch.setattr(root, "filter_warnings", lambda: None)
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(SystemExit) as ended:
            root.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 130
    assert "stopped" in capsys.readouterr().err
