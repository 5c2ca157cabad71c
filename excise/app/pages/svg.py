"""Small plots as inline SVG. Colours are the page's CSS variables, so that they follow its light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from excise.bench.statistics import Figure


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        f"<title>{escape(label)}</title>{''.join(body)}</svg>"
    )


def bars(rows: Sequence[tuple[str, float]], label: str, highlight: int = 1) -> str:
    """Horizontal bars, one a row of (name, value); the first `highlight` stand out."""
    height, left, width = 24, 74, 460
    top = max((v for _, v in rows), default=0.0) or 1.0
    body = []
    for i, (name, value) in enumerate(rows):
        y, length = i * height, max(1.0, value / top * (width - left - 64))
        kind = "accent" if i < highlight else "mute"
        body.append(f'<text x="{left - 8}" y="{y + 16}" class="end">{escape(name)}</text>')
        body.append(f'<rect x="{left}" y="{y + 4}" width="{length:.1f}" height="16" rx="4" class="{kind}"/>')
        body.append(f'<text x="{left + length + 6:.1f}" y="{y + 16}" class="num">{value:.3g}</text>')
    return _svg(width, height * max(1, len(rows)), label, body)


def histogram(groups: Sequence[tuple[str, Sequence[float], str]], label: str, bins: int = 22) -> str:
    """One row of columns a group of (name, values, CSS class), over a common axis that starts at 0.

    Heights are square roots of counts, relative to the row's tallest column, so that rare values stay visible.
    """
    row, left, width = 62, 118, 480
    top = max((v for _, values, _ in groups for v in values), default=0.0) or 1.0
    span = (width - left - 8) / bins
    body = []
    for g, (name, values, kind) in enumerate(groups):
        base = (g + 1) * row - 8
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int(value / top * bins))] += 1
        body.append(f'<text x="{left - 10}" y="{base - 4}" class="end">{escape(name)}</text>')
        body.append(f'<line x1="{left}" x2="{width - 8}" y1="{base}" y2="{base}" class="axis"/>')
        for b, count in enumerate(counts):
            if count:
                tall = max(2.0, (row - 16) * math.sqrt(count / max(counts)))
                body.append(
                    f'<rect x="{left + b * span + 1:.1f}" y="{base - tall:.1f}" width="{span - 2:.1f}" '
                    f'height="{tall:.1f}" rx="2" class="{kind}"><title>{escape(name)}: {count} of {len(values)} '
                    f"between {b * top / bins:.2f} and {(b + 1) * top / bins:.2f}</title></rect>"
                )
    bottom = len(groups) * row
    body.append(f'<text x="{left}" y="{bottom + 10}" class="num">0</text>')
    body.append(f'<text x="{width - 8}" y="{bottom + 10}" class="num end">{top:.3g}</text>')
    return _svg(width, bottom + 16, label, body)


def interval(figure: Figure, bar: float | None, low: float = 0.0, high: float = 1.0) -> str:
    """A share as a dot on an axis from `low` to `high`, its interval as a line, the bar to reach as a tick.

    On an axis with negative values the bar is a distance from 0: a tick on either side.
    """
    width = 220.0

    def x(value: float) -> float:
        return 8 + (min(max(value, low), high) - low) / (high - low) * (width - 16)

    body = [f'<line x1="8" x2="{width - 8:g}" y1="12" y2="12" class="axis"/>']
    for goal in () if bar is None else (bar, -bar) if low < 0 else (bar,):
        body.append(f'<line x1="{x(goal):.1f}" x2="{x(goal):.1f}" y1="3" y2="21" class="goal"/>')
    body.append(f'<line x1="{x(figure.low):.1f}" x2="{x(figure.high):.1f}" y1="12" y2="12" class="range"/>')
    if not math.isnan(figure.value):
        body.append(f'<circle cx="{x(figure.value):.1f}" cy="12" r="5" class="accent"/>')
    return _svg(width, 24, f"between {figure.low:.3f} and {figure.high:.3f}", body)


def scatter(points: Sequence[tuple[str, float, float]], across: str, up: str) -> str:
    """Named points (name, x, y), x a share, each axis from 0 to what holds them all; less is better on both.

    Those that no other beats on both axes are joined. Names stand in a column on the right, one below the other, each
    led to its point, so that points on top of each other can still be read.
    """
    width, left, bottom, right, line = 680.0, 56.0, 44.0, 240.0, 17.0
    height = max(300.0, bottom + 20 + line * len(points))
    tops = [max(0.01, 1.1 * max(values)) for values in ([x for _, x, _ in points], [y for _, _, y in points])]
    end, floor = width - right, height - bottom

    def at(first: float, second: float) -> tuple[float, float]:
        return left + first / tops[0] * (end - left), floor - second / tops[1] * (floor - 10)

    body = [
        f'<line x1="{left}" x2="{end}" y1="{floor}" y2="{floor}" class="axis"/>',
        f'<line x1="{left}" x2="{left}" y1="10" y2="{floor}" class="axis"/>',
        f'<text x="{end}" y="{height - 6}" class="num end">{escape(across)} →</text>',
        f'<text x="{left + 8}" y="18" class="num">↑ {escape(up)}</text>',
    ]
    for share in (0.5, 1.0):
        x, y = at(share * tops[0], share * tops[1])
        body.append(f'<text x="{x:.1f}" y="{floor + 16}" class="num end">{share * tops[0]:.0%}</text>')
        body.append(f'<text x="{left - 6}" y="{y + 4:.1f}" class="num end">{share * tops[1]:.2g}</text>')
    best = {n for n, (_, *own) in enumerate(points) if not any(_beats(other, own) for _, *other in points)}
    steps = [at(points[n][1], points[n][2]) for n in sorted(best, key=lambda n: points[n][1:])]
    body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in steps)}" class="edge"/>')
    order = sorted(((n, *at(x, y)) for n, (_, x, y) in enumerate(points)), key=lambda place: (place[2], place[1]))
    rows = _apart([y for _, _, y in order], line, floor)
    for (_, x, y), row in zip(order, rows, strict=True):  # below all points
        body.append(f'<line x1="{x:.1f}" x2="{end + 14}" y1="{y:.1f}" y2="{row:.1f}" class="lead"/>')
    for (n, x, y), row in zip(order, rows, strict=True):
        kind = "accent" if n in best else "mid"
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="{kind}"/>')
        said = f' class="{kind}"' if n in best else ""
        body.append(f'<text x="{end + 18}" y="{row + 4:.1f}"{said}>{escape(_short(points[n][0]))}</text>')
    return _svg(width, height, f"{up} against {across}", body)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one point is nowhere worse than the other, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def _apart(places: Sequence[float], least: float, most: float) -> list[float]:
    """Ascending places moved so that neighbours are `least` apart, the last of them at `most` at the latest."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    for n in range(len(moved) - 1, -1, -1):
        moved[n] = min(moved[n], most - least * (len(moved) - 1 - n))
    return moved


