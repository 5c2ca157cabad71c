"""Draw the small flowcharts of docs/ as SVG. The site has no mermaid, which would be fetched from another server."""

from __future__ import annotations

from html import escape
from itertools import pairwise

WIDTH, HEIGHT, GAP, STEP = 108, 34, 14, 74
"""Size of a box, and distances between boxes and between rows, in pixels."""
HEAD = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M1 1 7 4 1 7" fill="none"/></marker></defs>'
)


def edges(flowchart: str) -> list[tuple[str, str]]:
    """Return the arrows of lines such as `a & b --> c --> d`."""
    found = []
    for line in flowchart.splitlines():
        groups = [[name.strip() for name in part.split("&")] for part in line.split("-->")]
        for starts, ends in pairwise(groups):
            found += [(start, end) for start in starts for end in ends]
    return found


def rows(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Return the names in rows: each below everything that points to it."""
    depth = dict.fromkeys((name for arrow in arrows for name in arrow), 0)
    for _ in depth:
        for start, end in arrows:
            depth[end] = max(depth[end], depth[start] + 1)
    return [[name for name in depth if depth[name] == level] for level in range(max(depth.values()) + 1)]


def svg(flowchart: str) -> str:
    """Return a flowchart as a block of HTML with an SVG, which markdown does not change."""
    arrows = edges(flowchart)
    placed = rows(arrows)
    width = max(len(row) for row in placed) * (WIDTH + GAP)
    height = (len(placed) - 1) * STEP + HEIGHT + 2
    at = {}
    for level, row in enumerate(placed):
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        at |= {name: (left + n * (WIDTH + GAP), level * STEP + 1) for n, name in enumerate(row)}
    names = ", ".join(f"{start} imports {end}" for start, end in arrows)
    parts = [f'<div class="diagram"><svg role="img" aria-label="{escape(names)}" viewBox="0 0 {width} {height}">', HEAD]
    for start, end in arrows:
        (x, y), (u, v) = at[start], at[end]
        line = f"M{x + WIDTH / 2:g} {y + HEIGHT:g} L{u + WIDTH / 2:g} {v:g}"
        parts.append(f'<path d="{line}" fill="none" marker-end="url(#arrow)"/>')
    for name, (x, y) in at.items():
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}">{escape(name)}</text>')
    return "".join([*parts, "</svg></div>"])
