"""`excise erase`, `excise sign`, `excise verify` and `excise methods`: making erasers and checking them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.cutting import note_cuts
from excise.cli.options import Count, Device, Json, Kind, Mentions, Model, PairsFile, Sae, SiteOption
from excise.cli.outputs import Force, check_absent, check_folder, check_resumed
from excise.cli.terminal import complain, emit, note, prose, table, training
from excise.cli.weights import choosing_weights
from excise.erasers.artefact import FILES

if TYPE_CHECKING:
    from excise.erasers import Signer

LAM = (
    "Strength: how far down. 1 takes out all that the concept's word changes, 1.25 (the default) a quarter more; what "
    "that is in codes depends on how much of the change the neuron carries, and is printed. With --unit code in codes."
)


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise erase gun --out gun-eraser")(erase)
    app.command(epilog="Example: excise sign gun-eraser --key private.pem")(sign)
    app.command(epilog="Example: excise verify gun-eraser")(verify)
    app.add_typer(methods, name="methods")


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
    k: Annotated[int | None, typer.Option("--k", help="How many neurons to turn down.", **bounds.K)] = None,
    lam: Annotated[float | None, typer.Option("--lam", help=LAM, **bounds.LAMBDA)] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            help="What strength 1 takes out: concept (all that its word changes, the default), or code (the neuron's "
            "own code: the paper's λ).",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Whose codes are subtracted: prompt, or concept (the paper's mode)."),
    ] = None,
    gate: Annotated[
        str | None, typer.Option("--gate", help="How codes are read from the states: whole, threshold, relu or topk.")
    ] = None,
    uncond: Annotated[
        str | None, typer.Option("--uncond", help="The unconditional branch: none, same or flip.")
    ] = None,
    align: Annotated[
        str | None,
        typer.Option("--align", help="For --source concept: its codes by position, or pooled over each mention."),
    ] = None,
    neurons: Annotated[
        str | None, typer.Option("--neurons", help='These neurons instead of the top k: "1,2". See `excise find`.')
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="How neurons are ranked; a wrong name lists them.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", help="Where the threshold lies from quiet (0) to typical (1) prompts.", **bounds.SHARE
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Share of its score a neuron may have without the concept; 0 is eq. 6.", **bounds.SHARE
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--method",
            help="See `excise methods`; two joined by + make one eraser: snce+saemnesia; several: uce,esd-x.",
        ),
    ] = "snce",
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of another method: gamma=-2, or saemnesia.gamma=-2 of one of several."),
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
    from excise.app.knowing import explain_unsplit, is_snce, parts, refuse_few_pairs, refuse_not_drawn

    names = parts(concept)
    several = names is not None or "," in by
    if several:
        check_resumed(out)
    else:
        check_folder(out, force=force, own=FILES)

    from excise.app.finding import chosen, erase_by, save, settings, unplaced
    from excise.app.finding import erase as made_by
    from excise.app.models import concept_named, load_pipeline
    from excise.concepts import check
    from excise.erasers import strength
    from excise.erasers.verdict import in_words
    from excise.errors import ExciseError
    from excise.methods.base import parsed

    if unit == "concept" and source == "concept":
        raise ExciseError("--source concept counts λ in codes; leave --unit out, or give --unit code")
    if align is not None and source != "concept":
        raise ExciseError("--align says how the concept's codes are read; add --source concept, or leave it out")
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
    if several:
        if mentions is not None or pairs is not None:
            raise ExciseError("--mentions and --pairs are one concept's; erase it by itself")
        if odd:
            raise ExciseError(
                f"--{odd[0]} is for one eraser; of several give snce's with --set, such as --set snce.{odd[0]}=..."
            )
        tasks = (names or [concept], by, out, given or [], kind, n, accept_weak)
        _several(*tasks, model, device, weights, jobs, force, json)
        return
    if mentions is None and pairs is None and (why := explain_unsplit(concept)) is not None:
        raise ExciseError(why)
    wanted = concept_named(concept, mentions, pairs, kind, n)
    for problem in check(wanted) if pairs is not None else ():
        note(f"warning: {pairs}: {problem}")
    if is_snce(by) and not accept_weak:
        with weak_is_3():
            refuse_few_pairs(wanted)
    if model is None and not accept_weak:
        with weak_is_3():
            for word in refuse_not_drawn(wanted):
                note(f"warning: this model does not draw {word}")
    if by != "snce":
        if odd:
            raise ExciseError(f"--{odd[0]} is a setting of snce; give {by}'s with --set, such as --set sae=FOLDER")
        parsed(f"{by}:{','.join(given or [])}")
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, (side for pair in wanted.pairs for side in (pair.concept, pair.deconcept)))
        with weak_is_3(), training() as line:
            more = {"bundled": model is None, "accept_weak": accept_weak}
            eraser = erase_by(pipe, wanted, by, given or [], out, progress=line, **more)
    elif given:
        raise ExciseError("--set is for other methods; snce's settings have options of their own")
    else:
        unplaced(model, sae, **chosen(asked))
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, (side for pair in wanted.pairs for side in (pair.concept, pair.deconcept)))
        eraser, warned = made_by(pipe, wanted, settings(pipe, model=model, sae=sae, site=site, **chosen(asked)))
        for warning in warned:
            note(f"warning: {warning}")
        with weak_is_3():
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
        for deed, count in Counter(getattr(edit, "deed", "") for edit in eraser.edits if not edit.neurons).items():
            typer.echo(deed.format(count=count))
        table("Verdict", ("what", "found"), list(in_words(eraser.verdict)))
        typer.echo(f"WEAK: {'; '.join(eraser.weak)}" if eraser.weak else "It meets every limit.")

    emit(json, data, show)


@contextmanager
def weak_is_3() -> Iterator[None]:
    """Exit with code 3 where an eraser is too weak to be written."""
    from excise.errors import WeakEraserError

    try:
        yield
    except WeakEraserError as error:
        complain(str(error))
        raise typer.Exit(WEAK) from error


def _several(
    names: list[str],
    by: str,
    out: Path,
    given: list[str],
    kind: str,
    n: int,
    accept_weak: bool,
    model: str | None,
    device: str,
    weights: Weights,
    jobs: int,
    anew: bool,
    json: bool,
) -> None:
    """Erasers of several concepts, or by several methods. Exit code 3 where one is too weak, 2 where one is refused."""
    from excise.app.many import Done, erase_all, plan
    from excise.errors import ExciseError

    methods = [part.strip() for part in by.split(",") if part.strip()]
    tasks = plan(names, methods, out, given, kind, n, accept_weak)

    def told(done: Done) -> None:
        how = {
            "made": f"{done.seconds:.0f} s, {done.bytes / 1000:.1f} kB",
            "kept": "there already, kept as it is; --force makes it anew",
        }
        weak = f"; WEAK: {done.why}" if done.why and done.state in how else ""
        note(f"{done.out}: {how.get(done.state, f'{done.state}: {done.why}')}{weak}")

    found = erase_all(tasks, model, device, jobs, told, weights, anew=anew)
    refused, weak = ([done for done in found if done.state == state] for state in ("refused", "weak"))

    def show() -> None:
        rows = [(d.concept, d.method, d.state, f"{d.seconds:.0f}", f"{d.bytes / 1000:.1f}") for d in found]
        table(f"Erasers in {out}", ("concept", "method", "", "s", "kB"), rows)

    emit(json, [done.to_json() for done in found], show)
    if refused:
        raise ExciseError(f"{len(refused)} of {len(found)} were refused, first {refused[0].out}: {refused[0].why}")
    if weak:
        complain(f"{len(weak)} of {len(found)} are too weak, first {weak[0].out}: {weak[0].why}")
        raise typer.Exit(WEAK)


SYMBOLS = {"lambda": "λ", "gamma": "γ"}
WEAK = 3
"""The exit code where an eraser was made that is too weak to be written."""


def _numbers(text: str) -> tuple[int, ...]:
    """The neurons in "1,2". Raises ExciseError for anything but whole numbers, each once."""
    from excise.errors import ExciseError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ExciseError(f"--neurons cannot be {text!r}; give whole numbers, each once, such as 1,2")
    return tuple(map(int, parts))


def sign(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.")],
    key: Annotated[Path, typer.Option("--key", help="File with your elliptic-curve private key, in PEM.")],
    password_env: Annotated[
        str | None, typer.Option("--password-env", help="Environment variable that holds the key's password.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Sign an eraser: model.sig beside its files proves to whoever has your public key that it is yours, unaltered."""
    import os

    from excise.erasers import eraser_folders
    from excise.erasers import sign as signed
    from excise.erasers.artefact import SIGNATURE
    from excise.errors import ExciseError

    if password_env is not None and password_env not in os.environ:
        raise ExciseError(f"there is no environment variable {password_env}; set it to the key's password")
    password = os.environ[password_env] if password_env is not None else None
    folders = eraser_folders(folder)
    check_absent(*(own / SIGNATURE for own in folders), force=force)
    rows = [{"folder": str(own), "signature": str(signed(own, key, password))} for own in folders]

    def show() -> None:
        for row in rows:
            typer.echo(f"{row['signature']}: give your public key to those who are to check it")

    emit(json, rows[0] if len(rows) == 1 else rows, show)


