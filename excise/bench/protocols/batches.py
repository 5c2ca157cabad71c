"""Batches of published protocols, in which each picture has the noise that its seed gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from excise.bench.suite import Case
from excise.drawn import Drawn
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

BATCH = 16
"""Pictures generated at once by default."""


def check_batch(batch: object) -> None:
    """Raise ExciseError unless a number of pictures can be generated at once."""
    if type(batch) is not int or batch < 1:
        raise ExciseError(f"a batch of {batch!r} pictures cannot be generated; give 1 or more")


def draw_batch(pipe: Pipeline, cases: Sequence[Case], **options: Any) -> Drawn:
    """Generate the pictures of cases in one call of the pipeline, each from a CPU generator with its own seed."""
    made = as_diffusers(pipe)(
        [case.prompt for case in cases],
        generator=[torch.Generator("cpu").manual_seed(case.seed) for case in cases],
        output_type="np",
        **options,
    )
    return Drawn.by(made)
