"""`excise bench run`, `resume` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import NOT_PASSED, Commands
from excise.cli.options import Device, Json, Model, Sae
from excise.cli.terminal import complain, emit, note, progress, table
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError
from excise.outputs import check_resumed

if TYPE_CHECKING:
    from excise.bench.bars import Bar
    from excise.bench.gates import Gate
    from excise.bench.run import Run

app = Commands(help="Compare erasure methods in one harness.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the run.")]
Gates = Annotated[
    str | None,
    typer.Option("--gate", help="Exit with code 3 unless every method but none passes: 'asr<0.05,ira_ratio>0.98'."),
]
On = Annotated[
    str, typer.Option("--gate-on", help="bound: the worse end of the 95 % interval must hold; point: the value alone.")
]
COLUMNS = {
    "ua": "UA",
    "ira": "IRA",
    "cra": "CRA",
    "mixed": "mixed",
    "asr": "attacks",
    "identical": "identical",
}
LEFT = {
    "left_other": "another object",
    "left_empty": "empty scene",
    "left_unrecognisable": "unrecognisable",
    "background": "background kept",
    "left_class": "another class",
    "left_unsure": "unsure class",
    "style": "style kept",
    "objects": "objects kept",
}


@app.command(epilog="Example: excise bench run canvas --methods snce --size quick --out run")
@choosing_weights
def run(
    suite: Annotated[
        str, typer.Argument(help="canvas, on the bundled model; or i2p, i2p-nudity, p4d, ring-a-bell, mma, coco ...")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; the same call goes on where it stopped.")],
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", help="A method, one with settings (snce:k=10,lam=2), or all. Give it several times."),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="quick, standard or full.")] = "quick",
    concepts: Annotated[
        str | None, typer.Option("--concepts", help='These concepts instead of the size\'s own: "gun, cat".')
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Prompts a family, instead of the size's number.", **bounds.COUNT)
    ] = None,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Whether Canvas's attacks that search take part.")
    ] = True,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Denoising steps; default 20, for a protocol 50.", **bounds.STEPS)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="A protocol's published prompts: a file, or hf://datasets/OWNER/NAME/FILE."),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="A CLIP model for a protocol: Q16's, or the CLIP score's.")
    ] = None,
    q16: Annotated[Path | None, typer.Option("--q16", help="Soft prompts of Q16, as safetensors.")] = None,
    detector: Annotated[
        str | None, typer.Option("--detector", help="Instead of a protocol's own: nudenet, open-nsfw, q16 ...")
    ] = None,
    style_classifier: Annotated[
        Path | None, typer.Option("--style-classifier", help="UnlearnCanvas's checkpoint for styles.")
    ] = None,
    object_classifier: Annotated[
        Path | None, typer.Option("--object-classifier", help="UnlearnCanvas's checkpoint for objects.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="A protocol's first so many prompts.", **bounds.COUNT)
    ] = None,
    model: Model = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    gate: Gates = None,
    gate_on: On = "bound",
    json: Json = False,
) -> None:
    """Draw and judge every prompt with every method, beside the unerased model."""
    check_resumed(out)
    from excise.app.bench.runs import start
    from excise.app.erase.finding import chosen
    from excise.bench import gates

    conditions = gates.parse(gate, gate_on) if gate else []
    names = [name.strip() for name in concepts.split(",") if name.strip()] if concepts else None
    asked: dict[str, Any] = {
        "steps": steps,
        "prompts": n if suite == "canvas" else prompts,
        "limit": limit,
        "clip": clip,
    }
    files = {"q16": q16, "style_classifier": style_classifier, "object_classifier": object_classifier}
    asked |= {"detector": detector, **{name: path and str(path) for name, path in files.items()}}
    if not search:
        asked["searches"] = False
    opened = start(out, suite, size, methods or ["snce"], names, chosen(asked), model, sae, weights)
    measured = _go_on(opened, json, device)
    if conditions and opened.units("doing"):
        raise ExciseError(f"gates are judged when all is done; call `excise bench report {out} --gate` then")
    _pass(measured, conditions)


@app.command(epilog="Example: excise bench resume run")
def resume(
    folder: Folder,
    device: Device = "cpu",
    retry: Annotated[
        bool, typer.Option("--retry", help="Also what failed so often that it was set aside; every try starts anew.")
    ] = False,
    json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, or help other workers with it."""
    from excise.bench.run import Run

    run = Run(folder)
    if retry:
        run.retry()
    _go_on(run, json, device)


