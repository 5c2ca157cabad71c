"""`excise methods`: the erasure methods, their settings and their papers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from excise.cli.command import Commands
from excise.cli.options import Json
from excise.cli.terminal import echo, emit, key_values, prose, table

MethodName = Annotated[str, typer.Argument(help="A method's name, or several joined with +.")]

app = Commands(
    help="List the erasure methods. `excise methods show NAME` explains settings, `cite NAME` prints BibTeX."
)


@app.callback(invoke_without_command=True, epilog="Example: excise methods --json")
def listed(context: typer.Context, json: Json = False) -> None:
    """List the erasure methods: how each is fitted, what it edits, and the licence of its authors' code."""
    from excise.app.erase.methods import describe_methods, describe_plugins

    if context.invoked_subcommand is not None:
        return
    rows, others = describe_methods(defaults=json), describe_plugins()

    def show() -> None:
        for row in rows:
            licence = "without a licence" if row["licence"] == "none" else row["licence"]
            original = f"; its authors' code: {licence}" if licence else ""
            echo(f"{row['name']} ({row['kind']})")
            prose(row["does"], indent=4)
            prose(f"edits {row['edits']}{original}", indent=4)
            if row["paper"]:
                prose(row["paper"], indent=4)
        for plugin in others:
            why = plugin.get("left_out")
            echo(f"{plugin['name']} (plugin{', left out' if why else ''})")
            prose(why or f"from another package; `excise methods show {plugin['name']}` lists its settings", indent=4)

    emit(json, [*rows, *others], show)


@app.command(epilog="Example: excise methods show esd-x eta")
def show(
    name: MethodName,
    setting: Annotated[str | None, typer.Argument(help="One of its settings, to show in full.")] = None,
    json: Json = False,
) -> None:
    """Show a method's settings: default, the paper's value, the bundled model's value, allowed values and meaning.

    Change them with `excise erase --set`; `--preset paper` uses all the paper's values.
    """
    from excise.app.erase.methods import chosen_on_the_bundled_model, describe_setting, describe_settings

    if setting is not None:
        row = describe_setting(name, setting)
        emit(json, row, lambda: _show_one(name, row))
        return
    rows = describe_settings(name)

    def printed() -> None:
        if not rows:
            echo(f"{name} has no settings")
            return
        heads = ("setting", "default", "paper", "bundled model", "takes", "meaning")
        cells = [
            (
                row["name"],
                _plain(row["default"]),
                "-" if row["paper"] is None else _plain(row["paper"]),
                "" if row["bundled"] is None else _plain(row["bundled"]),
                _takes(row),
                row["meaning"],
            )
            for row in rows
        ]
        table(f"Settings of {name}", heads, cells)
        if any(row["paper"] is None for row in rows):
            prose("A - under paper: the paper states no value, and --preset paper keeps the default.")
        if (tuned := chosen_on_the_bundled_model(name, {})) is not None:
            prose(f"{tuned}.")

    emit(json, rows, printed)


def _show_one(name: str, row: dict[str, Any]) -> None:
    """Print everything about one setting."""
    bundled = row["default"] if row["bundled"] is None else row["bundled"]
    rows = (
        ("meaning", row["meaning"] or "not stated"),
        ("takes", row["takes"]),
        ("unit", row["unit"] or "none"),
        ("default", _plain(row["default"])),
        ("bundled model", _plain(bundled)),
        ("paper", "not stated" if row["paper"] is None else _plain(row["paper"])),
        ("source", row["source"] or "not stated"),
        ("change it", f"excise erase gun --method {name} --set {row['name']}=VALUE"),
    )
    key_values(f"{row['name']}, a setting of {name}", rows)


def _takes(row: dict[str, Any]) -> str:
    return f"{row['takes']} ({row['unit']})" if row["unit"] else row["takes"]


def _plain(value: object) -> str:
    """Format a value as --set takes it."""
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "empty"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) or "empty"


@app.command(epilog="Example: excise methods cite esd-x")
def cite(name: MethodName) -> None:
    """Print a method's paper as BibTeX."""
    from excise.app.erase.methods import citation

    echo(citation(name))
