"""Important lines, each broken in one way that a test must notice: see README.md beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change of one file that must make one of the tests fail."""

    file: str
    """From the repository's root."""
    old: str
    """What stands there, exactly once."""
    new: str
    tests: tuple[str, ...]
    """What pytest is given."""
    survives: str = ""
    """Why no test can notice it; empty where one must."""

    @property
    def module(self) -> str:
        """The file's dotted name."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def source(self) -> str:
        """The file's text with the change made. Raises LookupError unless `old` stands there exactly once."""
        text = (ROOT / self.file).read_text()
        if (found := text.count(self.old)) != 1:
            raise LookupError(f"{self.file} holds {self.old!r} {found} times, not once; bring the mutant up to date")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


def of(file: str, tests: str, *changes: tuple[str, str] | tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one file, all noticed by `tests` (separated by spaces): (old, new), or (old, new, why it survives)."""
    return [Mutant(file, change[0], change[1], tuple(tests.split()), *change[2:]) for change in changes]


def all_mutants() -> Sequence[Mutant]:
    """Of every table in this folder."""
    from tests.mutants import bench, erasers, methods, neurons, sae

    return [mutant for table in (bench, erasers, methods, neurons, sae) for mutant in table.MUTANTS]
