"""`excise bench`: run, resume and report benchmarks; FID; Q16's soft prompts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import NOT_PASSED, Commands
from excise.cli.options import Device, Engine, Force, Json, Model, Sae, Workers, listed
from excise.cli.terminal import complain, echo, emit, note, progress
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError
from excise.outputs import check_file, check_resumed
from excise.remote import url_of

if TYPE_CHECKING:
    from excise.bench.gates import Gate
    from excise.bench.run import Run

app = Commands(help="Benchmark erasure methods side by side.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the run.")]
Gates = Annotated[
    str | None,
    typer.Option(
        "--gate",
        help="Exit with code 3 unless every method but the baseline `none` passes: 'asr<0.05,ira_ratio>0.98'.",
    ),
]
On = Annotated[
    str,
    typer.Option("--gate-on", help="bound: the worse end of the 95 % interval must pass; point: the value must pass."),
]
Q16 = (".safetensors",)


@app.command(epilog="Example: excise bench run canvas --methods snce --size quick --out run")
@choosing_weights
def run(
    suite: Annotated[
        str,
        typer.Argument(
            help="canvas or probes (on the bundled model), or a published protocol: i2p, i2p-nudity, p4d, "
            "ring-a-bell, mma, coco ..."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; repeat the command to resume it.")],
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", help="A method, a method with settings (snce:k=10,lam=2), or all. Repeatable."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Size of the run: quick, standard, full, or frozen (the test set).")
    ] = "quick",
    concepts: Annotated[
        str | None, typer.Option("--concepts", help='Concepts to erase: "gun, cat". Default: those of --size.')
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Prompts per family. Default: that of --size.", **bounds.COUNT)
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            "--families",
            help='Families of prompts (Canvas, without searches) or probes: "leetspeak, emoji". Default: the usual.',
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Whether to run Canvas's attacks that search for prompts.")
    ] = True,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Denoising steps. Default: 20; for a protocol, 50.", **bounds.STEPS),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="The protocol's published prompts: a file, or hf://datasets/OWNER/NAME/FILE."),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="CLIP model for the protocol's Q16 detector or CLIP score.")
    ] = None,
    q16: Annotated[
        Path | None, typer.Option("--q16", help="Q16's soft prompts, from `excise bench convert-q16`.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option("--detector", help="Detector instead of the protocol's: nudenet, open-nsfw, q16 ...")
    ] = None,
    style_classifier: Annotated[
        Path | None, typer.Option("--style-classifier", help="UnlearnCanvas's checkpoint for styles.")
    ] = None,
    object_classifier: Annotated[
        Path | None, typer.Option("--object-classifier", help="UnlearnCanvas's checkpoint for objects.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Pictures generated at once. Default: 16; canvas 32, probes 8.", **bounds.BATCH),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use only the protocol's first prompts, this many.", **bounds.COUNT)
    ] = None,
    model: Model = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    gate: Gates = None,
    gate_on: On = "bound",
    json: Json = False,
) -> None:
    """Generate and judge pictures for every prompt with every method, and with the unerased model."""
    if url_of(out) is None:
        check_resumed(out)
    from excise.app.bench.runs import start
    from excise.app.erase.finding import chosen
    from excise.bench import gates
    from excise.engine import check_engine

    check_engine(engine, workers)
    conditions = gates.parse(gate, gate_on) if gate else []
    names = listed(concepts) if concepts else None
    asked: dict[str, Any] = {
        "steps": steps,
        "prompts": n if suite in ("canvas", "probes") else prompts,
        "limit": limit,
        "batch": batch,
        "clip": clip,
    }
    files = {"q16": q16, "style_classifier": style_classifier, "object_classifier": object_classifier}
    asked |= {"detector": detector, **{name: path and str(path) for name, path in files.items()}}
    if families:
        asked["only"] = listed(families)
    if not search or (families and suite == "canvas"):
        asked["searches"] = False
    opened = start(out, suite, size, methods or ["snce"], names, chosen(asked), model, sae, weights)
    _pass(_go_on(opened, json, device, engine, workers), conditions)


@app.command(epilog="Example: excise bench resume run")
def resume(
    folder: Folder,
    device: Device = "cpu",
    workers: Workers = 1,
    engine: Engine = None,
    retry: Annotated[
        bool, typer.Option("--retry", "--retry-failed", help="Also try again what failed before and was set aside.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The run's model, as given to `excise bench run`. Default: the bundled model."),
    ] = None,
    json: Json = False,
) -> None:
    """Resume a run that was stopped or killed.

    A run folder may come from somebody else, so no other model is loaded than the one named here.
    """
    from excise.bench.run import Run
    from excise.engine import check_engine

    check_engine(engine, workers)
    run = Run(folder)
    if model != run.plan.get("model"):
        raise ExciseError(_other_model(folder, run.plan.get("model"), model))
    if retry:
        run.retry()
    _go_on(run, json, device, engine, workers)


def _other_model(folder: Path, started: object, given: str | None) -> str:
    """Return the message that a run was started with another model, and the exact option to give.

    The name is quoted for a shell, because a stranger may have written it and a user will paste it.
    """
    if started is None:
        return f"{folder} was started with the bundled model, not with {given}; leave out --model"
    option = f"--model {shlex.quote(str(started))}"
    instead = "the bundled model" if given is None else given
    return f"{folder} was started with {option}, not with {instead}; if you trust that model, add {option}"


@app.command(epilog="Example: excise bench report run")
def report(
    folder: Folder,
    probes: Annotated[
        Path | None,
        typer.Option("--probes", help="Folder of a run of the suite probes: adds each method's profile to the report."),
    ] = None,
    gate: Gates = None,
    gate_on: On = "bound",
    json: Json = False,
) -> None:
    """Summarise what a run has measured so far, and write report.html, results.json and results.csv into it."""
    from excise.bench import gates
    from excise.bench.run import Run

    conditions = gates.parse(gate, gate_on) if gate else []
    _pass(_report(Run(folder), json, Run(probes) if probes else None), conditions)


@app.command(epilog="Example: excise bench fid run-coco --method snce:lam=0.8")
def fid(
    folder: Folder,
    method: Annotated[str, typer.Option("--method", help="Method of the run.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Folder of pictures to compare with. Default: the unerased model's."),
    ] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Compute KID of a method's pictures, and FID from 2,048 pictures on. Needs torch-fidelity (extra `fid`)."""
    from excise.app.bench.fid import LEAST, fid
    from excise.bench.run import Run

    distances = fid(Run(folder), method, against, device)
    few = f"none (under {LEAST:,} pictures a side)"
    distance = few if distances["fid"] is None else f"{distances['fid']:.2f}"
    counts = f"n {distances['pictures']} and {distances['others']}"
    line = f"{method} against {distances['against']}: FID {distance}, KID {distances['kid']:.5f}, {counts}"
    emit(json, distances, lambda: echo(line))


