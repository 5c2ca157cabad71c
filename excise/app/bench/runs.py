"""Benchmark runs: start, resume and report them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from excise.app.bench.page import render
from excise.app.bench.profile import joined
from excise.app.models.loader import Loader
from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import bundled_settings, sae_folder
from excise.bench.canvas.suite import Canvas
from excise.bench.hub import eval_results
from excise.bench.items.cases import all_cases, is_searched
from excise.bench.items.drawn_with import refuse_other_dtype
from excise.bench.items.entry import Entry
from excise.bench.items.making import Opened
from excise.bench.items.work import work
from excise.bench.machine import machine
from excise.bench.probes.suite import Probes
from excise.bench.protocols.suite import PROTOCOLS, ProtocolSuite
from excise.bench.protocols.unlearncanvas import UnlearnCanvas
from excise.bench.results import BASELINE, results, table
from excise.bench.run import Run
from excise.bench.suite import Suite
from excise.drawn import without_checker
from excise.errors import ExciseError
from excise.methods import METHODS
from excise.methods.lookup import settings_of
from excise.plugins import plugins
from excise.reference import data

ALL = "all"
"""Stands for every method that `excise methods` lists."""

BATCHED = ("unlearncanvas", *PROTOCOLS)
"""Suites whose plans name the batch since it is a setting. Before, it was one picture, in another order of cases."""


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
    """Create a run, or open the same run if it was started before. The baseline `none` is always included.

    Args:
        folder: Folder of the run.
        suite: "canvas", "probes", one of `excise.bench.protocols.suite.PROTOCOLS`, or a plugin's suite.
        size: Size of the suite.
        methods: Methods with their settings; "all" stands for every method that `excise methods` lists.
        concepts: Concepts to erase; by default all of the suite.
        settings: The suite's settings that differ from its defaults, such as `steps` or an attack's budget.
        model: Folder or hub name of a pipeline; by default the bundled model.
        sae: SAE of that model.
        weights: How to load the model. They are part of the plan, so that every worker uses one precision.

    Raises:
        ExciseError: The suite, size, a method, setting or concept is unknown, the folder holds something else, or the
            bundled model is not installed.
    """
    if model is None:
        data.folder()  # fail before anything is written if the bundled model is not installed
    entries = [Entry.parse(text) for text in dict.fromkeys((BASELINE, *_named(methods)))]
    plan: dict[str, Any] = {"suite": suite, "size": size, "settings": dict(settings or {})}
    chosen = _suite(plan)
    if suite in ("canvas", "probes") and model is not None:
        raise ExciseError(f"{suite} is made for the bundled model; leave out --model, or run a protocol")
    plan |= {"settings": dict(chosen.settings), "model": model, "sae": str(sae_folder(model, sae)) if model else None}
    names = tuple(concepts or chosen.concepts(size))
    for name in names:
        chosen.cases(name, size)
    plan |= {"concepts": list(names), "methods": [entry.label for entry in entries], "safety_checker": None}
    if weights != DEFAULT:
        plan["weights"] = asdict(weights)
    plan["configurations"] = configurations(plan)
    return Run.create(folder, plan)


def _named(methods: Sequence[str]) -> list[str]:
    """Return the methods with `all` replaced by the names of all built-in methods."""
    return [name for text in methods for name in (METHODS if text == ALL else (text,))]


def resume(
    run: Run,
    progress: Callable[[float], Any] | None = None,
    device: str = "cpu",
    engine: str | None = None,
    workers: int = 1,
) -> None:
    """Complete a run on an engine (`excise.engine.run`). Blocks generated before an interruption (Ctrl-C) are kept.

    Raises:
        excise.bench.items.work.Unfinished: Parts of the run failed.
        ExciseError: The disk cannot be written, a method's defaults changed since the run was started, the model's
            dtype differs from that of the earlier pictures, or an earlier version began the run.
    """
    now = configurations(run.plan)
    for label, configuration in run.plan["configurations"].items():
        if now[label] != configuration:
            raise ExciseError(f"the defaults of {label} changed since {run.where()} was started; start another run")
    if run.plan["suite"] in BATCHED and "batch" not in run.plan["settings"] and not run.is_finished:
        raise ExciseError(
            f"{run.where()} was begun by a version of Excise that generated pictures one by one, and is not finished; "
            "finish it with that version, or start another run"
        )
    opening = Opening(run.folder, device)
    load = partial(opening.load, run)
    how: dict[str, Any] = {"engine": engine, "workers": workers, "needs": opening.loader(run).needs}
    work(run, suite_of(run), load, _defaults(run.plan), progress, opening=opening, **how)


def configurations(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every setting of a run's rows, by label."""
    return {label: Entry.parse(label).configuration(defaults) for label, defaults in _defaults(plan).items()}


