"""The frame of a report page: one HTML file with its styles and pictures inside, nothing fetched, no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path


def document(
    title: str, heading: str, lead: str, facts: Iterable[tuple[str, str]], sections: Iterable[str], footer: str
) -> str:
    """The page. `heading`, `lead`, `sections` and `footer` are HTML; `title` and `facts` (name, value) are text."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    chips = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><div>
<h1>{heading}</h1>
<p class="faint">{lead}</p>
<ul class="chips">{chips}</ul>
</div></header>
<main>
{"".join(sections)}
<footer>{footer} This page is self-contained; nothing on it is fetched.</footer>
</main>
</body>
</html>
"""


def image(png: bytes, alt: str, attributes: str = "") -> str:
    """A picture inside the page; `attributes` are HTML, each behind a space."""
    data = base64.b64encode(png).decode()
    return f'<img{attributes} src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'
