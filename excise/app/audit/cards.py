"""An audited neuron on the audit's page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from excise.app.audit.neurons import NeuronView
from excise.app.pages import svg
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
EMPTY = '<p class="faint">None of them.</p>'


def neurons(views: Sequence[NeuronView]) -> str:
    """The section on the neurons that an eraser turns down."""
    if not views:
        return (
            '<section><h2>Neurons</h2><p class="faint">Not applicable: this eraser turns down no neuron of a text '
            "encoder.</p></section>"
        )
    first, rest = views[:NEURONS], views[NEURONS:]
    shown = "".join(_neuron(seen) for seen in first)
    more = "".join(_neuron(seen) for seen in rest)
    return (
        '<section><h2>What is turned down</h2><p class="faint">Shading is the neuron\'s code at each token, the number '
        "behind a prompt its largest there. In a causal encoder a neuron also fires behind its word, up to the "
        "end of the text.</p>"
        f"{shown}"
        + (f"<details><summary>{len(rest)} more neurons</summary>{more}</details>" if rest else "")
        + "</section>"
    )


def _neuron(seen: NeuronView) -> str:
    most = max((side.peaks[0] for side in seen.sides.values() if side.peaks), default=0.0)
    groups = [
        (f"{name} ({len(side.peaks):,})", side.peaks, COLOURS[name]) for name, side in seen.sides.items() if side.peaks
    ]
    plot = (
        svg.histogram(groups, f"Largest code of neuron {seen.neuron} in each prompt where it fires") if groups else ""
    )
    uses = [(use.word, use.response) for use in seen.uses[:8]]
    exact = "TopK codes" if seen.exact else "codes above the eraser's threshold, as the SAE is not at hand"
    sides = "".join(_side(name, seen, most) for name in TITLES)
    by_word = svg.bars(uses, "Mean code by word") if uses else EMPTY
    return (
        f"<h3 style='margin-top:26px'>Neuron {seen.neuron} <span class='faint'>at {escape(seen.site)}, {exact}; the "
        f"eraser opens above {seen.threshold:.3g}</span></h3><div class='plots' style='margin-top:8px'>"
        f'<div class="card"><h3>Largest code in each prompt where it fires</h3>{plot or EMPTY}'
        '<div class="note">In brackets how many prompts. Each row is drawn to its own height.</div></div>'
        f'<div class="card"><h3>Words that set it off, mean code</h3>{by_word}'
        f'<div class="note">As if it answered {seen.effective_words:.2f} words alike.</div></div>'
        f"{sides}</div>{_neighbours(seen)}"
    )


def _side(name: str, seen: NeuronView, most: float) -> str:
    side = seen.sides[name]
    title, says = TITLES[name]
    shown = "".join(_tokens(context, most) for context in side.top[:FEW])
    rest = "".join(_tokens(context, most) for context in side.top[FEW:])
    more = f"<details><summary>{len(side.top) - FEW} more</summary>{rest}</details>" if rest else ""
    return (
        f'<div class="card"><h3>{title}</h3><p class="note">Fires in {side.fired} of {side.prompts}: {says}.</p>'
        f"{shown or EMPTY}{more}</div>"
    )


def _tokens(context: Context, most: float) -> str:
    """A prompt, a line may break before a word; where the neuron fires faintly is still to be seen."""
    spans = "".join(
        f'{"<wbr>" if token[:1].isspace() else ""}<span style="--heat-share:{_heat(code, most):.2f}" '
        f'title="{code:.2f}">{escape(token.strip())}</span>'
        for token, code in zip(context.tokens, context.codes, strict=True)
    )
    return f'<p class="tokens mono">{spans} <small class="faint">{context.peak:.1f}</small></p>'


def _heat(code: float, most: float) -> float:
    return 0.15 + 0.7 * code / most if code and most else 0.0


def _neighbours(seen: NeuronView) -> str:
    if not seen.neighbours:
        return ""
    cards = "".join(
        f'<div class="card"><h3>{n.neuron} <span class="faint">cosine {n.cosine:.2f}</span> '
        f"{'<span class=badge>carries the concept too</span>' if n.splits else ''}</h3>"
        f'<p class="note">Fires in {percent(n.concept)} of the concept\'s prompts and {percent(n.controls)} of the '
        "controls.</p>"
        f"{''.join(_tokens(c, max(c.peak for c in n.top)) for c in n.top[:3]) or EMPTY}</div>"
        for n in seen.neighbours
    )
    return (
        f"<details><summary>Its {len(seen.neighbours)} nearest neighbours by what they write</summary>"
        f'<div class="plots">{cards}</div></details>'
    )