def _defaults(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that the labels of a run's rows do not give: the bundled model's, or the SAE of its model."""
    on_own = {"snce": {"sae": plan["sae"]}}
    entries = [Entry.parse(label) for label in plan["methods"]]
    return {
        one.label: settings_of(one.method, bundled_settings(one.preset) if plan["model"] is None else on_own)
        for one in entries
    }


@dataclass(frozen=True)
class Opening:
    """Loads what a worker of a run needs; it is pickled, and the model is not."""

    folder: Path
    device: str

    def __call__(self) -> Opened:
        run = Run(self.folder)
        return Opened(suite_of(run), self.load(run), _defaults(run.plan))

    def loader(self, run: Run) -> Loader:
        return Loader(run.plan["model"], self.device, Weights(**run.plan.get("weights", {})))

    def load(self, run: Run) -> Any:
        """Load the run's model. Raises ExciseError if the run has pictures in another dtype."""
        pipe = without_checker(self.loader(run)())
        refuse_other_dtype(run, pipe)
        return pipe


def total(run: Run) -> int:
    """Return how many pictures the run has in total, as far as its attacks are known."""
    suite = suite_of(run)
    units = run.all_units
    pending = (unit for unit in units if unit.method == BASELINE and not is_searched(run, unit.file))
    foreseen = sum(len(suite.baseline(unit.concept, run.plan["size"])) for unit in pending)
    return foreseen + sum(len(all_cases(run, suite, unit)) for unit in units)


def measured(run: Run) -> dict[str, Any]:
    """Return a run's results so far (`excise.bench.results.results`), without writing anything."""
    return results(run, suite_of(run))


def report(run: Run, probes: Run | None = None) -> dict[str, Any]:
    """Compute a run's results. Write results.json, results.csv, report.html and .eval_results/ into its folder.

    With a run of the suite `probes`, the results have what it measured of the same methods under `probes`. Raises
    ExciseError if the two do not belong together.
    """
    for one in (run, *([probes] if probes else [])):
        if one.remote is not None:
            one.remote.pull(exact=True)
    found = measured(run) | {"machine": machine(), "date": datetime.date.today().isoformat()}
    if probes is not None:
        found["probes"] = joined(run, probes, measured(probes))
    run.write(run.folder / "results.json", json.dumps(found, indent=1) + "\n")
    run.write(run.folder / "results.csv", table(found))
    for name, text in eval_results(found).items():
        run.write(run.folder / ".eval_results" / name, text)
    run.write(run.folder / "report.html", render(run, suite_of(run), found))
    return found


def suite_of(run: Run) -> Suite:
    """Return the suite that the run was started with. Earlier versions generated the protocols' pictures one by one."""
    if run.plan["suite"] in BATCHED:
        return _suite({**run.plan, "settings": {"batch": 1, **run.plan["settings"]}})
    return _suite(run.plan)


def _suite(plan: Mapping[str, Any]) -> Suite:
    name, settings = plan["suite"], plan["settings"]
    if name == "canvas":
        return Canvas.from_json(settings)
    if name == "probes":
        return _build(Probes, name, settings, set())
    if name == "unlearncanvas":
        return _build(UnlearnCanvas, name, settings, {"style_classifier", "object_classifier"})
    others = plugins("excise.suites")
    if name in others:
        suite: Suite = others[name](settings)
        return suite
    if name not in PROTOCOLS:
        known = ", ".join(("canvas", "probes", "unlearncanvas", *PROTOCOLS, *others))
        raise ExciseError(f"unknown suite {name!r}; choose from {known}")
    return _build(partial(ProtocolSuite, name=name), name, settings, {"prompts"})


def _build(suite: Callable[..., Suite], name: str, settings: Mapping[str, Any], needed: set[str]) -> Suite:
    missing = sorted(needed - {key for key, value in settings.items() if value is not None})
    if missing:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in missing)
        raise ExciseError(f"{name} needs its published files; name them with {options} (docs/how-to/sd14.md)")
    try:
        return suite(**{key: value for key, value in settings.items() if key != "name"})
    except TypeError as error:
        raise ExciseError(f"{name} does not take these settings: {error}") from error
