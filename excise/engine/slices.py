"""Engine `slice:I/N`: one part of an array job, for launchers that give each process a number and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.errors import InvalidSetting


@dataclass(frozen=True)
class Slice:
    """Part `index` of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Slice:
        """Parse `I/N`, `N` or nothing. What is missing comes from Slurm's or Kubernetes' variables.

        Slurm sets SLURM_ARRAY_TASK_ID, _MIN, _MAX, _STEP and _COUNT, Kubernetes' indexed jobs JOB_COMPLETION_INDEX. A
        number beyond N wraps around, so that arrays may count from 1. Raises InvalidSetting if the numbers cannot be
        known, as from the count of an array with gaps (`--array=3,7`).
        """
        whole = re.fullmatch(r"(\d+)/(\d+)", text)
        if whole:
            index, count = map(int, whole.groups())
            if not 0 <= index < count:
                raise InvalidSetting(f"slice:{text} is not a part: I counts from 0 to N - 1, such as slice:0/8")
            return cls(index, count)
        if text and not text.isdecimal():
            raise InvalidSetting(f"slice:{text} is not a part; write slice:I/N, slice:N in an array job, or slice")
        number = environment.get("SLURM_ARRAY_TASK_ID") or environment.get("JOB_COMPLETION_INDEX")
        if not (number or "").isdecimal():
            raise InvalidSetting(
                f"slice{f':{text}' if text else ''} needs SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX, which an array "
                "job sets; outside one write slice:I/N"
            )
        found = int(number or 0)
        if not text:
            text = environment.get("SLURM_ARRAY_TASK_COUNT", "")
            first, last, step = (environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("MIN", "MAX", "STEP"))
            if first.isdecimal() and step.isdecimal() and int(step):
                found = (found - int(first)) // int(step)
                if last.isdecimal() and text.isdecimal() and (int(last) - int(first)) // int(step) != int(text) - 1:
                    raise InvalidSetting(
                        "slice cannot know the number of parts from an array with gaps: write slice:N with that of the "
                        "first, whole array"
                    )
        if not text.isdecimal() or not int(text):
            raise InvalidSetting("slice needs the number of parts: write slice:N with the job's number of completions")
        return cls(found % int(text), int(text))

    def divided(self, items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the items of this slice, and those of the others in the order in which this slice helps out.

        Every slice makes its own items from the first to the last, so help begins at the last ones. The helpers of a
        slice deal its items among themselves: each begins with other ones, and comes to the rest later. Two slices can
        still be at one item: its owner and a helper where they meet, or helpers of unequal speed at the end.
        """
        mine = list(items[self.index :: self.count])
        last, helpers, helping = (len(items) - 1) // self.count, max(1, self.count - 1), []
        for n, item in enumerate(items):
            before_last, distance = last - n // self.count, (n - self.index) % self.count
            if distance:
                turn = (before_last - distance + 1) % helpers
                helping.append((turn, before_last, distance, item))
        return mine, [item for *_, item in sorted(helping, key=lambda row: row[:3])]
