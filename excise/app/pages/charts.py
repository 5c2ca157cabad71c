"""Small charts as shapes, which templates/parts.html renders as inline SVG.

Colours are classes of the stylesheet, so that charts follow its light and dark schemes. Colour is never the only cue:
labels, dashes or hollow points carry the same information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from excise.statistics import Estimate

Attributes = dict[str, str | float]


@dataclass(frozen=True)
class Shape:
    """An SVG element with attributes, text, and a title shown on hover."""

    tag: str
    attributes: Attributes
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of `width` by `height` units. `label` describes it in words; a `wide` chart scrolls on a phone."""

    width: float
    height: float
    label: str
    shapes: Sequence[Shape]
    wide: bool = False


def bars(rows: Sequence[tuple[str, float]], label: str, highlight: int = 1) -> Chart:
    """Return horizontal bars, one for each (name, value). The first `highlight` bars stand out."""
    height, width = 26, 400
    names = [_short(name, 13) for name, _ in rows]
    left = 16 + 8 * max(map(len, names), default=0)
    top = max((v for _, v in rows), default=0.0) or 1.0
    shapes = []
    for i, (name, (_, value)) in enumerate(zip(names, rows, strict=True)):
        y, length = i * height, max(1.0, value / top * (width - left - 56))
        kind = "accent" if i < highlight else "mute"
        shapes += [
            _text(left - 8, y + 18, name, "end"),
            _rect(left, y + 5, length, 16, kind, rx=4),
            _text(left + length + 6, y + 18, f"{value:.3g}", "num"),
        ]
    return Chart(width, height * max(1, len(rows)), label, shapes)


def histogram(groups: Sequence[tuple[str, Sequence[float], str]], label: str, bins: int = 22) -> Chart:
    """Return a histogram for each group of (name, values, CSS class), over a shared axis that starts at 0.

    Heights are square roots of counts, relative to the row's tallest column, so that rare values stay visible.
    """
    row, width = 74, 400
    top = max((v for _, values, _ in groups for v in values), default=0.0) or 1.0
    span = width / bins
    shapes = []
    for g, (name, values, kind) in enumerate(groups):
        base = (g + 1) * row - 6
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int(value / top * bins))] += 1
        shapes.append(_text(0, base - row + 20, name, "name"))
        shapes.append(_line(0, base, width, base, "axis"))
        for b, count in enumerate(counts):
            if count:
                tall = max(2.0, (row - 28) * math.sqrt(count / max(counts)))
                between = f"between {b * top / bins:.2f} and {(b + 1) * top / bins:.2f}"
                title = f"{name}: {count} of {len(values)} {between}"
                shapes.append(_rect(b * span + 1, base - tall, span - 2, tall, kind, rx=2, title=title))
    bottom = len(groups) * row
    shapes += [_text(0, bottom + 11, "0", "num"), _text(width, bottom + 11, f"{top:.3g}", "num end")]
    return Chart(width, bottom + 18, label, shapes)


def interval(figure: Estimate, bar: float | None, low: float = 0.0, high: float = 1.0) -> Chart:
    """Return a share as a dot on an axis from `low` to `high`, its interval as a line, and its bar as a dashed tick.

    On an axis with negative values the bar is a distance from 0, with a tick on each side.
    """
    width = 220.0

    def x(value: float) -> float:
        return 8 + (min(max(value, low), high) - low) / (high - low) * (width - 16)

    shapes = [_line(8, 12, width - 8, 12, "axis")]
    for goal in () if bar is None else (bar, -bar) if low < 0 else (bar,):
        shapes.append(_line(x(goal), 3, x(goal), 21, "goal"))
    shapes.append(_line(x(figure.low), 12, x(figure.high), 12, "range"))
    if not math.isnan(figure.value):
        shapes.append(_circle(x(figure.value), 12, 5, "accent"))
    return Chart(width, 24, f"95 % interval from {100 * figure.low:.1f} to {100 * figure.high:.1f} %", shapes)


