"""Lookup of methods by name, ours and plugins', and of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from excise.errors import InvalidSetting, NotFound
from excise.methods.base import AND, Method
from excise.methods.catalogue import METHODS, MODULES
from excise.methods.configs.registry import CONFIGS
from excise.plugins import plugins
from excise.settings import UNSTATED, Setting, check_names, settings_in

ALSO = {"esd": "esd-x"}
"""Aliases: a method's name in the papers' tables."""


def named(name: str) -> str:
    """Return a method's own name if given an alias; for joined methods, of every part."""
    return AND.join(ALSO.get(part, part) for part in name.split(AND))


def method(name: str) -> Method:
    """Return the method called `name`, ours or a plugin's. Raises NotFound, with similar names, if there is none."""
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
    """Raise NotFound, suggesting similar names, if neither Excise nor a plugin has a method of that name."""
    if name in METHODS:
        return
    others = plugins("excise.methods")
    if name not in others:
        known = [*METHODS, *others]
        near = get_close_matches(name.lower(), known, n=3) or known
        raise NotFound(f"there is no method {name!r}; try {', '.join(near)}")


def declared(name: str) -> dict[str, Setting]:
    """Return a method's settings by name; for joined methods, prefixed by the part's name and a dot.

    Our own methods' are known without importing torch. Raises ExciseError as `method` does.
    """
    name = named(name)
    if AND not in name:
        check_name(name)
        return dict(settings_in(CONFIGS[name]() if name in CONFIGS else method(name).Config()))
    return {
        f"{part}.{key}": replace(setting, name=f"{part}.{key}")
        for part in name.split(AND)
        for key, setting in declared(part).items()
    }


PRESETS = ("paper",)
"""Named sets of settings. `paper` has those of a method's paper, or of its authors' code."""


def preset_settings(name: str, preset: str | None) -> dict[str, Any]:
    """Return a method's settings in a preset; none if `preset` is None.

    Raises ExciseError for an unknown preset, if the method's paper states no settings, and as `method` does.
    """
    if preset is None:
        return {}
    if preset not in PRESETS:
        raise InvalidSetting(f"there is no preset {preset!r}; there is {', '.join(PRESETS)}")
    stated = {key: own.paper for key, own in declared(name).items() if own.paper is not UNSTATED}
    if not stated:
        raise InvalidSetting(f"no paper states settings for {named(name)}; leave the preset out")
    return stated


def configured(name: str, settings: Mapping[str, Any], preset: str | None = None) -> Any:
    """Return a method's configuration: the given settings, then the preset's, then the defaults.

    Raises ExciseError, naming the method, for an unknown setting or an invalid value, and as `method` and
    `preset_settings` do.
    """
    name = named(name)
    known, settings = declared(name), {**preset_settings(name, preset), **settings}
    check_names(name, settings, known)
    make = CONFIGS[name] if name in CONFIGS else method(name).Config
    try:
        for key, value in settings.items():
            known[key].check(value)
        return make(**settings)
    except InvalidSetting as error:
        raise InvalidSetting(f"{name}: {error}") from error


def settings_of(name: str, by_method: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one method's settings from those of all; for joined methods, prefixed by the part's name and a dot."""
    name = named(name)
    if AND not in name:
        return dict(by_method.get(name, {}))
    return {f"{part}.{key}": value for part in name.split(AND) for key, value in by_method.get(part, {}).items()}


def split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Split `snce:k=10,lam=2` into the method's name and its settings, as they are written."""
    name, _, given = text.partition(":")
    pairs = (part.partition("=") for part in given.split(",") if part)
    return name, [(key, value) for key, _, value in pairs]


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `snce:k=10,lam=2` into the method's name and its settings.

    `preset=paper` stands for the preset's settings; those given take precedence. Raises ExciseError for an
    unknown method, preset or setting, or an invalid value.
    """
    name, given = split(text)
    name = named(name)
    known, settings, preset = declared(name), {}, None
    for key, value in given:
        if key == "preset":
            preset = value
            continue
        check_names(name, [key], known)
        try:
            settings[key] = known[key].parse(value)
        except InvalidSetting as error:
            raise InvalidSetting(f"{name}: {error}") from error
    settings = {**preset_settings(name, preset), **settings}
    configured(name, settings)
    return name, settings
