"""Items that failed for good: one JSON file each, so that they do not take the others along a second time."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from excise.engine.stage import Answer, Outcome, Stage
from excise.errors import ExciseError, ItemsFailed
from excise.files import read_json, sha256, write_atomic
from excise.remote import Remote


def failed_in_words(failed: int, of: int, first: str, why: str, folder: Path) -> str:
    """Return the line that ends a command whose items failed."""
    return (
        f"{failed} of {of} failed, the first {first}: {why}; details are in {folder}; repeat the command with "
        "--retry-failed to try them again"
    )


def check_made(outcomes: Sequence[Outcome[Any]], names: Callable[[Any], str], folder: Path) -> None:
    """Raise ItemsFailed if an item was set aside, or ExciseError if one failed for a reason that a user can fix."""
    if failed := [outcome for outcome in outcomes if outcome.state == "failed"]:
        aside = [outcome for outcome in failed if outcome.aside]
        if not aside:
            raise ExciseError(f"{names(failed[0].item)}: {failed[0].why}")
        first = aside[0]
        raise ItemsFailed(failed_in_words(len(failed), len(outcomes), names(first.item), first.why, folder))


class Failures:
    """Failures of a stage's items in a folder, which may be of `remote`'s copy, or nothing if `folder` is None.

    A record has a digest of the kind of stage and the item's path: another command's items may have the same names.
    """

    def __init__(self, folder: Path | None, stage: Stage[Any], remote: Remote | None = None) -> None:
        self._folder, self._stage, self._remote = folder, stage, remote

    def read(self, item: Any) -> Mapping[str, Any] | None:
        """Return an item's failure, or None. A damaged file counts as a failure without a reason."""
        if self._folder is None:
            return None
        path = self._path(item)
        if not (path.exists() if self._remote is None else self._remote.fetch(path)):
            return None
        with suppress(FileNotFoundError):  # its owner has forgotten it just now
            with suppress(OSError, ValueError):
                if isinstance(content := read_json(path), dict):
                    return content if content.get("of") == self._digest(item) else None
            path.stat()
            return {"why": f"{path} cannot be read"}
        return None

    def records(self) -> frozenset[str]:
        """Return what tells the failures that are recorded now from later ones."""
        found = set()
        for path in self._folder.glob("*.json") if self._folder is not None else ():
            with suppress(OSError, ValueError):
                if isinstance(content := read_json(path), dict):
                    found.add(str(content.get("record", "")))
        return frozenset(found)

    def write(self, item: Any, answer: Answer, tries: int) -> None:
        """Record a failure. Raises ExciseError if the disk refuses."""
        if self._folder is not None:
            content = {
                "item": self._stage.name(item),
                "of": self._digest(item),
                "record": secrets.token_hex(8),
                "error": answer.error,
                "why": answer.why,
                "tries": tries,
                "expected": answer.expected,
                "trace": answer.trace,
            }
            write = write_atomic if self._remote is None else self._remote.write
            write(self._path(item), json.dumps(content, indent=1) + "\n")

    def forget(self, item: Any) -> None:
        """Remove an item's failure. The folder stays: another process may be about to write into it."""
        if self.read(item) is None:
            return
        if self._remote is None:
            self._path(item).unlink(missing_ok=True)
        else:
            self._remote.remove(self._path(item))

    def _path(self, item: Any) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._stage.name(item)}.json"

    def _digest(self, item: Any) -> str:
        kind, path = type(self._stage), self._stage.path(item)
        place = path.absolute() if self._remote is None else path.relative_to(self._remote.copy)
        return sha256(f"{kind.__module__}.{kind.__qualname__} {place}".encode())
