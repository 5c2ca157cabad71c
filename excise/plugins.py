"""Plugins of other packages: methods, detectors and suites, found by their entry points.

[project.entry-points."excise.methods"]     # an object with the name, Config and fit of excise.methods.Method
[project.entry-points."excise.detectors"]   # a class with the name and flag of a Detector, made without arguments
[project.entry-points."excise.suites"]      # a function from settings (a dict) to an excise.bench Suite
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from excise.errors import ExciseError


class Plugins(Mapping[str, Any]):
    """Plugins of one group by name, imported on first use; a failing import's error names the plugin."""

    def __init__(self, group: str) -> None:
        self._found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=group)}

    def __getitem__(self, name: str) -> Any:
        point = self._found[name]
        try:
            return point.load()
        except Exception as error:  # a package may raise anything while it is imported
            raise ExciseError(f"the plugin {name!r} ({point.value}) cannot be loaded: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def plugins(group: str) -> Plugins:
    """Return the plugins of a group, such as `excise.methods`."""
    return Plugins(group)
