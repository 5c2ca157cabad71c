"""Pages from templates: one HTML file with its style and pictures inside; it fetches nothing."""

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
"""What a page without a script may do: be styled, and show the pictures that are in it."""


@dataclass(frozen=True)
class Made:
    """How a page was made, for its footer."""

    command: str
    machine: str
    date: str
    version: str = excise.__version__

    @classmethod
    def now(cls, command: str, device: str = "cpu") -> Made:
        """Made today, on this machine."""
        return cls(command, machine(device), datetime.date.today().isoformat())


def render(template: str, made: Made, **data: Any) -> str:
    """The page of `templates/<template>` for plain data. Text is escaped; `policy` is its Content-Security-Policy."""
    return templates().get_template(template).render({"policy": STATIC, "style": style(), **data, "made": made})


@lru_cache(maxsize=1)
def templates() -> Environment:
    """The environment of all templates: everything is escaped, and a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("excise.app.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"data_url": _data_url, "shaded": shaded, "zip": zip}
    return made


def style() -> Markup:
    """The stylesheet that all pages share."""
    loader = templates().loader
    assert loader is not None
    return Markup(loader.get_source(templates(), "style.css")[0])


def source_digest(text: str) -> str:
    """A style or script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
