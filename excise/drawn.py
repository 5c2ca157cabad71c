"""Generated pictures as a diffusers pipeline returns them, and detection of broken ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Fault = Literal["flagged", "not finite", "one colour"]
"""Why a picture is broken: the pipeline's own safety checker blacked it out, it has values that are not finite, or all
of its pixels have the same colour. Nothing can be concluded from such a picture, least of all an erasure."""
SAME = 2
"""Largest difference, in steps of 255, between the values of a channel in a picture of one colour. An empty white scene
by the bundled model differs by 11."""


@dataclass(frozen=True)
class Drawn:
    """Pictures `[n, height, width, 3]` with the fault of each, None for a sound one."""

    pixels: Pixels
    faults: tuple[Fault | None, ...]

    @classmethod
    def of(cls, images: Any, flagged: Sequence[bool] | None = None) -> Drawn:
        """Wrap pictures `[n, height, width, 3]`, bytes or floats from 0 to 1, with a safety checker's flags, if any.

        Values that are not finite become black in `pixels`.
        """
        made = np.asarray(images)
        finite = np.isfinite(made).all(axis=(1, 2, 3))
        if made.dtype != np.uint8:
            made = (np.nan_to_num(made, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
        flags = [False] * len(made) if flagged is None else [bool(flag) for flag in flagged]
        return cls(made, tuple(map(_fault, made, flags, finite)))

    @classmethod
    def by(cls, output: Any) -> Drawn:
        """Wrap the output of a pipeline that was called with `output_type="np"`."""
        return cls.of(output.images, getattr(output, "nsfw_content_detected", None))

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """Concatenate pictures of the same size."""
        return cls(np.concatenate([part.pixels for part in parts]), tuple(f for part in parts for f in part.faults))

    def __getitem__(self, part: slice) -> Drawn:
        return Drawn(self.pixels[part], self.faults[part])

    def sound(self, seeds: Sequence[int]) -> Pixels:
        """Return the pixels. Raises ExciseError if a picture is broken, with its seed."""
        broken = [(seed, fault) for seed, fault in zip(seeds, self.faults, strict=True) if fault is not None]
        if broken:
            which = ", ".join(f"seed {seed}: {DESCRIPTIONS[fault]}" for seed, fault in broken[:4])
            more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
            raise ExciseError(
                f"{len(broken)} of {len(self.faults)} pictures are broken ({which}{more}); nothing is kept of them. "
                f"{HELP[broken[0][1]]}"
            )
        return self.pixels


DESCRIPTIONS: dict[Fault, str] = {
    "flagged": "blacked out by the model's own safety checker",
    "not finite": "values that are not finite numbers",
    "one colour": "one colour all over",
}
HELP: dict[Fault, str] = {
    "flagged": "Ask for something else, or use a model that was saved without its checker",
    "not finite": "Generate with float32, or with a smaller guidance or strength",
    "one colour": "Generate with a smaller guidance or strength, or with more steps",
}


def fault(picture: Pixels) -> Fault | None:
    """Return the fault of a picture `[height, width, 3]` that its pixels alone show: that it has one colour."""
    values = picture.reshape(-1, picture.shape[-1])
    return "one colour" if (values.max(0).astype(int) - values.min(0) <= SAME).all() else None


def without_checker(pipe: Pipeline) -> Any:
    """Remove the pipeline's safety checker if it has an optional one, and return the pipeline.

    What a filter hides cannot be counted.
    """
    if (
        getattr(pipe, "safety_checker", None) is not None
        and "safety_checker" in as_diffusers(pipe)._optional_components
    ):
        as_diffusers(pipe).safety_checker = None
        if "requires_safety_checker" in as_diffusers(pipe).config:
            as_diffusers(pipe).register_to_config(requires_safety_checker=False)
    return pipe


def checker_of(pipe: Pipeline) -> tuple[Any, Any]:
    """Return what `without_checker` changes: the safety checker, and whether it is required. None if absent."""
    return getattr(pipe, "safety_checker", None), dict(getattr(pipe, "config", {})).get("requires_safety_checker")


def restore_checker(pipe: Pipeline, checker: Any, required: Any) -> None:
    """Undo `without_checker`, with what `checker_of` returned before it."""
    if checker is not None:
        as_diffusers(pipe).safety_checker = checker
        if required is not None:
            as_diffusers(pipe).register_to_config(requires_safety_checker=required)


def _fault(picture: Pixels, flagged: bool, finite: bool) -> Fault | None:
    if flagged:
        return "flagged"
    return fault(picture) if finite else "not finite"
