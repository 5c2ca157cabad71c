"""Cards of an audit's page: one for each edited neuron."""

from __future__ import annotations

from dataclasses import dataclass

from excise.app.audit.neurons import NeuronView, Side
from excise.app.pages import charts
from excise.app.pages.charts import Chart

TITLES = {
    "concept": ("Concept prompts", "prompts with the concept"),
    "deconcept": ("Counterparts", "counterparts, which have something else instead of the concept"),
    "controls": ("Controls", "prompts about other things, in the same wording"),
    "benign": ("Benign prompts", "prompts that do not mention the concept"),
}
COLOURS = {"concept": "accent", "deconcept": "cool", "controls": "mute", "benign": "good"}
FEW = 4
"""Prompts shown on each side of a neuron; the rest unfold."""
NEURONS = 6
"""Neurons shown; the rest unfold."""


@dataclass(frozen=True)
class NeuronCard:
    """An edited neuron with its charts. A chart is None if it would be empty.

    `most` is the neuron's largest code. `sides` are (title, description, side).
    """

    seen: NeuronView
    most: float
    codes: Chart | None
    words: Chart | None
    sides: list[tuple[str, str, Side]]


def neuron(seen: NeuronView) -> NeuronCard:
    """Return the card of an edited neuron."""
    groups = [
        (f"{TITLES[name][0]} ({len(side.peaks):,})", side.peaks, COLOURS[name])
        for name, side in seen.sides.items()
        if side.peaks
    ]
    codes = charts.histogram(groups, f"Largest code of neuron {seen.neuron} in each prompt where it fires")
    uses = [(use.word, use.response) for use in seen.uses[:8]]
    return NeuronCard(
        seen=seen,
        most=max((side.peaks[0] for side in seen.sides.values() if side.peaks), default=0.0),
        codes=codes if groups else None,
        words=charts.bars(uses, "Mean code by word") if uses else None,
        sides=[(title, description, seen.sides[name]) for name, (title, description) in TITLES.items()],
    )