def _short(name: str, most: int = 32) -> str:
    """The name, with its middle left out where it is too long for a plot."""
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]], str]], across: str) -> str:
    """Shares over a setting: one line a (name, points (x, share), CSS class), x on a logarithmic axis where all are
    above 0."""
    width, height, left, bottom, right = 620.0, 260.0, 48.0, 40.0, 150.0
    places = sorted({x for _, points, _ in series for x, _ in points})
    scale = math.log if places[0] > 0 else float
    low, high = scale(places[0]), scale(places[-1])

    def at(x: float, share: float) -> tuple[float, float]:
        along = (scale(x) - low) / ((high - low) or 1)
        return left + along * (width - left - right), height - bottom - share * (height - bottom - 12)

    body = [f'<text x="{width - right}" y="{height - 6}" class="num end">{escape(across)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = at(places[0], share)[1]
        body.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="axis"/>')
        body.append(f'<text x="{left - 8}" y="{y + 4:.1f}" class="num end">{share:.0%}</text>')
    for x in places:
        body.append(f'<text x="{at(x, 0)[0]:.1f}" y="{height - bottom + 16}" class="num middle">{x:g}</text>')
    labels: list[float] = []
    for name, points, kind in sorted(series, key=lambda one: -one[1][-1][1]):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in sorted(points)))
        body.append(f'<polyline points="{path}" class="line {kind}"/>')
        x, y = at(*max(points))
        labels.append(max(y, labels[-1] + 15) if labels else y)  # names one below the other, never on top
        body.append(f'<text x="{x + 8:.1f}" y="{labels[-1] + 4:.1f}">{escape(name)}</text>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{kind}"/>' for x, y in (at(*p) for p in points)]
    return _svg(width, height, f"shares over {across}", body)
