"""`excise reference train|sample|evaluate`: the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.options import FirstSeed, Force, Json, PicturesEach, Steps
from excise.cli.terminal import echo, emit, note, progress, table
from excise.errors import ExciseError
from excise.outputs import PICTURE, check_absent, check_file, check_resumed

app = Commands(help="Train, sample and evaluate the bundled model.", no_args_is_help=True)


@app.command(epilog="Example: excise reference train --work build/reference")
def train(
    work: Annotated[
        Path, typer.Option("--work", help="Folder for checkpoints and parts; repeat the command to resume.")
    ],
    part: Annotated[
        str,
        typer.Option("--part", help="Part to train: all, text, vae, classifier, second_classifier, unet or assemble."),
    ] = "all",
    out: Annotated[Path, typer.Option("--out", help="Folder for the finished pipeline.")] = Path("reference-model"),
    json: Json = False,
) -> None:
    """Train the bundled model from its artwork. Takes hours on two cores; needs the extra `train` and WordNet."""
    check_resumed(work, option="--work")
    check_resumed(out)
    from excise.app.reference.training import PARTS, train_part
    from excise.errors import ExciseError

    if part not in ("all", *PARTS):
        raise ExciseError(f"unknown part {part!r}; choose one of all, {', '.join(PARTS)}")
    parts = PARTS if part == "all" else (part,)
    for name in parts:
        note(f"training: {name}" if name != "assemble" else "assembling")
        train_part(name, work, out)
    emit(json, {"parts": list(parts), "work": str(work), "out": str(out)}, lambda: note(f"done; parts in {work}"))


@app.command(epilog='Example: excise reference sample --prompt "a cat on grass" --out cat.png')
def sample(
    prompt: Annotated[list[str], typer.Option("--prompt", help="Prompt. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("sample.png"),
    n: PicturesEach = 8,
    seed: FirstSeed = 0,
    steps: Steps = 20,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate pictures with the bundled model."""
    check_file(out, PICTURE, force=force)
    from excise.app.erase.pictures import Asked, check, counted, denoising_steps, draw_prompts
    from excise.app.models.resolve import load_pipeline

    asked = [Asked(text, counted(seed, n)) for text in prompt]
    check(asked, (), out, None)
    pipe = load_pipeline(None)
    with progress(f"generating {len(prompt) * n} pictures", denoising_steps(asked, steps), "steps") as advance:
        data = draw_prompts(pipe, asked, {}, out, steps=steps, progress=advance)
    emit(json, data, lambda: echo(f"{out}: {data['pictures']} pictures"))


@app.command(epilog="Example: excise reference evaluate --n 40 --json")
def evaluate(
    n: Annotated[int, typer.Option("--n", help="Pictures per family.", **bounds.COUNT)] = 200,
    steps: Steps = 20,
    write_card: Annotated[
        Path | None, typer.Option("--write-card", help="The model's folder: write README.md and figures.json into it.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure how well the bundled model follows its prompts, as judged by its classifier."""
    if write_card is not None and not write_card.is_dir():
        raise ExciseError(f"--write-card {write_card} is not a folder; name the model's folder")
    from excise.app.reference import card

    if write_card is not None:
        check_absent(*(write_card / name for name in card.FILES), force=force)
    from excise.app.models.resolve import load_pipeline
    from excise.app.reference.training import drawing_figures
    from excise.reference import denoising_steps
    from excise.reference.evaluate import FAMILIES
    from excise.statistics import in_percent

    pipe = load_pipeline(None)
    total = len(FAMILIES) * denoising_steps(n, steps)
    with progress(f"generating {n * len(FAMILIES)} pictures", total, "steps") as advance:
        figures = drawing_figures(pipe, n, steps, advance)
    if write_card is not None:
        card.write(write_card, figures)

    def show() -> None:
        rows = [(family, *(in_percent(found[name]) for name in card.ASKED)) for family, found in figures.items()]
        table(
            f"Bundled model, {n} pictures per family, % (95 % interval)",
            ("family", "all objects", "any object", "style", "background"),
            rows,
        )

    emit(json, figures, show)
