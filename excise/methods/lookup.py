"""Methods by name, ours and plugins', and their settings as text."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from excise.errors import InvalidSetting, NotFound
from excise.methods.base import AND, Method
from excise.methods.bounds import check_numbers, check_types
from excise.methods.catalogue import METHODS, MODULES
from excise.plugins import plugins

ALSO = {"esd": "esd-x"}
"""Other names: what a method is called in the papers' tables."""


def named(name: str) -> str:
    """A method by its own name where another one was given; of a joined one, every part."""
    return AND.join(ALSO.get(part, part) for part in name.split(AND))


def method(name: str) -> Method:
    """The method called `name`, ours or a plugin's. Raises ExciseError, naming near ones, where there is none."""
    name = named(name)
    if AND in name:
        from excise.methods.joined import Joined

        return Joined(tuple(method(part) for part in name.split(AND)))
    check_name(name)
    found: Method = (
        import_module(f"excise.methods.{MODULES[name]}").METHOD if name in METHODS else plugins("excise.methods")[name]
    )
    return found


def check_name(name: str) -> None:
    """Raises ExciseError, naming near ones, where neither we nor a plugin have a method of that name."""
    if name in METHODS:
        return
    others = plugins("excise.methods")
    if name not in others:
        known = [*METHODS, *others]
        near = get_close_matches(name.lower(), known, n=3) or known
        raise NotFound(f"there is no method {name!r}; try {', '.join(near)}")


def settings_of(name: str, by_method: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A method's settings among those of all; of a joined one, its parts' under their names and a dot."""
    name = named(name)
    if AND not in name:
        return dict(by_method.get(name, {}))
    return {f"{part}.{key}": value for part in name.split(AND) for key, value in by_method.get(part, {}).items()}


def configured(chosen: Method, settings: Mapping[str, Any]) -> Any:
    """The method's configuration: these settings, its defaults for the rest.

    Raises InvalidSetting for a setting that it has not, of another type, or out of bounds.
    """
    known = vars(chosen.Config())
    if unknown := sorted(set(settings) - set(known)):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known) or 'none'}"
        raise InvalidSetting(f"{chosen.name} has no setting {unknown[0]!r}{hint}")
    own = dict(settings)
    for part in getattr(chosen, "parts", (chosen,)):
        prefix = f"{part.name}." if part is not chosen else ""
        given = {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}
        own |= {f"{prefix}{key}": value for key, value in check_types(part.name, given, part.Config).items()}
    check_numbers(chosen.name, own)
    return chosen.Config(**own)


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """`snce:k=10,lam=2` as the method's name and its settings.

    Raises ExciseError for an unknown method or setting, or an impossible value.
    """
    name, _, given = text.partition(":")
    name = named(name)
    known = vars(method(name).Config())
    settings = {}
    for part in filter(None, given.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise InvalidSetting(f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}")
        try:
            settings[key] = _as(known[key], value)
        except ValueError as error:
            raise InvalidSetting(f"{name}: {key} cannot be {value!r} ({error})") from error
    check_numbers(name, settings)
    method(name).Config(**settings)
    return name, settings


def _as(default: Any, value: str) -> Any:
    """The value in its default's type, a number or none where that is None; whole numbers joined by + for a tuple."""
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise ValueError("it is true or false")
        return value == "true"
    if default is None:
        return None if value == "none" else float(value)
    return tuple(int(part) for part in value.split("+")) if isinstance(default, tuple) else type(default)(value)
