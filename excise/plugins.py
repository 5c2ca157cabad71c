"""Plugins of other packages: methods, detectors, suites and engines, found by their entry points.

[project.entry-points."excise.methods"]     # an object with the name, Config and fit of excise.methods.Method
[project.entry-points."excise.detectors"]   # a class with the name and flag of a Detector, made without arguments
[project.entry-points."excise.suites"]      # a function from settings (a dict) to an excise.bench Suite
[project.entry-points."excise.engines"]     # a function from (address, workers, needs) to a concurrent.futures.Executor
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from excise.errors import ExciseError, reason


class Plugins(Mapping[str, Any]):
    """Plugins of one group by name, imported and checked on first use.

    A plugin that cannot be used raises ExciseError, which names it and its distribution. The others are not affected.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=group):
            self._found.setdefault(point.name, []).append(point)

    def __getitem__(self, name: str) -> Any:
        points = self._found[name]
        if len(points) > 1:
            several = ", ".join(sorted(map(_origin, points)))
            raise ExciseError(f"several plugins are called {name!r}: {several}; uninstall all but one")
        (point,) = points
        try:
            loaded = point.load()
            fault = _FAULTS[self._group](name, loaded)
        except (Exception, SystemExit) as error:  # a package may raise anything while it is imported
            fault = f"cannot be loaded: {reason(error)}"
        if fault:
            package = _package(point)
            raise ExciseError(f"the plugin {name!r} of {_origin(point)} {fault}; update or uninstall {package}")
        return loaded

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def plugins(group: str) -> Plugins:
    """Return the plugins of a group, such as `excise.methods`."""
    return Plugins(group)


def _package(point: EntryPoint) -> str:
    """Return the name of the distribution that an entry point is from."""
    return str(point.dist.name) if point.dist is not None else "its package"


def _origin(point: EntryPoint) -> str:
    """Return an entry point's distribution, version and value: `my-package 0.1.0 (my_package:METHOD)`."""
    version = f" {point.dist.version}" if point.dist is not None else ""
    return f"{_package(point)}{version} ({point.value})"


def _method_fault(name: str, loaded: Any) -> str:
    """Return what is wrong with a method, or nothing."""
    if not re.fullmatch(r"[\w.-]+", name):
        return "has a name that is not made of letters, digits, dots, hyphens and underscores"
    if isinstance(loaded, type):
        return "is a class; its entry point must name an instance"
    if missing := [part for part in ("name", "Config", "fit") if not hasattr(loaded, part)]:
        return f"is not a method: it has no {' and no '.join(missing)}"
    if loaded.name != name:
        return f"calls itself {loaded.name!r}; its `name` must be that of its entry point"
    if not callable(loaded.Config) or not callable(loaded.fit):
        return "is not a method: its Config and its fit must be callable"
    try:
        vars(loaded.Config())
    except Exception as error:  # a plugin's code may raise anything
        return f"has a Config that gives no defaults ({reason(error)})"
    return ""


def _detector_fault(name: str, loaded: Any) -> str:
    """Return what is wrong with a detector's class, or nothing."""
    if not callable(loaded) or not callable(getattr(loaded, "flag", None)):
        return "is not a detector: its entry point must name a class with a `flag`"
    return ""


def _suite_fault(name: str, loaded: Any) -> str:
    """Return what is wrong with the function of a suite, or nothing."""
    return "" if callable(loaded) else "is not a suite: its entry point must name a function"


def _engine_fault(name: str, loaded: Any) -> str:
    """Return what is wrong with the function of an engine, or nothing."""
    return "" if callable(loaded) else "is not an engine: its entry point must name a function"


_FAULTS: Final[dict[str, Callable[[str, Any], str]]] = {
    "excise.methods": _method_fault,
    "excise.detectors": _detector_fault,
    "excise.suites": _suite_fault,
    "excise.engines": _engine_fault,
}
"""What is wrong with a plugin of each group."""
