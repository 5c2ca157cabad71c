"""`excise push`: publish an eraser on the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from excise.cli.options import EraserFolder, Json
from excise.cli.terminal import echo, emit


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise push gun-eraser owner/gun-eraser --private")(push)


def push(
    folder: EraserFolder,
    repo: Annotated[
        str,
        typer.Argument(
            help="Repository on the hub, created if missing. With several erasers, each gets its own: "
            "OWNER/NAME-FOLDER.",
            metavar="OWNER/NAME",
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to push to, created if missing. Default: main.")
    ] = None,
    message: Annotated[str, typer.Option("--message", help="Commit message.")] = "Push an eraser",
    json: Json = False,
) -> None:
    """Push an eraser to the Hugging Face hub, with a model card. Log in first with `hf auth login`.

    A signature in the folder is pushed too. A README.md that you wrote or edited replaces the generated card.
    """
    from excise.erasers import Eraser, eraser_folders
    from excise.erasers.artefact.hub import push_folder
    from excise.hub import check_name

    check_name(repo)
    folders = eraser_folders(folder)
    for one in folders:
        Eraser.load(one)  # check all of them before the first is pushed
    rows = []
    for one in folders:
        name = repo if len(folders) == 1 else f"{repo}-{one.name}"
        eraser, url = push_folder(one, name, private=private or None, revision=revision, commit_message=message)
        rows.append({"folder": str(one), "repo": name, "url": url, "digest": eraser.digest})
        if not json:
            echo(f"{url}: “{eraser.concept}”, digest {eraser.digest[:12]}")
    if json:
        emit(json, rows[0] if len(rows) == 1 else rows, lambda: None)
