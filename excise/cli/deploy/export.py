"""`excise export`: an eraser as a file of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.command import Commands
from excise.cli.options import Force, Json
from excise.cli.terminal import echo, emit, note
from excise.outputs import check_file

app = Commands(help="Write an eraser as a file of another program: `excise export lora`.")


@app.callback()
def _export() -> None:
    pass


@app.command(epilog="Example: excise export lora gun-uce --out gun-uce.safetensors")
def lora(
    folder: Annotated[Path, typer.Argument(help="Folder of the eraser.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", help="The LoRA file, .safetensors.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an eraser as a LoRA file, which diffusers, ComfyUI and others load. Nothing verifies such a file.

    Only erasers whose change of the weights is a product can be written: those of uce and rece. A LoRA always acts, so
    the erasers that act where a prompt holds the concept are refused.
    """
    check_file(out, (".safetensors",), force=force)
    from excise.erasers import Eraser
    from excise.erasers.artefact.lora import WARNING
    from excise.erasers.artefact.lora import lora as as_lora
    from excise.files import write_atomic

    eraser = Eraser.load(folder)
    data = as_lora(eraser)
    write_atomic(out, data)
    note(WARNING)
    rows = {"out": str(out), "bytes": len(data), "digest": eraser.digest, "layers": len(eraser.edits)}
    emit(json, rows, lambda: echo(f"{out}: {len(data) / 1000:.1f} kB, {len(eraser.edits)} layers"))
