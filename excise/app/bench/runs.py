"""Starting, resuming and reporting benchmark runs with what a person named."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from excise.app.bench.page import render
from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import bundled_settings, load_pipeline, sae_folder
from excise.bench.canvas.suite import Canvas
from excise.bench.hub import eval_results
from excise.bench.machine import machine
from excise.bench.protocols.suite import PROTOCOLS, ProtocolSuite
from excise.bench.protocols.unlearncanvas import UnlearnCanvas
from excise.bench.results import BASELINE, results, table
from excise.bench.run import Run, Unit
from excise.bench.suite import Suite
from excise.bench.worker import Entry, all_cases, is_searched, refuse_other_dtype, work
from excise.drawn import without_checker
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.methods import METHODS
from excise.plugins import plugins
from excise.reference import data

ALL = "all"
"""In the place of methods' names: every one that `excise methods` lists."""


def start(
    folder: Path,
    suite: str,
    size: str,
    methods: Sequence[str],
    concepts: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    sae: Path | None = None,
    weights: Weights = DEFAULT,
) -> Run:
    """A run with everything still to do, or the same one where it was begun before; `none` always takes part, and all
    that `excise methods` lists in the place of `all`.

    `suite` is canvas, one of `excise.bench.protocols.suite.PROTOCOLS` or a plugin's; `settings` are its own, such as
    `steps` or an attack's budget, where they are not its defaults. `model` and its `sae` are the bundled ones unless
    named; `weights` go into the plan, so that every worker draws in one precision. Raises ExciseError for an unknown
    suite, size, method, setting or concept, where the folder is taken, or where the bundled model is not installed.
    """
    if model is None:
        data.folder()  # raises where the bundled model is not installed, before anything is written
    entries = [Entry.parse(text) for text in dict.fromkeys((BASELINE, *_named(methods)))]
    plan: dict[str, Any] = {"suite": suite, "size": size, "settings": dict(settings or {})}
    chosen = _suite(plan)
    if suite == "canvas" and model is not None:
        raise ExciseError("canvas is made for the bundled model; leave --model out, or run a protocol")
    plan |= {"settings": dict(chosen.settings), "model": model, "sae": str(sae_folder(model, sae)) if model else None}
    names = tuple(concepts or chosen.concepts(size))
    for name in names:
        chosen.cases(name, size)
    plan |= {"concepts": list(names), "methods": [entry.label for entry in entries]}
    if not _begun_with_checker(folder):
        plan["safety_checker"] = None
    if weights != DEFAULT:
        plan["weights"] = asdict(weights)
    plan["configurations"] = {entry.label: entry.configuration for entry in entries}
    # The baseline first: without it no other picture counts.
    units = [Unit(entry.label, name) for entry in entries for name in names]
    return Run.create(folder, plan, units)


def _begun_with_checker(folder: Path) -> bool:
    """Whether the folder's run was begun before runs were drawn without the model's safety checker."""
    return (Path(folder) / "run.json").exists() and "safety_checker" not in Run(folder).plan


def _named(methods: Sequence[str]) -> list[str]:
    """The methods, every one of ours in the place of `all`."""
    return [name for text in methods for name in (METHODS if text == ALL else (text,))]


def resume(run: Run, progress: Callable[[float], Any] | None = None, device: str = "cpu") -> None:
    """Do what is left of a run. Ctrl-C keeps what was drawn.

    Raises `excise.bench.worker.Unfinished` where units failed, and ExciseError where the disk refuses, a method's
    defaults are no longer those the run was started with, or the model's dtype is not the one it was drawn in so far.
    """
    for label, configuration in run.plan["configurations"].items():
        if Entry.parse(label).configuration != configuration:
            raise ExciseError(f"the defaults of {label} changed since {run.folder} was started; start another run")
    model = run.plan["model"]
    weights = Weights(**run.plan.get("weights", {}))
    defaults = bundled_settings() if model is None else {"snce": {"sae": run.plan["sae"]}}

    def load() -> Any:
        pipe = without_checker(load_pipeline(model, device, weights))
        refuse_other_dtype(run, pipe)
        return pipe

    work(run, suite_of(run), load, defaults, progress)


def total(run: Run) -> int:
    """How many pictures a run has in all, as far as its attacks have been made."""
    suite = suite_of(run)
    units = [Unit(method, concept) for method in run.plan["methods"] for concept in run.plan["concepts"]]
    own = (unit for unit in units if unit.method == BASELINE and not is_searched(run, unit.file))
    foreseen = sum(len(suite.baseline(unit.concept, run.plan["size"])) for unit in own)
    return foreseen + sum(len(all_cases(run, suite, unit)) for unit in units)


def measured(run: Run) -> dict[str, Any]:
    """What a run has measured so far, as `excise.bench.results.results` counts it; nothing is written."""
    return results(run, suite_of(run))


def report(run: Run) -> dict[str, Any]:
    """Count a run's figures; writes results.json, results.csv, report.html and .eval_results/ into its folder."""
    told = measured(run) | {"machine": machine(), "date": datetime.date.today().isoformat()}
    write_atomic(run.folder / "results.json", json.dumps(told, indent=1) + "\n")
    write_atomic(run.folder / "results.csv", table(told))
    for name, text in eval_results(told).items():
        write_atomic(run.folder / ".eval_results" / name, text)
    write_atomic(run.folder / "report.html", render(run, suite_of(run), told))
    return told


def suite_of(run: Run) -> Suite:
    """The suite a run was started with."""
    return _suite(run.plan)


def _suite(plan: Mapping[str, Any]) -> Suite:
    name, settings = plan["suite"], plan["settings"]
    if name == "canvas":
        return Canvas.from_json(settings)
    if name == "unlearncanvas":
        return _made(UnlearnCanvas, name, settings, {"style_classifier", "object_classifier"})
    others = plugins("excise.suites")
    if name in others:
        made: Suite = others[name](settings)
        return made
    if name not in PROTOCOLS:
        known = ", ".join(("canvas", "unlearncanvas", *PROTOCOLS, *others))
        raise ExciseError(f"unknown suite {name!r}; it is one of {known}")
    return _made(partial(ProtocolSuite, name=name), name, settings, {"prompts"})


def _made(suite: Callable[..., Suite], name: str, settings: Mapping[str, Any], needed: set[str]) -> Suite:
    lacking = sorted(needed - {key for key, value in settings.items() if value is not None})
    if lacking:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in lacking)
        raise ExciseError(f"{name} needs its published files; name them with {options} (docs/how-to/sd14.md)")
    try:
        return suite(**{key: value for key, value in settings.items() if key != "name"})
    except TypeError as error:
        raise ExciseError(f"{name} has no such settings: {error}") from error
