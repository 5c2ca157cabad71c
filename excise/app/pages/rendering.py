"""Rendering of pages from templates. A page is one self-contained HTML file that loads nothing from the network."""

from __future__ import annotations

import base64
import datetime
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import excise
from excise.app.pages.tokens import shaded
from excise.bench.machine import machine

STATIC = Markup("default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'")
"""Content-Security-Policy of a page without scripts: only its own style and embedded pictures."""


@dataclass(frozen=True)
class Made:
    """A page's origin, for its footer."""

    command: str
    machine: str
    date: str
    version: str = excise.__version__

    @classmethod
    def now(cls, command: str, device: str = "cpu") -> Made:
        """Return the origin with today's date and this machine. `command` is empty for a call from Python."""
        return cls(command or "a call from Python", machine(device), datetime.date.today().isoformat())


def render(template: str, made: Made, **data: Any) -> str:
    """Render `templates/<template>` with plain data. Text is escaped. `policy` is the Content-Security-Policy."""
    return templates().get_template(template).render({"policy": STATIC, "style": style(), **data, "made": made})


@lru_cache(maxsize=1)
def templates() -> Environment:
    """Return the environment of all templates. It escapes all text, and an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("excise.app.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_url": _data_url, "shaded": shaded, "zip": zip}
    return environment


def style() -> Markup:
    """Return the stylesheet of all pages."""
    return Markup(stylesheet("colours.css", "style.css"))


def stylesheet(*names: str) -> str:
    """Return stylesheets of the templates' folder, joined."""
    loader = templates().loader
    assert loader is not None
    return "".join(loader.get_source(templates(), name)[0] for name in names)


def source_digest(text: str) -> str:
    """Return a style's or script's digest as a source for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
