"""What `excise methods` says of every method, without importing one: that would import torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from excise.errors import ExciseError
from excise.methods import METHODS
from excise.methods.base import AND
from excise.methods.lookup import check_name, named


def describe_methods(defaults: bool = False) -> list[dict[str, Any]]:
    """Describe the methods; with `defaults`, give the default of every setting as well."""
    rows = [{"name": name, **asdict(about), "paper": about.paper} for name, about in METHODS.items()]
    if defaults:
        settings = json.loads(files("excise.methods").joinpath("defaults.json").read_text(encoding="utf-8"))
        rows = [{**row, "defaults": settings[row["name"]]} for row in rows]
    return rows


def citation(name: str) -> str:
    """BibTeX for a method, for all of them where several are joined. Raises ExciseError for an unknown one, and where
    there is nothing to cite."""
    parts = named(name).split(AND)
    for part in parts:
        check_name(part)
    found = [METHODS[part].cite for part in parts if part in METHODS and METHODS[part].cite]
    if not found:
        raise ExciseError(f"there is no paper to cite for {name!r}")
    return "\n\n".join(dict.fromkeys(found))
