"""A run's page: what knowledge each method leaves, from a run of `probes`, or one joined to a run of Canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.app.bench.cards import Card, row
from excise.app.bench.figures import UNKNOWN, measured_of
from excise.bench.probes.probes import PROBES
from excise.bench.results import BASELINE
from excise.bench.run import Run
from excise.errors import ExciseError
from excise.statistics import behind, in_percent

FIGURES = {probe.figure: name for name, probe in PROBES.items()}
"""Names of probes by that of their figure."""
KEPT = ("suite", "size", "concepts", "drawn_with")
"""Parts of a probes run's results that stand in those of the run that they are joined to."""


@dataclass(frozen=True)
class Profile:
    """Each method's profile: a card with a line for each probe, whose meanings are (name, title)."""

    says: str
    """What was probed."""
    meanings: list[tuple[str, str]]
    cards: list[Card]


def joined(run: Run, probes: Run, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a probes run measured of another run's methods, as JSON for that run's results.

    Args:
        run: Run on the bundled model, such as one of Canvas.
        probes: Run of the suite `probes`.
        measured: What `excise.bench.results.results` returned of `probes`.

    Raises:
        ExciseError: The second run is not one of `probes`, the first is on another model, or they have no method in
            common with the same settings.
    """
    if probes.plan["suite"] != "probes":
        raise ExciseError(f"{probes.where()} is a run of {probes.plan['suite']}; --probes takes one of probes")
    if run.plan.get("model") is not None:
        raise ExciseError(f"{run.where()} is on {run.plan['model']}, and probes are on the bundled model")
    settings, other = (one.plan["configurations"] for one in (run, probes))
    common = [label for label in run.plan["methods"] if label in other and label != BASELINE]
    if not common:
        raise ExciseError(f"{probes.where()} has none of the methods of {run.where()}: {', '.join(other)}")
    for label in common:
        if settings[label] != other[label]:
            raise ExciseError(f"{label} has other settings in {probes.where()} than in {run.where()}; probe it again")
    own = {label: measured["methods"][label] for label in common}
    return {
        "run": probes.where(),
        **{name: measured[name] for name in KEPT},
        "methods": {label: {name: method[name] for name in ("figures", "missing")} for label, method in own.items()},
    }


def probed(measured: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any], dict[str, str]]:
    """Return the results of probes in a run's results, its own or those joined to it, the methods in them, and the
    probes by figure; without results all are empty."""
    found = measured if measured["suite"] == "probes" else measured.get("probes", {"methods": {}})
    methods = {label: method for label, method in found["methods"].items() if label != BASELINE}
    return found, methods, measured_of(FIGURES, found)


def profile(measured: Mapping[str, Any]) -> Profile | None:
    """Return the profiles of a run's methods, or None if its results have none."""
    found, methods, shown = probed(measured)
    if not shown:
        return None
    cards = []
    for label, method in methods.items():
        lacking = f"{method['missing']} pictures are not generated yet." if method["missing"] else ""
        cards.append(Card(label, lacking, [row(name, method["figures"].get(key)) for key, name in shown.items()]))
    where = f"From {found['run']}: size" if "run" in found else "Size"
    says = f"{where} {found['size']}, {', '.join(found['concepts'])}; {'; '.join(found['drawn_with'])}."
    return Profile(says, [(name, PROBES[name].family.title) for name in shown.values()], cards)


def lines(measured: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the methods with a profile, and a row for each probe: its name, then each method's share in words."""
    _, methods, shown = probed(measured)
    rows = [(name, *(_cell(one["figures"].get(key)) for one in methods.values())) for key, name in shown.items()]
    return list(methods), rows


def _cell(figure: Mapping[str, Any] | None) -> str:
    return UNKNOWN if not figure or figure["value"] is None else f"{in_percent(figure)}, n {behind(figure)}"
