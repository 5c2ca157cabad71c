"""`excise erase`: making erasers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.erase.own_sae import sae_of
from excise.cli.erase.several import erase_several
from excise.cli.options import (
    Count,
    Device,
    Force,
    Json,
    Kind,
    Mentions,
    Model,
    PairsFile,
    Sae,
    SiteOption,
    snce_option,
)
from excise.cli.terminal import emit, note, table, training
from excise.cli.weights import choosing_weights
from excise.erasers.artefact.files import FILES
from excise.outputs import check_folder, check_resumed


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise erase gun --out gun-eraser")(erase)


@choosing_weights
def erase(
    concept: Annotated[
        str,
        typer.Argument(
            help="A known concept (`excise concepts`), or any name together with --mentions or --pairs; several known "
            "ones: gun,knife."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the eraser, or for the folders of several.")],
    mentions: Mentions = None,
    pairs: PairsFile = None,
    kind: Kind = "object",
    n: Count = 100,
    model: Model = None,
    sae: Sae = None,
    site: SiteOption = None,
    k: Annotated[int | None, snce_option("k")] = None,
    lam: Annotated[float | None, snce_option("lam")] = None,
    unit: Annotated[str | None, snce_option("unit")] = None,
    source: Annotated[str | None, snce_option("source")] = None,
    gate: Annotated[str | None, snce_option("gate")] = None,
    uncond: Annotated[str | None, snce_option("uncond")] = None,
    align: Annotated[str | None, snce_option("align")] = None,
    neurons: Annotated[
        str | None, typer.Option("--neurons", help='These neurons instead of the top k: "1,2". See `excise find`.')
    ] = None,
    score: Annotated[str | None, snce_option("score")] = None,
    margin: Annotated[float | None, snce_option("margin")] = None,
    tolerance: Annotated[float | None, snce_option("tolerance")] = None,
    by: Annotated[
        str,
        typer.Option(
            "--method",
            help="See `excise methods`; two joined by + make one eraser: snce+saemnesia; several: uce,esd-x.",
        ),
    ] = "snce",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="With --model and without --sae: prompts to train the model's SAE on, once. Default: the paper's, "
            "from the hub.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Vectors to train that SAE on; default 10,000,000.", **bounds.TRAINING_VECTORS),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the method: gamma=-2, or saemnesia.gamma=-2 of one of several. `excise methods show "
            "METHOD` lists them.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="paper: the settings of the method's paper where the defaults depart from it; --set and other options "
            "come on top.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", help="How many of several erasers to make at once.", **bounds.JOBS)
    ] = 1,
    accept_weak: Annotated[
        bool,
        typer.Option("--accept-weak", help="Write an eraser that misses a limit of the verdict too, marked as weak."),
    ] = False,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make an eraser: by SNCE, a few kilobytes that turn one neuron down. Options left out are the method's defaults.

    It is tried before it is written: which words it catches, how much of the concept's change its neuron carries, and
    which other prompts it touches. Exit code 3 where that is too little; nothing is written then.

    Of several concepts or by several methods each gets a folder of its own in --out; those that are there are kept, and
    made anew with --force. By other methods it may be as large as the weights it changes.
    """
    from excise.app.models.knowing import (
        explain_unsplit,
        is_snce,
        parts,
        refuse_few_pairs,
        refuse_not_drawn,
        refuse_unknown,
    )

    names = parts(concept)
    several = names is not None or "," in by
    if several:
        check_resumed(out)
    else:
        check_folder(out, force=force, own=FILES)

    from excise.app.erase.finding import chosen, erase_by, save, settings, unplaced
    from excise.app.erase.finding import erase as made_by
    from excise.app.models.resolve import concept_named, load_pipeline
    from excise.concepts import check, read_prompts
    from excise.erasers.artefact import strength
    from excise.erasers.artefact.verdict import in_words
    from excise.errors import ExciseError
    from excise.methods.configs.sae import SNCEConfig
    from excise.methods.lookup import parsed, preset_settings

    asked: dict[str, Any] = {
        "k": k,
        "neurons": None if neurons is None else _numbers(neurons),
        "lam": lam,
        "unit": unit,
        "source": source,
        "gate": gate,
        "uncond": uncond,
        "align": align,
        "score": score,
        "margin": margin,
        "tolerance": tolerance,
    }
    odd = sorted(chosen({**asked, "sae": sae, "site": site}))
    if (prompts or tokens) and (model is None or sae is not None or by != "snce" or several):
        raise ExciseError(
            f"--{'prompts' if prompts else 'tokens'} trains the SAE that snce needs for --model where no --sae is "
            "given; leave it out"
        )
    if several:
        if mentions is not None or pairs is not None:
            raise ExciseError("--mentions and --pairs are one concept's; erase it by itself")
        if odd:
            raise ExciseError(
                f"--{odd[0]} is for one eraser; of several give snce's with --set, such as --set snce.{odd[0]}=..."
            )
        tasks = (names or [concept], by, out, given or [], kind, n, accept_weak, preset)
        erase_several(*tasks, model, device, weights, jobs, force, json)
        return
    _, own = parsed(f"{by}:{','.join(given or [])}")
    told = {**preset_settings(by, preset), **own, **chosen(asked)}
    if twice := sorted(set(own) & set(odd)):
        raise ExciseError(f"--{twice[0]} and --set {twice[0]} are one setting; give one of them")
    if unit == "concept" and told.get("source") == "concept":
        raise ExciseError("--source concept counts λ in codes; leave --unit out, or give --unit code")
    if align is not None and told.get("source") != "concept":
        raise ExciseError("--align says how the concept's codes are read; add --source concept, or leave it out")
    if mentions is None and pairs is None and (why := explain_unsplit(concept)) is not None:
        raise ExciseError(why)
    if model is None and mentions is None and pairs is None and not accept_weak:
        refuse_unknown(concept)
    wanted = concept_named(concept, mentions, pairs, kind, n)
    for problem in check(wanted) if pairs is not None else ():
        note(f"warning: {pairs}: {problem}")
    if is_snce(by) and not accept_weak:
        refuse_few_pairs(wanted)
    if model is None and not accept_weak:
        for word in refuse_not_drawn(wanted):
            note(f"warning: this model does not draw {word}")
    if by == "snce":
        sae = Path(told.pop("sae")) if told.get("sae") else sae
        if model is None or sae is not None:
            unplaced(model, sae, **told)
        else:
            SNCEConfig(**told)
    elif odd:
        raise ExciseError(f"--{odd[0]} is a setting of snce; give {by}'s with --set, such as --set sae=FOLDER")
    corpus = None if prompts is None else (prompts.name, list(read_prompts(prompts)))
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (side for pair in wanted.pairs for side in (pair.concept, pair.deconcept)))
    if model is not None and sae is None and by == "snce":
        sae = sae_of(pipe, model, site, corpus, tokens, device)
    if by != "snce":
        with training() as line:
            eraser = erase_by(
                pipe,
                wanted,
                by,
                given or [],
                out,
                bundled=model is None,
                preset=preset,
                accept_weak=accept_weak,
                progress=line,
            )
    else:
        eraser, warned = made_by(pipe, wanted, settings(pipe, model=model, sae=sae, site=site, **told))
        for warning in warned:
            note(f"warning: {warning}")
        for what, found in in_words(eraser.verdict) if eraser.weak and not accept_weak else ():
            note(f"{what}: {found}")
        save(eraser, out, accept_weak=accept_weak)
    size = sum(f.stat().st_size for f in out.iterdir())
    first = eraser.edits[0]
    data = {
        "out": str(out),
        "concept": eraser.concept,
        "neurons": first.neurons,
        **dict([first.coefficient]),
        "site": first.site.key,
        "edits": [{"site": e.site.key, "neurons": e.neurons, **dict([e.coefficient])} for e in eraser.edits],
        "bytes": size,
        "digest": eraser.digest,
        "created": dict(eraser.created),
        "measured": dict(eraser.measured),
        "verdict": dict(eraser.verdict),
    }

    def show() -> None:
        typer.echo(f"{out}: “{eraser.concept}”, {size / 1000:.1f} kB, digest {eraser.digest[:12]}")
        for edit in eraser.edits:
            if edit.neurons:
                neurons = ", ".join(map(str, edit.neurons))
                name, amount = edit.coefficient
                how = f"{SYMBOLS[name]} = {amount:g}"
                if name == "lambda":
                    how = strength.in_words(amount, edit.site.key, eraser.created, eraser.measured)
                typer.echo(f"neuron {neurons} at {edit.site.key}, {how}")
        for description, count in Counter(
            getattr(edit, "description", "") for edit in eraser.edits if not edit.neurons
        ).items():
            typer.echo(description.format(count=count))
        table("Verdict", ("what", "found"), list(in_words(eraser.verdict)))
        typer.echo(f"WEAK: {'; '.join(eraser.weak)}" if eraser.weak else "It meets every limit.")
        where = "" if model is None else f" --model {model}"
        typer.echo(f"Next: excise generate{where} --eraser {out} --prompt PROMPT --compare --out sheet.png")

    emit(json, data, show)


SYMBOLS = {"lambda": "λ", "gamma": "γ"}


def _numbers(text: str) -> tuple[int, ...]:
    """The neurons in "1,2". Raises ExciseError for anything but whole numbers, each once."""
    from excise.errors import ExciseError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ExciseError(f"--neurons cannot be {text!r}; give whole numbers, each once, such as 1,2")
    return tuple(map(int, parts))
