"""`excise push`: an eraser to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import Json
from excise.cli.terminal import emit


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise push gun-eraser owner/gun-eraser --private")(push)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.", metavar="DIR")],
    repo: Annotated[
        str,
        typer.Argument(
            help="Repository on the hub; made where there is none. Of several erasers each gets one: "
            "OWNER/NAME-, and its folder's name.",
            metavar="OWNER/NAME",
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to push to; made where there is none. Default: main.")
    ] = None,
    message: Annotated[str, typer.Option("--message", help="The commit's message.")] = "Push an eraser",
    json: Json = False,
) -> None:
    """Push an eraser to the Hugging Face hub with a card that says what it is; `hf auth login` comes first.

    A README.md or a signature in the folder goes along; the README.md then takes the card's place.
    """
    from excise.erasers import Eraser, eraser_folders
    from excise.erasers.artefact.hub import push_folder
    from excise.hub import check_name

    check_name(repo)
    folders = eraser_folders(folder)
    for own in folders:
        Eraser.load(own)  # before the first is pushed
    rows = []
    for own in folders:
        name = repo if len(folders) == 1 else f"{repo}-{own.name}"
        eraser, url = push_folder(own, name, private=private or None, revision=revision, commit_message=message)
        rows.append({"folder": str(own), "repo": name, "url": url, "digest": eraser.digest})
        if not json:
            typer.echo(f"{url}: “{eraser.concept}”, digest {eraser.digest[:12]}")
    if json:
        emit(json, rows[0] if len(rows) == 1 else rows, lambda: None)
