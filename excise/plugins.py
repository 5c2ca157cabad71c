"""What other packages add to Excise: methods, detectors and suites, found by their entry points.

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
    """One group's plugins by name; each is imported when it is asked for, and an import that fails says whose."""

    def __init__(self, group: str) -> None:
        self._found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=group)}

    def __getitem__(self, name: str) -> Any:
        point = self._found[name]
        try:
            return point.load()
        except Exception as error:  # whatever a package does while it is imported
            raise ExciseError(f"the plugin {name!r} ({point.value}) cannot be loaded: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def plugins(group: str) -> Plugins:
    """The plugins of a group, such as `excise.methods`."""
    return Plugins(group)
