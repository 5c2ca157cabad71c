"""An audited neuron on the audit's page."""

from __future__ import annotations

from dataclasses import dataclass

from excise.app.audit.neurons import Neighbour, NeuronView
from excise.app.pages import charts
from excise.app.pages.charts import Chart
from excise.app.pages.tokens import Token, shaded
from excise.neurons.contexts import Context
from excise.neurons.flags import percent

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
class Prompt:
    """A prompt in which a neuron fires, and its largest code there."""

    tokens: list[Token]
    peak: float


@dataclass(frozen=True)
class SideCard:
    """What a neuron does on one side."""

    title: str
    says: str
    prompts: list[Prompt]


@dataclass(frozen=True)
class NeighbourCard:
    """A neuron that writes nearly alike."""

    neuron: int
    cosine: str
    splits: bool
    says: str
    prompts: list[Prompt]


@dataclass(frozen=True)
class NeuronCard:
    """A neuron that is turned down. A chart is None where it would show nothing."""

    neuron: int
    where: str
    codes: Chart | None
    words: Chart | None
    effective_words: str
    sides: list[SideCard]
    neighbours: list[NeighbourCard]


def neuron(seen: NeuronView) -> NeuronCard:
    """The card of a neuron that the eraser turns down."""
    most = max((side.peaks[0] for side in seen.sides.values() if side.peaks), default=0.0)
    groups = [
        (f"{name} ({len(side.peaks):,})", side.peaks, COLOURS[name]) for name, side in seen.sides.items() if side.peaks
    ]
    codes = charts.histogram(groups, f"Largest code of neuron {seen.neuron} in each prompt where it fires")
    uses = [(use.word, use.response) for use in seen.uses[:8]]
    exact = "TopK codes" if seen.exact else "codes above the eraser's threshold, as the SAE is not at hand"
    return NeuronCard(
        neuron=seen.neuron,
        where=f"at {seen.site}, {exact}; the eraser opens above {seen.threshold:.3g}",
        codes=codes if groups else None,
        words=charts.bars(uses, "Mean code by word") if uses else None,
        effective_words=f"{seen.effective_words:.2f}",
        sides=[_side(name, seen, most) for name in TITLES],
        neighbours=[_neighbour(one) for one in seen.neighbours or ()],
    )


def _side(name: str, seen: NeuronView, most: float) -> SideCard:
    side = seen.sides[name]
    title, says = TITLES[name]
    prompts = [_prompt(context, most) for context in side.top]
    return SideCard(title, f"Fires in {side.fired} of {side.prompts}: {says}.", prompts)


def _prompt(context: Context, most: float) -> Prompt:
    return Prompt(shaded(zip(context.tokens, context.codes, strict=True), most), context.peak)


def _neighbour(one: Neighbour) -> NeighbourCard:
    most = max((context.peak for context in one.top), default=0.0)
    says = f"Fires in {percent(one.concept)} of the concept's prompts and {percent(one.controls)} of the controls."
    prompts = [_prompt(context, most) for context in one.top[:3]]
    return NeighbourCard(one.neuron, f"{one.cosine:.2f}", one.splits, says, prompts)
