"""Drawn: pictures as a diffusers pipeline hands them over, and which of them are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Fault = Literal["flagged", "not finite", "one colour"]
"""Why a picture is broken: the pipeline's own safety checker blacked it out, it held values that are not finite
numbers, or every pixel of it has the same colour. Nothing can be read from such a picture, least of all an erasure."""
SAME = 2
"""Steps of 255 by which the values of a channel may differ in a picture of one colour. An empty white scene by the
bundled model differs by 11."""


@dataclass(frozen=True)
class Drawn:
    """Pictures `[n, height, width, 3]` with the fault of each, None for a sound one."""

    pixels: Pixels
    faults: tuple[Fault | None, ...]

    @classmethod
    def of(cls, images: Any, flagged: Sequence[bool] | None = None) -> Drawn:
        """Pictures `[n, height, width, 3]`, bytes or floats from 0 to 1, with a safety checker's flags where there are.

        Values that are not finite numbers become black in `pixels`.
        """
        made = np.asarray(images)
        finite = np.isfinite(made).all(axis=(1, 2, 3))
        if made.dtype != np.uint8:
            made = (np.nan_to_num(made, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
        flags = [False] * len(made) if flagged is None else [bool(flag) for flag in flagged]
        return cls(made, tuple(map(_fault, made, flags, finite)))

    @classmethod
    def by(cls, output: Any) -> Drawn:
        """What a pipeline returned that was called with `output_type="np"`."""
        return cls.of(output.images, getattr(output, "nsfw_content_detected", None))

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """Several as one. Their pictures have one size."""
        return cls(np.concatenate([part.pixels for part in parts]), tuple(f for part in parts for f in part.faults))

    def __getitem__(self, part: slice) -> Drawn:
        return Drawn(self.pixels[part], self.faults[part])

    def sound(self, seeds: Sequence[int]) -> Pixels:
        """The pixels. Raises ExciseError where a picture is broken, with its seed."""
        broken = [(seed, fault) for seed, fault in zip(seeds, self.faults, strict=True) if fault is not None]
        if broken:
            which = ", ".join(f"seed {seed}: {SAID[fault]}" for seed, fault in broken[:4])
            more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
            raise ExciseError(
                f"{len(broken)} of {len(self.faults)} pictures are broken ({which}{more}); nothing is kept of them. "
                f"{HELP[broken[0][1]]}"
            )
        return self.pixels


SAID: dict[Fault, str] = {
    "flagged": "blacked out by the model's own safety checker",
    "not finite": "values that are not finite numbers",
    "one colour": "one colour all over",
}
HELP: dict[Fault, str] = {
    "flagged": "Ask for something else, or take a model that was saved without its checker",
    "not finite": "Draw with float32, or with a smaller guidance or strength",
    "one colour": "Draw with a smaller guidance or strength, or with more steps",
}


def fault(picture: Pixels) -> Fault | None:
    """What can be told of a picture `[height, width, 3]` by its pixels alone: whether it has one colour."""
    values = picture.reshape(-1, picture.shape[-1])
    return "one colour" if (values.max(0).astype(int) - values.min(0) <= SAME).all() else None


def without_checker(pipe: Pipeline) -> Any:
    """The pipeline without its safety checker, where it has one that it can do without: what a filter hides cannot be
    counted."""
    if (
        getattr(pipe, "safety_checker", None) is not None
        and "safety_checker" in as_diffusers(pipe)._optional_components
    ):
        as_diffusers(pipe).safety_checker = None
        if "requires_safety_checker" in as_diffusers(pipe).config:
            as_diffusers(pipe).register_to_config(requires_safety_checker=False)
    return pipe


def checker_of(pipe: Pipeline) -> tuple[Any, Any]:
    """What `without_checker` changes: the safety checker, and whether the pipeline requires one. None where absent."""
    return getattr(pipe, "safety_checker", None), dict(getattr(pipe, "config", {})).get("requires_safety_checker")


def restore_checker(pipe: Pipeline, checker: Any, required: Any) -> None:
    """Undo `without_checker`, with what `checker_of` gave before it."""
    if checker is not None:
        as_diffusers(pipe).safety_checker = checker
        if required is not None:
            as_diffusers(pipe).register_to_config(requires_safety_checker=required)


def _fault(picture: Pixels, flagged: bool, finite: bool) -> Fault | None:
    if flagged:
        return "flagged"
    return fault(picture) if finite else "not finite"
