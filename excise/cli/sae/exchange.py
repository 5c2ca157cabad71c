"""`excise sae import` and `excise sae export`: SAEs from and for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import Force, Json, SaeOut, SiteOption
from excise.cli.sae.cards import show
from excise.cli.sae.sae import app
from excise.cli.terminal import echo, emit, note
from excise.outputs import check_folder, check_untrained

__all__ = ["app"]


@app.command("import", epilog="Example: excise sae import SAEmnesia --block up_blocks.1.attentions.1 --out sae")
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of a published TopK SAE: SAEuron's, SAEmnesia's, SNCE's, SAELens's, sparsify's ..."
        ),
    ],
    out: SaeOut,
    block: Annotated[
        str | None, typer.Option("--block", help="Block of the denoiser that the SAE was trained at.")
    ] = None,
    site: SiteOption = None,
    json: Json = False,
) -> None:
    """Convert a published SAE to Excise's format. No code in it is run, and unknown contents are refused by name.

    Name where it was trained with --block or --site. An SAE that Excise exported knows it.
    """
    from excise import sae as library
    from excise.errors import ExciseError

    check_untrained(out, option="--out")
    if block is not None and site is not None:
        raise ExciseError(f"{WHERE}, not both")
    sae = library.read_published(folder)
    place = sae.card.get("site")
    if block is not None or site is not None:
        component, _, path = (site or f"unet/{block}").rpartition("/")
        place = {"component": component or "text_encoder", "path": path, "width": sae.config.d}
    if place is None:
        raise ExciseError(WHERE)
    corpus = sae.card.get("corpus") or f"imported from {folder.name}"
    library.save(sae, out, {**sae.card, "site": place, "corpus": corpus})
    if sae.config.k == sae.config.m:
        note(f"this SAE keeps every positive code, so its k is {sae.config.m} and its codes take much memory")
    note(f"saved in {out}")
    show({out: library.card(out)}, json)


WHERE = "name where it was trained: --block up_blocks.1.attentions.1, or --site encoder.layers.9"


@app.command(epilog="Example: excise sae export sae --to saelens --out sae-for-saelens")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of an SAE.")],
    to: Annotated[str, typer.Option("--to", help="Library that is to load it: saelens or sparsify.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files of that library.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an SAE as SAELens or sparsify loads it. It gives the same codes there, up to rounding.

    `excise sae import` reads it back, with its card and the same bits.
    """
    from excise import sae as library
    from excise.errors import ExciseError, InvalidSetting, shown
    from excise.sae.exchange.exporters import FILES

    if to not in FILES:
        raise InvalidSetting(f"--to cannot be {shown(to)}; choose {' or '.join(FILES)}")
    check_folder(out, own=FILES[to], force=force)
    if out.resolve() == folder.resolve():
        raise ExciseError(f"--out {out} is the SAE that is read; choose another folder")
    if several := library.saes_in(folder):
        raise ExciseError(
            f"{folder} has an SAE for each of {', '.join(several)}; name one, such as {folder / min(several)}"
        )
    sae = library.load(folder)
    library.export(sae, out, to)
    note(f"saved in {out}")
    rows = {"out": str(out), "to": to, "d": sae.config.d, "m": sae.config.m, "k": sae.config.k}
    emit(
        json, rows, lambda: echo(f"{out}: {sae.config.m} neurons of width {sae.config.d}, k = {sae.config.k}, for {to}")
    )
