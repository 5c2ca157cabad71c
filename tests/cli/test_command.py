"""Every command and option: one value is given once, every number has its bounds, every failure is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer.main

from excise.cli import app
from excise.cli.command import Command, Group

ROOT: Any = typer.main.get_command(app)
ABSURD = ("99999999999999999999", "-99999999999999999999", "1e30", "-1e30", "nan", "inf", "-inf", "1e400", "many")
Refused = Callable[..., str]


def everything(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of the app, with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from everything(below, (*path, name))


EVERY = [pytest.param(path, command, id=" ".join(("excise", *path))) for path, command in everything()]


def of_type(param: Any, *names: str) -> bool:
    """Whether an option's value is of one of these types, as click's or Typer's own classes have it."""
    described = getattr(param, "type_descriptor", None)
    said = str(described.annotation) if described is not None else type(param.type).__name__
    return any(name in said.lower() for name in names)


def holds_numbers(param: Any) -> bool:
    return of_type(param, "int", "float")


def holds_paths(param: Any) -> bool:
    return of_type(param, "path")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a line that must end in exit code 2 and one line on standard error, which it gives."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            ROOT.main(list(args), prog_name="excise")
        lines = capsys.readouterr().err.strip().splitlines()
        assert (stop.value.code, len(lines)) == (2, 1), (args, lines)
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def test_every_command_is_one_of_ours() -> None:
    assert len(EVERY) > 30
    assert [path for path, command in everything() if not isinstance(command, Command | Group)] == []


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_an_option_of_one_value_is_taken_once(path: tuple[str, ...], command: Any, refused: Refused) -> None:
    for param in command.params:
        if param.param_type_name != "option" or param.multiple:
            continue
        name = param.opts[0]
        value = () if param.is_flag else ("1",)
        assert f"{name} is given twice" in refused(*path, name, *value, name, *value)
        if param.secondary_opts:
            assert f"{name} is given twice" in refused(*path, name, param.secondary_opts[0])


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_absurd_numbers_are_refused_while_the_line_is_read(
    path: tuple[str, ...], command: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "callback", lambda **options: pytest.fail("the command ran"))
    before = set(sys.modules)
    for param in filter(holds_numbers, command.params):
        others = [
            word
            for other in command.params
            if other is not param and other.required
            for word in ((other.opts[0], "1") if other.param_type_name == "option" else ("1",))
        ]
        for value in ABSURD:
            words = (f"{param.opts[0]}={value}",) if param.param_type_name == "option" else ("--", value)
            assert f"'{param.opts[0]}'" in refused(*path, *others, *words)
    assert not {"torch", "numpy", "diffusers"} & (set(sys.modules) - before)


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_an_empty_path_is_refused_while_the_line_is_read(
    path: tuple[str, ...], command: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell makes one of a variable that is not set, and Python takes it for the present folder."""
    monkeypatch.setattr(command, "callback", lambda **options: pytest.fail("the command ran"))
    for param in filter(holds_paths, command.params):
        words: list[str] = []
        for other in command.params:
            if other is param or other.required:
                value = "" if other is param else "1"
                words += [value] if other.param_type_name == "argument" else [other.opts[0], value]
        assert "the path is empty; name a file or a folder" in refused(*path, *words)


def test_bounds_let_their_ends_pass(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.cli import bounds

    seen: list[Any] = []
    monkeypatch.setattr(ROOT.commands["generate"], "callback", lambda **options: seen.append(options))
    for option, both in {"steps": bounds.STEPS, "seed": bounds.SEED, "n": bounds.COUNT}.items():
        low, high = int(both["min"]), int(both["max"])
        for good in (low, high):
            ROOT.main(["generate", "--prompt", "a", f"--{option}", str(good)], standalone_mode=False)
            assert seen.pop()[option] == good
        for bad in (low - 1, high + 1):
            refused("generate", "--prompt", "a", f"--{option}", str(bad))


@pytest.mark.parametrize(
    "args",
    [("generate",), ("--nope",), ("nope",), ("erase", "gun", "--out"), ("pairs", "make", "a", "b", "--out", "c")],
)
def test_a_line_that_cannot_be_read_names_the_help(args: tuple[str, ...], refused: Refused) -> None:
    assert "--help`" in refused(*args)


def test_python_m_excise_is_the_command_line() -> None:
    from importlib.metadata import version

    done = subprocess.run([sys.executable, "-m", "excise", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("excise")
