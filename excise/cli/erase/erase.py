"""`excise erase`: make erasers."""

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
    Controls,
    Count,
    Device,
    Engine,
    Force,
    Json,
    Kind,
    Mentions,
    Model,
    PairsFile,
    RetryFailed,
    Sae,
    SiteOption,
    Workers,
    snce_option,
)
from excise.cli.terminal import echo, emit, note, table, training
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
            help="A known concept (`excise concepts`), several known ones (gun,knife), or any name with --mentions or "
            "--pairs."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the eraser; for several, the folder of their folders.")
    ],
    mentions: Mentions = None,
    pairs: PairsFile = None,
    controls: Controls = None,
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
        str | None, typer.Option("--neurons", help='Neurons to use instead of the top k: "1,2". See `excise find`.')
    ] = None,
    score: Annotated[str | None, snce_option("score")] = None,
    margin: Annotated[float | None, snce_option("margin")] = None,
    tolerance: Annotated[float | None, snce_option("tolerance")] = None,
    replace_with: Annotated[str | None, snce_option("replace_with")] = None,
    by: Annotated[
        str,
        typer.Option(
            "--method",
            help="Method (`excise methods`). Several (uce,esd-x) make one eraser each; joined (snce+saemnesia), one.",
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
        typer.Option("--tokens", help="Vectors to train that SAE on. Default: 10,000,000.", **bounds.TRAINING_VECTORS),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the method: gamma=-2; with several methods, saemnesia.gamma=-2. Repeatable. `excise "
            "methods show METHOD` lists them.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="paper: use the paper's values where the defaults differ. --set and other options take precedence.",
        ),
    ] = None,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    accept_weak: Annotated[
        bool,
        typer.Option(
            "--accept-weak", help="Write the eraser even if it misses a limit of the verdict, marked as weak."
        ),
    ] = False,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make an eraser. The default method, SNCE, writes a few kilobytes that turn one neuron down.

    Settings that are not given take the method's defaults; `excise methods show METHOD` lists them.

    Before it is written, the eraser is tested: which of the concept's words it catches, how much of the concept's
    change its neuron carries, and which other prompts it touches. If it is too weak, nothing is written and the exit
    code is 3.

    With several concepts or methods, each eraser gets its own folder in --out. Existing ones are kept unless --force
    is given. --workers and --engine are for several. Erasers of other methods can be as large as the weights they
    change.
    """
    from excise.app.models.knowing import (
        explain_unsplit,
        is_snce,
        parts,
        refuse_few_pairs,
        refuse_not_known,
        refuse_unknown,
    )

    names = parts(concept)
    several = names is not None or "," in by
    if several:
        check_resumed(out)
    else:
        check_folder(out, force=force, own=FILES)

    from excise.app.erase.benign import with_benign
    from excise.app.erase.finding import chosen, erase_by, save, settings, settings_without_site
    from excise.app.erase.finding import erase as made_by
    from excise.app.erase.methods import chosen_on_the_bundled_model
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
        "replace_with": replace_with,
    }
    odd = sorted(chosen({**asked, "sae": sae, "site": site}))
    flag = f"--{odd[0].replace('_', '-')}" if odd else ""
    if (prompts or tokens) and (model is None or sae is not None or by != "snce" or several):
        raise ExciseError(
            f"--{'prompts' if prompts else 'tokens'} is only for training an SAE: with snce, --model and no --sae; "
            "leave it out"
        )
    if several:
        if mentions is not None or pairs is not None:
            raise ExciseError("--mentions and --pairs describe one concept; erase it separately")
        if odd:
            raise ExciseError(f"{flag} is for one eraser; with several, use --set snce.{odd[0]}=...")
        tasks = (names or [concept], by, out, given or [], kind, n, accept_weak, preset, controls)
        erase_several(*tasks, model, device, weights, workers, engine, retry_failed, force, json)
        return
    _, by_set = parsed(f"{by}:{','.join(given or [])}")
    options = {**preset_settings(by, preset), **by_set, **chosen(asked)}
    if twice := sorted(set(by_set) & set(odd)):
        raise ExciseError(f"--{twice[0].replace('_', '-')} and --set {twice[0]} are the same setting; give one")
    if unit == "concept" and options.get("source") == "concept":
        raise ExciseError("--source concept measures λ in codes; leave --unit out, or give --unit code")
    if align is not None and options.get("source") != "concept":
        raise ExciseError("--align only applies to --source concept; add that, or leave --align out")
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
        for word in refuse_not_known(wanted):
            note(f"warning: the model does not know {word}")
    if by == "snce":
        sae = Path(options.pop("sae")) if options.get("sae") else sae
        if model is None or sae is not None:
            settings_without_site(model, sae, **options)
        else:
            SNCEConfig(**options)
    elif odd:
        raise ExciseError(f"{flag} is a setting of snce; set those of {by} with --set, such as --set sae=FOLDER")
    wanted = with_benign(wanted, None, controls=controls)
    corpus = None if prompts is None else (prompts.name, list(read_prompts(prompts)))
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (side for pair in wanted.pairs for side in (pair.concept, pair.deconcept)))
    if model is not None and sae is None and by == "snce":
        sae = sae_of(pipe, model, site, corpus, tokens, device)
    wanted = with_benign(wanted, None if model is None else pipe, sae=sae)
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
        eraser, warned = made_by(pipe, wanted, settings(pipe, model=model, sae=sae, site=site, **options))
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
    tuned = None if model is None else chosen_on_the_bundled_model(by, options)

    def show() -> None:
        echo(f"{out}: “{eraser.concept}”, {size / 1000:.1f} kB, digest {eraser.digest[:12]}")
        for edit in eraser.edits:
            if edit.neurons:
                neurons = ", ".join(map(str, edit.neurons))
                name, amount = edit.coefficient
                how = f"{SYMBOLS.get(name, name)} = {amount:g}"
                if name == "lambda":
                    how = strength.in_words(amount, edit.site.key, eraser.created, eraser.measured)
                echo(f"neuron {neurons} at {edit.site.key}, {how}")
        for description, count in Counter(
            getattr(edit, "description", "") for edit in eraser.edits if not edit.neurons
        ).items():
            echo(description.format(count=count))
        table("Verdict", ("check", "found"), list(in_words(eraser.verdict)))
        if tuned is not None:
            echo(tuned)
        echo(f"WEAK: {'; '.join(eraser.weak)}" if eraser.weak else "The eraser meets every limit.")
        where = "" if model is None else f" --model {model}"
        echo(f"Next: excise generate{where} --eraser {out} --prompt PROMPT --compare --out sheet.png")

    emit(json, data, show)


SYMBOLS = {"lambda": "λ", "gamma": "γ"}


def _numbers(text: str) -> tuple[int, ...]:
    """Parse neurons such as "1,2". Raises ExciseError for anything but distinct whole numbers."""
    from excise.errors import ExciseError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ExciseError(f"--neurons cannot be {text!r}; give whole numbers, each once, such as 1,2")
    return tuple(map(int, parts))