@choosing_weights
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.")],
    model: Model = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check the files alone; load no model and try no canary.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key (PEM) of the one who must have signed it.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="Keyless: who must have signed it, such as me@example.com. Asks sigstore."),
    ] = None,
    identity_provider: Annotated[
        str | None,
        typer.Option("--identity-provider", help="Keyless: the address of who vouches for the identity."),
    ] = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Check that an eraser is whole, fits the model and works on it; with --key or --identity, also who signed it.

    Exit code 2 where it is incomplete, altered or not signed as asked, 1 where it does not fit, does not work or was
    written as weak (`erase --accept-weak`); --files-only does not look at the last.
    """
    from excise.erasers.artefact import SIGNATURE, check_files, eraser_folders
    from excise.errors import ExciseError

    folders = eraser_folders(folder)
    signer = _signer(key, identity, identity_provider)
    if files_only and signer is None:
        found = {own: check_files(own) for own in folders}
    else:
        from excise.erasers import verify as checks_of

        found = {own: checks_of(own, signed_by=signer) for own in folders}
    broken = {own: next((c.detail for c in checks if not c.passed), None) for own, checks in found.items()}
    if not files_only and not all(broken.values()):
        from excise.app.models import load_pipeline
        from excise.erasers import Eraser
        from excise.sae import load

        whole = load(sae, device=device) if sae is not None else None
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, (text for own in folders if broken[own] is None for text in Eraser.load(own).canary))
        for own in folders:
            if broken[own] is None:
                found[own] = checks_of(own, pipe, sae=whole, signed_by=signer)
    for own in folders:
        if signer is None and (own / SIGNATURE).exists():
            note(f"{own} bears a signature that was not checked; name the signer with --key or --identity")

    def show() -> None:
        for own, checks in found.items():
            if broken[own] is None:
                rows = [(c.name, "passed" if c.passed else "FAILED", c.detail) for c in checks]
                table(f"Eraser {own}", ("check", "", "detail"), rows)

    data = [
        {
            "folder": str(own),
            "passed": all(c.passed for c in checks),
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
        }
        for own, checks in found.items()
    ]
    passed = all(row["passed"] for row in data)
    told = data[0] if len(data) == 1 else {"folder": str(folder), "passed": passed, "erasers": data}
    emit(json, told, show)
    if any(broken.values()):
        raise ExciseError("; ".join(why for why in broken.values() if why is not None))
    if not passed:
        raise typer.Exit(1)


def _signer(key: Path | None, identity: str | None, identity_provider: str | None) -> Signer | None:
    """The signer whom the options name."""
    if key is None and identity is None and identity_provider is None:
        return None
    from excise.erasers import Signer

    return Signer(key, identity, identity_provider)


methods = Commands(help="List the erasure methods; `excise methods cite NAME` prints BibTeX.")


@methods.callback(invoke_without_command=True, epilog="Example: excise methods --json")
def listed(context: typer.Context, json: Json = False) -> None:
    """List the erasure methods: how each is fitted, what it edits, and the licence of its authors' own code."""
    from excise.app.method_list import describe_methods

    if context.invoked_subcommand is not None:
        return
    rows = describe_methods(defaults=json)

    def show() -> None:
        for row in rows:
            licence = "without a licence" if row["licence"] == "none" else row["licence"]
            original = f"; its authors' code: {licence}" if licence else ""
            typer.echo(f"{row['name']} ({row['kind']})")
            prose(row["does"], indent=4)
            prose(f"edits {row['edits']}{original}", indent=4)
            if row["paper"]:
                prose(row["paper"], indent=4)

    emit(json, rows, show)


@methods.command(epilog="Example: excise methods cite esd-x")
def cite(name: Annotated[str, typer.Argument(help="A method's name, or several joined by +.")]) -> None:
    """Print a method's paper as BibTeX."""
    from excise.app.method_list import citation

    typer.echo(citation(name))