@app.command(epilog="Example: excise bench report run")
def report(folder: Folder, gate: Gates = None, gate_on: On = "bound", json: Json = False) -> None:
    """Count what a run has measured so far; writes report.html, results.json and results.csv into it."""
    from excise.bench import gates
    from excise.bench.run import Run

    conditions = gates.parse(gate, gate_on) if gate else []
    _pass(_report(Run(folder), json), conditions)


@app.command(epilog="Example: excise bench fid run-coco --method snce:lam=0.8")
def fid(
    folder: Folder,
    method: Annotated[str, typer.Option("--method", help="A method of the run.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Folder of pictures. Default: the unerased model's own.")
    ] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """KID of a method's pictures, and FID from 2,048 on; needs torch-fidelity, the extra `fid`."""
    from excise.app.bench.fid import LEAST, fid
    from excise.bench.run import Run

    told = fid(Run(folder), method, against, device)
    few = f"none (under {LEAST:,} pictures a side)"
    distance = few if told["fid"] is None else f"{told['fid']:.2f}"
    counts = f"n {told['pictures']} and {told['others']}"
    line = f"{method} against {told['against']}: FID {distance}, KID {told['kid']:.5f}, {counts}"
    emit(json, told, lambda: typer.echo(line))


def _pass(measured: dict[str, Any], conditions: list[Gate]) -> None:
    """Name every condition that is missed, and exit with code 3 if there is one."""
    from excise.bench.results import BASELINE

    missed = [
        f"{label}: {condition.missed(method['figures'])}"
        for label, method in measured["methods"].items()
        for condition in conditions
        if label != BASELINE and not condition.holds(method["figures"])
    ]
    for line in missed:
        complain(line, kind="gate")
    if missed:
        raise typer.Exit(NOT_PASSED)


def _go_on(run: Run, as_json: bool, device: str) -> dict[str, Any]:
    from excise.app.bench.runs import resume, total
    from excise.bench.worker import Unfinished

    unfinished: Unfinished | None = None
    with progress("pictures", total(run)) as advance:
        advance(len(run.records()))
        try:
            resume(run, advance, device)
        except Unfinished as error:
            unfinished = error
    measured = _report(run, as_json)
    if unfinished is not None:
        raise unfinished
    if left := run.units("doing"):
        names = ", ".join(f"{unit.method} on {unit.concept}" for unit in left[:5])
        note(f"other workers are at {names}{' and more' if len(left) > 5 else ''}; they finish the run")
    return measured


def _report(run: Run, as_json: bool) -> dict[str, Any]:
    from excise.app.bench.figures import COSTS, costs, cut_prompts, plain
    from excise.app.bench.runs import report
    from excise.bench.bars import CANVAS, standings
    from excise.bench.results import BASELINE, outside
    from excise.bench.statistics import behind

    measured = report(run)

    def show() -> None:
        methods = measured["methods"]
        title = f"{measured['suite']}, {measured['size']}"
        for says, columns in (("means over concepts, %", COLUMNS), ("what is left without the target, %", LEFT)):
            known = {n: column for n, column in columns.items() if any(n in own["figures"] for own in methods.values())}
            if known:
                shown = columns if columns is COLUMNS else known
                rows = [(label, *(_cell(own["figures"].get(n)) for n in shown)) for label, own in methods.items()]
                table(f"{title}: {says}", ("method", *shown.values()), rows)
        bars = CANVAS if measured["suite"] == "canvas" else {}
        told = {label: standings(own["figures"], bars) for label, own in methods.items() if label != BASELINE}
        rows = [
            (label, _bar(name, bars[name]), standing or "n/a", behind(methods[label]["figures"][name]))
            for label, by in told.items()
            for name, standing in by.items()
        ]
        if rows:
            table("Bars, by the 95 % interval", ("method", "bar", "", "n"), rows)
        rows = [(label, plain(own["figures"].get("frechet")), *costs(own["cost"])) for label, own in methods.items()]
        table("What it moved and what it cost", ("method", "Fréchet distance", *COSTS), rows)
        for label, method in methods.items():
            if method["cut"] or method["unread"]:
                note(f"{label}: {cut_prompts(method)}")
            what = outside(method) | {"concepts refused": len(method["refused"])}
            if any(what.values()):
                note(f"{label}, in no figure: {', '.join(f'{name} {n}' for name, n in what.items() if n)}")
        note(f"in {run.folder / 'report.html'}, results.json and results.csv")

    emit(as_json, measured, show)
    return measured


def _bar(name: str, bar: Bar) -> str:
    own = name.removesuffix("_ratio")
    return f"{COLUMNS.get(own, own)}{', of none,' * (own != name)} {bar.limit} {100 * bar.bound:g} %"


def _cell(figure: dict[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return "n/a"
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