def scatter(points: Sequence[tuple[str, float, float]], across: str, up: str) -> Chart:
    """Return a scatter plot of (name, x, y), where x is a share and less is better on both axes.

    Both axes start at 0. Points on the Pareto front are filled and joined. Names stand in a column on the right, each
    with a line to its point, so that overlapping points stay readable.
    """
    width, left, bottom, right, line = 680.0, 56.0, 44.0, 240.0, 17.0
    height = max(300.0, bottom + 20 + line * len(points))
    most = [max(0.01, *values) for values in ([x for _, x, _ in points], [y for _, _, y in points])]
    end, floor = width - right, height - bottom

    def at(first: float, second: float) -> tuple[float, float]:
        return left + first / most[0] * (end - left - 12), floor - second / most[1] * (floor - 36)

    shapes = [
        _line(left, floor, end, floor, "axis"),
        _line(left, 10, left, floor, "axis"),
        _text(end, height - 6, f"{across} →", "num end"),
        _text(left + 8, 18, f"↑ {up}", "num"),
    ]
    for share in (0.5, 1.0):
        x, y = at(share * most[0], share * most[1])
        shapes.append(_text(x, floor + 16, f"{100 * share * most[0]:.3g} %", "num middle"))
        shapes.append(_text(left - 6, y + 4, f"{share * most[1]:.2g}", "num end"))
    best = {n for n, (_, *own) in enumerate(points) if not any(_beats(other, own) for _, *other in points)}
    shapes.append(_polyline([at(*points[n][1:]) for n in sorted(best, key=lambda n: points[n][1:])], "edge"))
    order = sorted(((n, *at(x, y)) for n, (_, x, y) in enumerate(points)), key=lambda place: (place[2], place[1]))
    rows = _apart([y for _, _, y in order], line, floor)
    # Lines to the names lie below all points.
    shapes += [_line(x, y, end + 14, row, "lead") for (_, x, y), row in zip(order, rows, strict=True)]
    for (n, x, y), row in zip(order, rows, strict=True):
        shapes.append(_circle(x, y, 6, "accent" if n in best else "mid"))
        shapes.append(_text(end + 18, row + 4, _short(points[n][0]), "accent" if n in best else ""))
    return Chart(width, height, f"{up} against {across}", shapes, wide=True)


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]], str]], across: str) -> Chart:
    """Return a line chart of shares over a setting, one line for each (name, points (x, share), CSS class).

    The x axis is logarithmic if all x are above 0.
    """
    width, height, left, bottom, right = 400.0, 230.0, 48.0, 40.0, 146.0
    places = sorted({x for _, points, _ in series for x, _ in points})
    scale = math.log if places[0] > 0 else float
    low, high = scale(places[0]), scale(places[-1])

    def at(x: float, share: float) -> tuple[float, float]:
        along = (scale(x) - low) / ((high - low) or 1)
        return left + along * (width - left - right), height - bottom - share * (height - bottom - 12)

    shapes = [_text(width - right, height - 6, across, "num end")]
    for share in (0.0, 0.5, 1.0):
        y = at(places[0], share)[1]
        shapes += [_line(left, y, width - right, y, "axis"), _text(left - 8, y + 4, f"{100 * share:.0f} %", "num end")]
    shapes += [_text(at(x, 0)[0], height - bottom + 16, f"{x:g}", "num middle") for x in places]
    labels: list[float] = []
    for name, points, kind in sorted(series, key=lambda one: -one[1][-1][1]):
        shapes.append(_polyline([at(*point) for point in sorted(points)], f"line {kind}"))
        x, y = at(*max(points))
        labels.append(max(y, labels[-1] + 18) if labels else y)  # names must not overlap
        shapes.append(_text(x + 8, labels[-1] + 4, name))
        shapes += [_circle(*at(*point), 3.5, kind) for point in points]
    return Chart(width, height, f"shares over {across}", shapes)


def _text(x: float, y: float, text: str, kind: str = "") -> Shape:
    return Shape("text", _attributes(x=x, y=y, kind=kind), text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Shape:
    return Shape("line", _attributes(x1=x1, x2=x2, y1=y1, y2=y2, kind=kind))


def _rect(x: float, y: float, width: float, height: float, kind: str, rx: float, title: str = "") -> Shape:
    return Shape("rect", _attributes(x=x, y=y, width=width, height=height, rx=rx, kind=kind), title=title)


def _circle(cx: float, cy: float, r: float, kind: str) -> Shape:
    return Shape("circle", _attributes(cx=cx, cy=cy, r=r, kind=kind))


def _polyline(points: Sequence[tuple[float, float]], kind: str) -> Shape:
    return Shape("polyline", {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "class": kind})


def _attributes(kind: str, **numbers: float) -> Attributes:
    return {**{name: round(float(value), 1) for name, value in numbers.items()}, **({"class": kind} if kind else {})}


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one point dominates the other: nowhere worse, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def _apart(places: Sequence[float], least: float, most: float) -> list[float]:
    """Move ascending positions so that neighbours are at least `least` apart and the last is at most `most`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    for n in range(len(moved) - 1, -1, -1):
        moved[n] = min(moved[n], most - least * (len(moved) - 1 - n))
    return moved


def _short(name: str, most: int = 32) -> str:
    """Shorten a name to `most` characters by cutting out its middle."""
    return name if len(name) <= most else f"{name[: most - most // 3 - 1]}…{name[-(most // 3) :]}"
