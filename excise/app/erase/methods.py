"""Descriptions of methods for `excise methods`. Methods are not imported, because that would import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from excise.app.models.resolve import TUNED
from excise.errors import ExciseError
from excise.methods import METHODS
from excise.methods.base import AND
from excise.methods.configs.registry import CONFIGS
from excise.methods.lookup import check_name, declared, named, settings_of
from excise.plugins import plugins
from excise.settings import UNSTATED, Setting, check_names


def describe_methods(defaults: bool = False) -> list[dict[str, Any]]:
    """Describe the methods; with `defaults`, give the default of every setting as well."""
    rows = [{"name": name, **asdict(about), "paper": about.paper} for name, about in METHODS.items()]
    if defaults:
        rows = [{**row, "defaults": vars(CONFIGS[row["name"]]())} for row in rows]
    return rows


def describe_plugins() -> list[dict[str, str]]:
    """Describe the methods that other packages bring, which imports them. `left_out` says why one cannot be used."""
    others = plugins("excise.methods")
    rows = []
    for name in others:
        row = {"name": name, "kind": "plugin"}
        try:
            if name in METHODS:
                raise ExciseError(f"Excise has a method called {name!r}, which is used instead; rename the plugin")
            others[name]
        except ExciseError as error:
            row["left_out"] = str(error)
        rows.append(row)
    return rows


def describe_setting(name: str, setting: str) -> dict[str, Any]:
    """Describe one setting of a method as `describe_settings` does, with the method's `source`, the paper it is from.

    Raises:
        InvalidSetting: The method has no such setting; similar names are given.
        ExciseError: The method is unknown.
    """
    rows = {row["name"]: row for row in describe_settings(name)}
    check_names(named(name), [setting], rows)
    part = setting.partition(".")[0] if AND in name else named(name)
    return {**rows[setting], "source": METHODS[part].paper if part in METHODS else ""}


def describe_settings(name: str) -> list[dict[str, Any]]:
    """Describe a method's settings as JSON data; for joined methods, those of all parts.

    `paper` is None if the method's paper states no value. `bundled` is None if the bundled model uses the default.

    Raises:
        ExciseError: The method is unknown.
    """
    chosen = settings_of(name, TUNED)
    return [
        {
            "name": key,
            "default": own.default,
            "takes": own.takes,
            "unit": own.unit,
            "meaning": own.help,
            "paper": None if own.paper is UNSTATED else own.paper,
            "bundled": chosen.get(key),
        }
        for key, own in declared(name).items()
    ]


def chosen_on_the_bundled_model(name: str, given: Mapping[str, Any]) -> str | None:
    """Say which of a method's defaults in use were chosen on the bundled model, with the paper's; None if none was.

    `given` holds the settings that were chosen otherwise.
    """
    tuned = {
        key: own for key, own in declared(name).items() if own.tuned and given.get(key, own.default) == own.default
    }
    if not tuned:
        return None
    listed = [f"{key} {own.default:g} ({_papers(own)})" for key, own in tuned.items()]
    were = "was" if len(listed) == 1 else "were"
    return f"{', '.join(listed)} {were} chosen on the bundled model, and may not be the best for another"


def _papers(own: Setting) -> str:
    return "the paper states none" if own.paper is UNSTATED else f"the paper: {own.paper:g}"


def departures() -> list[tuple[str, str, Any, Any]]:
    """Return the settings whose default differs from the paper's: method, setting, default, the paper's value."""
    return [
        (name, key, own.default, own.paper) for name in METHODS for key, own in declared(name).items() if own.departs
    ]


def departures_table() -> str:
    """Return the departures as the Markdown table of docs/reference/methods.md."""
    rows = [f"| `{name}` | `{key}` | {default} | {paper} |" for name, key, default, paper in departures()]
    return "\n".join(["| method | setting | default | the paper's |", "|---|---|---|---|", *rows])


def citation(name: str) -> str:
    """Return BibTeX for a method; for joined methods, of all parts.

    Raises:
        ExciseError: The method is unknown, or there is no paper to cite.
    """
    parts = named(name).split(AND)
    for part in parts:
        check_name(part)
    found = [METHODS[part].cite for part in parts if part in METHODS and METHODS[part].cite]
    if not found:
        raise ExciseError(f"there is no paper to cite for {name!r}")
    return "\n\n".join(dict.fromkeys(found))
