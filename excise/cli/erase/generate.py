"""`excise generate`: pictures, or a language model's texts, with and without an eraser."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts, note_lost
from excise.cli.options import Device, Force, Json, Model
from excise.cli.terminal import emit, note, progress
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError

if TYPE_CHECKING:
    from excise.sites import LanguageModel


def register(app: typer.Typer) -> None:
    app.command(epilog='Example: excise generate --prompt "a gun on grass" --eraser gun-eraser --compare')(generate)


@choosing_weights
def generate(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to draw, or to go on from; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="A file of prompts: .txt, one a line, or .csv or .jsonl with columns prompt[, seed]."
        ),
    ] = None,
    eraser: Annotated[
        list[Path] | None,
        typer.Option("--eraser", help="Folder of an eraser, or of several, to attach. Give it several times."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Draw without and with the eraser, side by side.")] = False,
    strength: Annotated[float, typer.Option("--strength", help="Scales the eraser's λ.", **bounds.STRENGTH)] = 1.0,
    allow_amplify: Annotated[
        bool,
        typer.Option("--allow-amplify", help="Texts: let a negative --strength write the concept in, instead of out."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Texts: how many tokens to write.", **bounds.TOKENS)
    ] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Texts: ask the prompt as a question, in the model's chat template.")
    ] = False,
    n: Annotated[int, typer.Option("--n", help="Pictures a prompt, seeds counting up.", **bounds.COUNT)] = 1,
    seed: Annotated[int, typer.Option("--seed", help="The first seed.", **bounds.SEED)] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.", **bounds.STEPS)] = 20,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance", help="Guidance scale. Default: 4; with --model, that pipeline's own.", **bounds.GUIDANCE
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The sheet to write, a PNG. Default, without --out-dir: excise.png."),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            help="Write each picture as a numbered PNG into this folder; called again, the same "
            "command draws only what is missing.",
        ),
    ] = None,
    keep_prompt: Annotated[
        bool,
        typer.Option(
            "--keep-prompt", help="Note the prompt in the PNG, beside seed, digests and strength, which always are."
        ),
    ] = False,
    model: Model = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae", help="The SAE of an eraser made with --gate topk. Default, for the bundled model: its own."
        ),
    ] = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Draw prompts, with or without an eraser, into one PNG or a file each.

    A language model goes on from them, which is printed.
    """
    if compare and not eraser:
        raise ExciseError("--compare needs --eraser DIR")
    if strength < 0 and not allow_amplify:
        raise ExciseError(
            f"--strength {strength:g} would write the concept in; give 0 or more (a language model may write it in, "
            "with --allow-amplify)"
        )
    if not prompt and prompts is None:
        raise ExciseError(
            "there is nothing to draw; give --prompt, or name a file with --prompts; see `excise generate --help`"
        )

    if out is None and out_dir is None and not _writes_text(model):
        out = Path("excise.png")

    from excise.app.erase.pictures import Asked, check, counted, denoising_steps, draw_prompts, read_asked
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.erasers import load_erasers
    from excise.reference import GUIDANCE
    from excise.sae import load
    from excise.sites import LanguageModel

    asked, dropped = [Asked(text, counted(seed, n)) for text in prompt or ()], 0
    if prompts is not None:
        read = read_asked(prompts, seed, n)
        asked, dropped = asked + read.asked, read.dropped
        if dropped:
            note(f"{prompts}: {dropped} of {dropped + len(read.asked)} prompts name minors and are left out")
        if read.unread:
            note(f"{prompts}: {', '.join(read.unread)} not used; --guidance holds for all, in the model's own size")
    check(asked, eraser or (), out, out_dir, force=force, compare=compare)
    erasers = load_erasers(eraser or [])
    for name, loaded in erasers.items():
        if loaded.weak:
            note(f"warning: eraser {name} is weak: {'; '.join(loaded.weak)}")
    if sae is None and any(edit.needs_sae for loaded in erasers.values() for edit in loaded.edits):
        sae = sae_folder(model, None)
    whole = load(sae) if sae is not None else None
    pipe = load_pipeline(model, device, weights)
    whole = whole.to(device) if whole is not None else None
    if isinstance(pipe, LanguageModel):
        how = {"strength": strength, "allow_amplify": allow_amplify, "sae": whole}
        texts = [one.prompt for one in asked]
        _write(pipe, texts, erasers, how, json, compare=compare, chat=chat, max_new_tokens=max_new_tokens)
        return
    cut = note_cuts(pipe, [one.prompt for one in asked])
    note_lost(cut, erasers.values())
    if allow_amplify or chat:
        raise ExciseError("--allow-amplify and --chat are for language models; leave them out")
    sides = 2 if compare else 1
    pictures, total = sides * sum(len(one.seeds) for one in asked), sides * denoising_steps(asked, steps)
    with (
        progress(f"drawing {_counted(pictures)}", total, "steps") as advance,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always", UserWarning)
        data = draw_prompts(
            pipe,
            asked,
            erasers,
            out,
            out_dir=out_dir,
            force=force,
            keep_prompt=keep_prompt,
            compare=compare,
            strength=strength,
            steps=steps,
            guidance=GUIDANCE if guidance is None and model is None else guidance,
            sae=whole,
            progress=advance,
        )
    for message in dict.fromkeys(str(one.message) for one in said if issubclass(one.category, UserWarning)):
        note(f"warning: {message}")
    where = " and ".join(str(place) for place in (out, out_dir) if place is not None)
    first, last = data["seeds"][0], data["seeds"][-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    data["dropped"] = dropped
    data["cut"] = [{"prompt": one.prompt, "lost": one.lost} for one in cut]
    there = f" ({data['kept']} of them there already)" if data["kept"] else ""
    emit(json, data, lambda: typer.echo(f"{where}: {_counted(data['pictures'])}{there}, {seeds}"))


def _counted(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def _writes_text(model: str | None) -> bool:
    """Whether that is a language model on this machine, whose texts are printed."""
    if model is None:
        return False
    from excise.app.models.language import find_language_model

    return find_language_model(model) is not None


def _write(
    pipe: LanguageModel, prompts: list[str], erasers: dict[str, Any], how: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Print what a language model writes, with the erasers attached as `how` says."""
    from dataclasses import asdict

    from excise.app.models.language import generate_text
    from excise.erasers import Attachments

    with (
        progress("writing", len(prompts) * (2 if options["compare"] else 1)) as advance,
        Attachments.of(pipe, erasers, **how) as attached,
    ):
        written = generate_text(pipe, prompts, attached if erasers else None, progress=advance, **options)

    def show() -> None:
        for text in written:
            typer.echo(f"prompt: {text.prompt}")
            for name in ("before", "after"):
                if (said := getattr(text, name)) is not None:
                    typer.echo(f"{name + ':':<7} {' '.join(said.split())}")

    emit(as_json, {"texts": [asdict(text) for text in written]}, show)
