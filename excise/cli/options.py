"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.cli import bounds
from excise.methods.configs.sae import SNCEConfig
from excise.settings import described

Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A pipeline's or a language model's folder or hub name, or smollm2. Default: the model that ships with "
        "excise.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, mps.")]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site", help="Site in the text encoder, such as encoder.layers.8. Default: the one the SAE was made for."
    ),
]
Sae = Annotated[
    Path | None, typer.Option("--sae", help="Folder of an SAE. Default, for the bundled model: the bundled SAE.")
]
Mentions = Annotated[
    str | None,
    typer.Option(
        "--mentions", help='Words for the concept, separated by commas: "gun, pistol". Makes pairs from templates.'
    ),
]
PairsFile = Annotated[
    Path | None,
    typer.Option("--pairs", help="Pairs from a .csv or .jsonl file (columns concept, deconcept[, template])."),
]
Kind = Annotated[str, typer.Option("--kind", help="What the mentions are: object, style or attribute.")]
Count = Annotated[int, typer.Option("--n", help="How many pairs to make.", **bounds.PAIRS)]


def snce_option(name: str) -> Any:
    """The option of a setting of SNCE, with its help and its range."""
    own = described(SNCEConfig)[name]
    if own.bare not in (int, float):
        words = f"{own.help} One of {', '.join(own.choices)}." if own.choices else own.help
        return typer.Option(f"--{name}", help=words)
    least, most = own.bounds
    return typer.Option(f"--{name}", help=own.help, min=least, max=most)
