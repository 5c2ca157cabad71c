"""Engine `local`: every item in this process, one after another."""

from __future__ import annotations

from typing import Any

from excise.engine.stage import Answer, Stage
from excise.engine.working import Checked, attempt


class Local:
    """Pool of this process alone. An item that ends the process ends the call too; the next call continues."""

    def __init__(self, stage: Stage[Any]) -> None:
        self._stage = stage
        self._make: Checked | None = None
        self._answers: list[tuple[Any, Answer]] = []

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if self._make is not None:
            self._make.close()
        self._make = None

    def free(self) -> bool:
        return not self._answers

    def submit(self, item: Any) -> None:
        if self._make is None:
            self._make = Checked(self._stage)  # its error ends the run, as it is
        self._answers.append((item, attempt(self._make, item)))

    def wait(self) -> list[tuple[Any, Answer]]:
        answers, self._answers = self._answers, []
        return answers
