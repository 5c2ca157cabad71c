"""The papers' figures: scores, histograms, curves. matplotlib is an extra, imported only when a figure is drawn."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.errors import ExciseError, MissingExtra
from excise.files import write_atomic
from excise.neurons.identification import Ranking
from excise.neurons.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Metadata that would write the time of day, or matplotlib's version in a png, into the file.
UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
CONCEPT, DECONCEPT, SHARED = "#c0392b", "#2471a3", "#7f8c8d"
CONCEPT_FAINT = "#e2a9a2"
_BOUND = 10.0
"""SNCE's Figure 8 shows neurons with scores above this."""
_VISIBLE = 0.03
"""Share of the tallest line below which a line in Figure 3 is too short for a label."""
# Positions tried for a point's label: distances in points of 1/72 inch, and directions in radians.
_FAR = (4, 10, 18, 28, 40, 54, 70, 90)
_TURNS = [sixteenth * math.pi / 8 for sixteenth in (1, 15, 7, 9, 4, 12, 0, 8, 2, 14, 6, 10, 3, 13, 5, 11)]
_LEADER = {"arrowstyle": "-", "color": SHARED, "linewidth": 0.4}


def distribution(concept: Score, deconcept: Score, ranking: Ranking, title: str = "", label: int = 3) -> Figure:
    """Draw SNCE Figure 3: mean normalised activation of every neuron, concept prompts above, deconcept prompts below.

    Neurons of the ranking are coloured, and the first `label` are named if their line is visible. The strongest neurons
    that fire on both sides, which are not the concept's, are named in grey. Raises ExciseError without matplotlib.
    """
    from matplotlib.lines import Line2D

    figure = _figure(9, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    own = {e.index for e in ranking.entries}
    both = concept.mean * ((concept.f > 0) & (deconcept.f > 0))
    shared = [int(i) for i in both.argsort(descending=True, stable=True)[:label] if both[i] > 0 and int(i) not in own]
    top = float(max(concept.mean.max(), deconcept.mean.max())) or 1.0
    upper.set_ylim(0, 1.18 * top)
    for axes, score, name, colour in ((upper, concept, "with", CONCEPT), (lower, deconcept, "without", DECONCEPT)):
        live = [int(i) for i in (score.f > 0).nonzero()[:, 0]]
        heights = [float(score.mean[i]) for i in live]
        axes.vlines(live, 0, heights, colors=[colour if i in own else SHARED for i in live], linewidth=1.0)
        axes.set_ylabel(f"{name} the concept\nmean activation")
        for index, ink in [(e.index, colour) for e in ranking.entries[:label]] + [(i, SHARED) for i in shared]:
            if score.f[index] > 0 and (height := float(score.mean[index])) >= _VISIBLE * top:
                axes.annotate(
                    str(index), (index, height), (0, 2), textcoords="offset points", color=ink, fontsize=8, ha="center"
                )
    lower.set_xlabel("neuron")
    lower.set_xlim(-1, len(concept.s))
    upper.set_title(title or "Every neuron's activation with the concept and without it", loc="left")
    lines = [Line2D([], [], color=colour) for colour in (CONCEPT, DECONCEPT, SHARED)]
    says = ("the concept's, with it", "the concept's, without it", "fires on both sides")
    figure.legend(lines, says, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def ranked(
    ranking: Ranking,
    title: str = "",
    subtitle: str = "",
    tokens: Mapping[int, Sequence[str]] | None = None,
    top: int = 10,
    controls: Mapping[int, float] | None = None,
) -> Figure:
    """Draw SNCE Figure 8, rotated: the first `top` neurons by falling score, on a logarithmic axis.

    `tokens` holds the words at which each neuron fires most, written next to its bar; `controls` the share of control
    prompts on which it fires, written if it is not 0. A dashed line marks the paper's bound of 10 if the score is the
    paper's. Raises ExciseError without matplotlib or for an empty ranking.
    """
    if not ranking.entries:
        raise ExciseError("no neuron fires on the concept side alone, so there is nothing to draw; raise the tolerance")
    shown = ranking.entries[:top]
    figure = _figure(8.5, 1.7 + 0.36 * len(shown))
    axes = figure.subplots()
    values = [e.score for e in shown]
    rows = range(len(shown))
    bars = axes.barh(rows, values, 0.62, color=[CONCEPT, *[CONCEPT_FAINT] * (len(shown) - 1)])
    labels = axes.bar_label(bars, [_plain(value) for value in values], padding=4, fontsize=9)
    for text in labels:
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # over the dashed line
    handles: list[tuple[Any, str]] = [(bars[0], "first neuron: the one an eraser turns down")]
    if len(shown) > 1:
        handles.append((bars[1], "the next ones"))
    # mean_difference ranks by another quantity than the scores of eq. 5, which the ranking holds for the other side.
    without = [] if ranking.score == "mean_difference" else [(n, e.deconcept_score) for n, e in enumerate(shown)]
    if without := [(n, value) for n, value in without if value > 0]:
        thin = axes.barh([n for n, _ in without], [value for _, value in without], 0.2, color=DECONCEPT)
        handles.append((thin, "the same prompts without the concept"))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    lowest = min([*values, *(value for _, value in without)])
    axes.set_xlim(10 ** (math.floor(math.log10(lowest)) - 0.5), max(values) * 6)
    if ranking.score == "snce" and axes.get_xlim()[1] > _BOUND:
        line = axes.axvline(_BOUND, color=SHARED, linestyle="--", linewidth=1, zorder=0)
        handles.append((line, f"the paper draws those above {_BOUND:g}"))
    axes.set_yticks(rows, [str(e.index) for e in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_ylabel("neuron")
    axes.set_xlabel(f"score ({ranking.score}), logarithmic")
    axes.spines[["top", "right"]].set_visible(False)
    if tokens:
        right = axes.secondary_yaxis("right")
        says = [_label(tokens.get(e.index, ()), (controls or {}).get(e.index, 0.0)) for e in shown]
        right.set_yticks(rows, says, parse_math=False)
        right.tick_params(length=0, labelsize=9)
        right.spines["right"].set_visible(False)
        axes.annotate("fires most at", (1, 1), (6, 4), "axes fraction", "offset points", fontsize=9, color=SHARED)
    figure.suptitle(title or "Neurons that fire with the concept and not without it", x=0.01, ha="left", fontsize=12)
    if subtitle:
        axes.set_title(subtitle, loc="left", fontsize=9, color=SHARED, pad=10)
    names = [name for _, name in handles]
    figure.legend(
        [h for h, _ in handles], names, loc="outside lower left", ncols=min(2, len(names)), frameon=False, fontsize=9
    )
    return figure


def _plain(value: float) -> str:
    """Format with three digits, without an exponent for all but tiny values."""
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def _label(tokens: Sequence[str], control: float) -> str:
    """Return the text next to a bar: as many words as fit, and a warning if control prompts activate the neuron too."""
    words, left = [], 34
    for token in tokens:
        if len(token) > left:
            break
        words.append(token)
        left -= len(token) + 2
    return "  ".join(words) + (f"  (and {control:.0%} of controls)" if control else "")


def histograms(sides: Mapping[str, tuple[Tensor, Tensor]], title: str = "", bins: int = 24) -> Figure:
    """Draw SAEmnesia's activation histograms, one for each concept.

    `sides` holds a neuron's activity `[P]` in samples that show the concept and `[Q]` in others; each histogram is
    normalised by its side. Raises ExciseError without matplotlib or without a concept.
    """
    if not sides:
        raise ExciseError("there is no concept to draw histograms of; name some")
    rows = -(-len(sides) // 3)
    figure = _figure(9, 0.6 + 1.9 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for place, (name, (own, others)) in zip(axes, sides.items(), strict=False):
        top = max(1e-9, *(float(side.max()) for side in (own, others) if len(side)))
        edges = [top * n / bins for n in range(bins + 1)]
        for side, says, colour in ((others, "without", DECONCEPT), (own, "with it", CONCEPT)):
            weights = [1 / max(1, len(side))] * len(side)
            place.hist(side.tolist(), edges, weights=weights, color=colour, alpha=0.6, label=says)
        place.set_yscale("log")
        place.set_title(name, fontsize=9)
    for place in axes[len(sides) :]:
        place.set_visible(False)
    axes[0].legend(fontsize=8)
    figure.supxlabel("activity of the neuron", fontsize=9)
    figure.supylabel("share of the samples", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], across: str, title: str = "") -> Figure:
    """Draw a panel for each quantity, in per cent, with a line of points (x, share) for each method.

    Raises ExciseError without matplotlib or if there is nothing to draw.
    """
    if not any(panels.values()):
        raise ExciseError("there is no curve to draw; measure something first")
    figure = _figure(4.2 * len(panels) + 0.8, 3.4)
    for place, (says, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in lines.items():
            place.plot([x for x, _ in points], [100 * y for _, y in points], marker="o", markersize=4, label=name)
        place.set_xlabel(across)
        place.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        place.set_ylabel(f"{says}, %")
        place.set_ylim(0, 103)
        place.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    figure.suptitle(title, fontsize=10)
    return figure


def front(points: Mapping[str, tuple[float, float]], across: str, up: str, title: str = "") -> Figure:
    """Draw named points (x, y), both shares in per cent, larger being better, and a line through the Pareto front.

    Raises ExciseError without matplotlib or if there is nothing to draw.
    """
    if not points:
        raise ExciseError("there is no point to draw; measure something first")
    figure = _figure(7.5, 5)
    axes = figure.subplots()
    best = unbeaten(points)
    colours = {name: CONCEPT if name in best else SHARED for name in points}
    for name, (x, y) in points.items():
        axes.scatter([100 * x], [100 * y], color=colours[name], s=22)
    line = sorted(points[name] for name in best)
    axes.step([100 * x for x, _ in line], [100 * y for _, y in line], where="pre", color=CONCEPT, linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{across}, %")
    axes.set_ylabel(f"{up}, %")
    axes.set_title(title)
    _name(axes, {name: (100 * x, 100 * y) for name, (x, y) in points.items()}, colours)
    return figure


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each point's name where it covers no point and no other name; a thin line leads to a distant one.

    The axes' limits must be final.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # so that everything has its position
    room, unit = axes.get_window_extent(renderer), figure.dpi / 72
    places = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - 3 * unit, y - 3 * unit, 6 * unit, 6 * unit) for x, y in places]
    for (name, at), (x, y) in zip(points.items(), places, strict=True):
        text = axes.annotate(name, at, (0, 0), textcoords="offset points", va="bottom", fontsize=7, color=colours[name])
        text.set_in_layout(False)
        own = text.get_window_extent(renderer)
        for far, turn in itertools.product(_FAR, _TURNS):
            # The label's centre lies in that direction, with its nearest edge at that distance.
            across, up = (far * unit + own.width / 2) * math.cos(turn), (far * unit + own.height / 2) * math.sin(turn)
            box = Bbox.from_bounds(x + across - own.width / 2, y + up - own.height / 2, own.width, own.height)
            inside = room.x0 < box.x0 and box.x1 < room.x1 and room.y0 < box.y0 and box.y1 < room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        text.set_position(((box.x0 - x) / unit, (box.y0 - y) / unit))
        if far > _FAR[1]:
            axes.annotate("", at, (across / unit, up / unit), textcoords="offset points", arrowprops=_LEADER, zorder=0)
        taken.append(box)


def unbeaten(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points on the Pareto front: no other is at least as good in both and better in one."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


def render(figure: Figure, form: str = "svg") -> bytes:
    """Render a figure as svg, png or pdf bytes; the same figure gives the same bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "excise"}):
        figure.savefig(out, format=form, dpi=120, metadata=UNDATED[form])
    return out.getvalue()


def ending(path: Path) -> str:
    """Return the format that `save` would write: "svg", "png" or "pdf". Raises ExciseError for another ending."""
    form = path.suffix.lower()[1:]
    if form not in UNDATED:
        raise ExciseError(f"cannot draw to '{path.name}': the name must end in .svg, .png or .pdf")
    return form


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as .svg, .png or .pdf. Raises ExciseError for another ending or if the disk refuses."""
    path = Path(path)
    write_atomic(path, render(figure, ending(path)))


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("drawing needs matplotlib; install it with: pip install 'excise[plot]'") from error
    # Figure itself, not pyplot: no window, no global state, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")
