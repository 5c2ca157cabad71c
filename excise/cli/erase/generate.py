"""`excise generate`: generate pictures, or a language model's text, with and without an eraser."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts, note_lost
from excise.cli.options import Device, Digests, FirstSeed, Force, Guidance, Json, Model, PicturesEach, Steps
from excise.cli.sources import EraserSources, at_hand
from excise.cli.terminal import echo, emit, note, progress
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError

if TYPE_CHECKING:
    from excise.sites import LanguageModel


def register(app: typer.Typer) -> None:
    app.command(epilog='Example: excise generate --prompt "a gun on grass" --eraser gun-eraser --compare')(generate)


@choosing_weights
def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Prompt for a picture, or text for a language model to continue. Repeatable."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="File of prompts: .txt with one per line, or .csv or .jsonl with columns prompt[, seed]."
        ),
    ] = None,
    eraser: EraserSources = None,
    digest: Digests = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Generate without and with the erasers, side by side.")
    ] = False,
    strength: Annotated[float, typer.Option("--strength", help="Factor on the eraser's λ.", **bounds.STRENGTH)] = 1.0,
    allow_amplify: Annotated[
        bool,
        typer.Option("--allow-amplify", help="Text: let a negative --strength amplify the concept."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Text: number of tokens to generate.", **bounds.TOKENS)
    ] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Text: wrap the prompt in the model's chat template, as a user's question.")
    ] = False,
    n: PicturesEach = 1,
    seed: FirstSeed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG for a sheet of all pictures. Default, without --out-dir: excise.png."),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            help="Folder for the pictures, one numbered PNG each. Repeat the command to generate only what is missing.",
        ),
    ] = None,
    keep_prompt: Annotated[
        bool,
        typer.Option(
            "--keep-prompt", help="Store the prompt in each PNG. Seed, digests and strength are always stored."
        ),
    ] = False,
    model: Model = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae", help="SAE for an eraser made with --gate topk. Default: for the bundled model, the bundled SAE."
        ),
    ] = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate pictures, with or without erasers, as one PNG sheet or one file each.

    With a language model, print the continuations instead.
    """
    if compare and not eraser:
        raise ExciseError("--compare needs --eraser DIR")
    if digest and not eraser:
        raise ExciseError("--digest needs --eraser DIR")
    if strength < 0 and not allow_amplify:
        raise ExciseError(
            f"--strength {strength:g} would amplify the concept; give 0 or more (for a language model, --allow-amplify "
            "permits it)"
        )
    if strength == 0 and eraser:
        note("warning: --strength 0 erases nothing")
    if not prompt and prompts is None:
        raise ExciseError(
            "there is no prompt; give --prompt TEXT, or a file with --prompts; see `excise generate --help`"
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
            note(f"{prompts}: left out {dropped} of {dropped + len(read.asked)} prompts, which mention minors")
        if read.unread:
            note(
                f"{prompts}: ignored {', '.join(read.unread)}; all pictures use --guidance and the model's default size"
            )
    check(asked, eraser or (), out, out_dir, force=force, compare=compare)
    erasers = load_erasers([at_hand(one) for one in eraser or ()], digests=digest or ())
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
        raise ExciseError("--allow-amplify and --chat only apply to language models; leave them out")
    sides = 2 if compare else 1
    pictures, total = sides * sum(len(one.seeds) for one in asked), sides * denoising_steps(asked, steps)
    with (
        progress(f"generating {_counted(pictures)}", total, "steps") as advance,
        warnings.catch_warnings(record=True) as warned,
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
    for message in dict.fromkeys(str(one.message) for one in warned if issubclass(one.category, UserWarning)):
        note(f"warning: {message}")
    where = " and ".join(str(place) for place in (out, out_dir) if place is not None)
    first, last = data["seeds"][0], data["seeds"][-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    data["dropped"] = dropped
    data["cut"] = [{"prompt": one.prompt, "lost": one.lost} for one in cut]
    kept = f" ({data['kept']} of them there already)" if data["kept"] else ""
    emit(json, data, lambda: echo(f"{where}: {_counted(data['pictures'])}{kept}, {seeds}"))


def _counted(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def _writes_text(model: str | None) -> bool:
    """Return whether `model` is a language model on this machine."""
    if model is None:
        return False
    from excise.app.models.language import find_language_model

    return find_language_model(model) is not None


def _write(
    pipe: LanguageModel, prompts: list[str], erasers: dict[str, Any], how: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Print a language model's continuations, with the erasers attached with the options `how`."""
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
            echo(f"prompt: {text.prompt}")
            for name in ("before", "after"):
                if (reply := getattr(text, name)) is not None:
                    echo(f"{name + ':':<7} {' '.join(reply.split())}")

    emit(as_json, {"texts": [asdict(text) for text in written]}, show)
