"""Mutants: important lines, each broken in one way that a test must notice (README.md in this folder)."""

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
    """Text that occurs in the file exactly once."""
    new: str
    tests: tuple[str, ...]
    """Arguments for pytest."""
    survives: str = ""
    """Reason why no test can notice the change; empty if one must."""

    @property
    def module(self) -> str:
        """Return the file's dotted name."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def source(self) -> str:
        """Return the file's changed text. Raises LookupError unless `old` occurs exactly once."""
        text = (ROOT / self.file).read_text()
        if (found := text.count(self.old)) != 1:
            raise LookupError(f"{self.file} holds {self.old!r} {found} times, not once; update the mutant")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


def of(file: str, tests: str, *changes: tuple[str, str] | tuple[str, str, str]) -> list[Mutant]:
    """Return mutants of one file, all noticed by `tests` (separated by spaces), from (old, new[, why it survives])."""
    return [Mutant(file, change[0], change[1], tuple(tests.split()), *change[2:]) for change in changes]


def all_mutants() -> Sequence[Mutant]:
    """Return the mutants of every table in this folder."""
    from tests.mutants import bench, engine, erasers, methods, neurons, sae, service

    return [mutant for table in (bench, engine, erasers, methods, neurons, sae, service) for mutant in table.MUTANTS]
