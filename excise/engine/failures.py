"""Items that failed for good: one JSON file each, so that they do not take the others along a second time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from excise.engine.stage import Answer, Outcome
from excise.errors import ExciseError, ItemsFailed
from excise.files import read_json, write_atomic


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
    """Folder of failures, or nothing if `folder` is None."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, name: str) -> Mapping[str, Any] | None:
        """Return an item's failure, or None. A damaged file counts as a failure without a reason."""
        if self._folder is None or not (path := self._path(name)).exists():
            return None
        with suppress(OSError, ValueError):
            if isinstance(content := read_json(path), dict):
                return content
        return {"why": f"{path} cannot be read"}

    def write(self, name: str, answer: Answer, tries: int) -> None:
        """Record a failure. Raises ExciseError if the disk refuses."""
        if self._folder is not None:
            content = {
                "item": name,
                "error": answer.error,
                "why": answer.why,
                "tries": tries,
                "expected": answer.expected,
                "trace": answer.trace,
            }
            write_atomic(self._path(name), json.dumps(content, indent=1) + "\n")

    def forget(self, name: str) -> None:
        """Remove an item's failure, and the folder with the last one."""
        if self._folder is not None and self._folder.exists():
            self._path(name).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.json"
