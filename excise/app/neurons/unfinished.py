"""The file of a neuron database that is being written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from excise.errors import ExciseError
from excise.files import temporary_beside
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Provenance


@contextmanager
def unfinished(out: Path, wanted: Provenance, *, alone: bool) -> Iterator[NeuronDatabase]:
    """Open the unfinished database to resume, or create a new one.

    Unless this process is `alone` it creates one of its own, and removes it if it is not put in place.
    """
    if alone:
        with _resumed(out.with_name(f".{out.name}.building"), wanted) as database:
            yield database
        return
    path = temporary_beside(out)
    try:
        with NeuronDatabase.create(path, wanted) as database:
            yield database
    finally:
        _remove(path)


def put(finished: NeuronDatabase, out: Path) -> None:
    """Close a finished database and rename it to `out`. Raises ExciseError if the disk refuses."""
    finished.close()
    try:
        finished.path.replace(out)
    except OSError as error:
        raise ExciseError(f"cannot write {out}: {error.strerror or error}; choose another place") from error


def _resumed(path: Path, wanted: Provenance) -> NeuronDatabase:
    if path.exists():
        try:
            database = NeuronDatabase.open(path)
            if database.provenance.describes_the_same(wanted):
                return database
            database.close()
        except ExciseError:
            pass  # interrupted before anything was written
        _remove(path)
    return NeuronDatabase.create(path, wanted)


def _remove(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}-journal")):
        file.unlink(missing_ok=True)
