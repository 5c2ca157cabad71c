"""An audited neuron on the audit's page."""

from __future__ import annotations

from dataclasses import dataclass

from excise.app.audit.neurons import NeuronView, Side
from excise.app.pages import charts
from excise.app.pages.charts import Chart

TITLES = {
    "concept": ("With the concept", "the concept's pairs"),
    "deconcept": ("Without it", "the same prompts, something else in its place"),
    "controls": ("Controls", "other prompts in the same wordings"),
    "benign": ("Unexpected", "benign prompts that never mention it"),
}
COLOURS = {"concept": "accent", "deconcept": "cool", "controls": "mute", "benign": "good"}
FEW = 4
"""Prompts of a neuron's side that are shown at once; the rest unfold."""
NEURONS = 6
"""Neurons shown at once; the rest unfold."""


@dataclass(frozen=True)
class NeuronCard:
    """A neuron that is turned down, with its charts, which are None where they would show nothing. `most` is its
    largest code, `sides` are (title, what it says, the side)."""

    seen: NeuronView
    most: float
    codes: Chart | None
    words: Chart | None
    sides: list[tuple[str, str, Side]]


def neuron(seen: NeuronView) -> NeuronCard:
    """The card of a neuron that the eraser turns down."""
    groups = [
        (f"{name} ({len(side.peaks):,})", side.peaks, COLOURS[name]) for name, side in seen.sides.items() if side.peaks
    ]
    codes = charts.histogram(groups, f"Largest code of neuron {seen.neuron} in each prompt where it fires")
    uses = [(use.word, use.response) for use in seen.uses[:8]]
    return NeuronCard(
        seen=seen,
        most=max((side.peaks[0] for side in seen.sides.values() if side.peaks), default=0.0),
        codes=codes if groups else None,
        words=charts.bars(uses, "Mean code by word") if uses else None,
        sides=[(title, says, seen.sides[name]) for name, (title, says) in TITLES.items()],
    )
