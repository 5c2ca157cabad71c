"""`excise generate`: pictures, or a language model's texts, with and without an eraser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.options import Device, Json, Model
from excise.cli.outputs import PICTURE, Force, check_file
from excise.cli.terminal import emit, progress
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError


def register(app: typer.Typer) -> None:
    app.command(epilog='Example: excise generate --prompt "a gun on grass" --eraser gun-eraser --compare')(generate)


@choosing_weights
def generate(
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="What to draw, or to go on from; may be given several times.")
    ],
    eraser: Annotated[
        list[Path] | None,
        typer.Option("--eraser", help="Folder of an eraser, or of several, to attach. Give it several times."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw without and with the eraser, one above the other.")
    ] = False,
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
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("excise.png"),
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
    """Draw prompts, with or without an eraser, into one PNG. A language model goes on from them, which is printed."""
    if compare and not eraser:
        raise ExciseError("--compare needs --eraser DIR")
    if strength < 0 and not allow_amplify:
        raise ExciseError(
            f"--strength {strength:g} would write the concept in; give 0 or more (a language model may write it in, "
            "with --allow-amplify)"
        )

    if not all(text.strip() for text in prompt):
        raise ExciseError("a prompt is empty; say what to draw with --prompt")
    check_file(out, PICTURE, force=force)

    from excise.app.models import load_pipeline, sae_folder
    from excise.app.pictures import denoising_steps, draw_prompts
    from excise.erasers import load_erasers
    from excise.reference.bundle import GUIDANCE
    from excise.sae import load
    from excise.sites import LanguageModel

    erasers = load_erasers(eraser or [])
    if sae is None and any(edit.needs_sae for loaded in erasers.values() for edit in loaded.edits):
        sae = sae_folder(model, None)
    whole = load(sae) if sae is not None else None
    pipe = load_pipeline(model, device, weights)
    whole = whole.to(device) if whole is not None else None
    if isinstance(pipe, LanguageModel):
        how = {"strength": strength, "allow_amplify": allow_amplify, "sae": whole}
        _write(pipe, prompt, erasers, how, json, compare=compare, chat=chat, max_new_tokens=max_new_tokens)
        return
    if allow_amplify or chat:
        raise ExciseError("--allow-amplify and --chat are for language models; leave them out")
    sides = 2 if compare else 1
    total = sides * denoising_steps(len(prompt) * n, steps)
    with progress(f"drawing {sides * len(prompt) * n} pictures", total, "steps") as advance:
        data = draw_prompts(
            pipe,
            prompt,
            erasers,
            out,
            compare=compare,
            strength=strength,
            n=n,
            seed=seed,
            steps=steps,
            guidance=GUIDANCE if guidance is None and model is None else guidance,
            sae=whole,
            progress=advance,
        )
    emit(json, data, lambda: typer.echo(f"{out}: {data['pictures']} pictures, seeds {seed} to {seed + n - 1}"))


def _write(
    pipe: Any, prompts: list[str], erasers: dict[str, Any], how: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Print what a language model writes, with the erasers attached as `how` says."""
    from dataclasses import asdict

    from excise.app.language import generate_text
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
