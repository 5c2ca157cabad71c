"""The `excise` program: all commands, and its entry point."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from excise.cli.bench import bench, probe, reference, reproduce
from excise.cli.command import INTERRUPTED, Commands, Root
from excise.cli.deploy import export, serve
from excise.cli.erase import audit, checking, concepts, demo, erase, find, generate, harden, methods, push, several
from excise.cli.neurons import scanning
from excise.cli.pairs import pairs
from excise.cli.sae import corpus
from excise.cli.studio import app as studio
from excise.cli.terminal import complain, echo, filter_warnings
from excise.interruption import as_ctrl_c

app = Commands(
    name="excise",
    cls=Root,
    help="Erase one concept from a text-to-image model by turning down one neuron. Default model: the bundled one.",
    epilog="Example: excise demo\n\nExit codes: 0 done; 1 check not passed, or nothing found; 2 bad input; "
    "3 red flag, eraser too weak, or gate missed; 4 items failed and set aside; 130 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import excise

        echo(excise.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for part in (demo, concepts, find, erase, several, checking, generate, audit, studio, harden, probe, push, serve):
    part.register(app)
app.add_typer(methods.app, name="methods")
app.add_typer(export.app, name="export")
app.add_typer(pairs.app, name="pairs")
app.add_typer(corpus.app, name="sae")
app.add_typer(scanning.app, name="neurons")
app.add_typer(bench.app, name="bench")
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(reference.app, name="reference")


def main() -> None:
    """Run the `excise` program."""
    filter_warnings()
    as_ctrl_c()
    # Hides the libraries' advice about their own internals. Their errors still come through.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        app()
    except KeyboardInterrupt:
        complain("stopped", kind="note")
        sys.exit(INTERRUPTED)