@app.command("convert-q16", epilog="Example: excise bench convert-q16 prompts.p --out q16.safetensors")
def convert_q16(
    source: Annotated[Path, typer.Argument(help="Q16's published prompts.p, a pickle.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .safetensors.")] = Path("q16.safetensors"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert Q16's published soft prompts from a pickle to safetensors, for `excise bench run --q16`.

    Reads one NumPy array and runs no code from the pickle. A pickle that holds anything else is refused.
    """
    check_file(out, Q16, force=force)
    from excise.bench.protocols.clip import convert_q16

    convert_q16(source, out)
    emit(json, {"out": str(out)}, lambda: echo(f"wrote {out}"))


def _pass(measured: dict[str, Any], conditions: list[Gate]) -> None:
    """Print every missed condition and every method that refused a concept, and exit with code 3 if there is one."""
    from excise.bench.results import BASELINE

    missed = [
        f"{label}: {condition.missed(method['figures'])}"
        for label, method in measured["methods"].items()
        for condition in conditions
        if label != BASELINE and not condition.holds(method["figures"])
    ]
    concepts = len(measured["concepts"])
    for label, method in measured["methods"].items() if conditions else ():
        if refused := method["refused"]:
            missed.append(
                f"{label}: refused {len(refused)} of {concepts} concepts ({', '.join(refused)}), and a gate needs all"
            )
    for line in missed:
        complain(line, kind="gate")
    if missed:
        raise typer.Exit(NOT_PASSED)


def _go_on(run: Run, as_json: bool, device: str, engine: str | None, workers: int) -> dict[str, Any]:
    from excise.app.bench.runs import resume, total
    from excise.bench.items.work import Unfinished

    if run.remote is not None:
        note(f"this machine works on a copy of {run.where()} in {run.folder}")
    unfinished: Unfinished | None = None
    with progress("pictures", total(run)) as advance:
        advance(len(run.records()))
        try:
            resume(run, advance, device, engine, workers)
        except Unfinished as error:
            unfinished = error
    measured = _report(run, as_json)
    if unfinished is not None:
        raise unfinished
    return measured


def _report(run: Run, as_json: bool, probes: Run | None = None) -> dict[str, Any]:
    from excise.app.bench.runs import report
    from excise.cli.bench.printing import show

    if run.named:
        note(f"{run.where('run.json')} names {', '.join(f'{key} {value}' for key, value in run.named.items())}")
    measured = report(run, probes)
    emit(as_json, measured, lambda: show(run, measured))
    return measured
