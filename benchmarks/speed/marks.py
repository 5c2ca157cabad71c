"""The stage that `scale.py` times engines with. Workers import it, so it is not in the script itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from excise.files import write_atomic


@dataclass(frozen=True)
class Marks:
    """Stage whose items only write their file."""

    folder: str

    def open(self) -> Callable[[int], None]:
        return self._make

    def path(self, item: int) -> Path:
        return Path(self.folder) / self.name(item)

    def name(self, item: int) -> str:
        return f"item-{item}"

    def _make(self, item: int) -> None:
        write_atomic(self.path(item), self.name(item))
