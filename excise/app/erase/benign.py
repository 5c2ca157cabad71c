"""Prompts as a model's users write them, which an eraser is calibrated and measured on."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from excise.app.training.sae_cache import held_out
from excise.concepts import Concept, read_prompts
from excise.concepts.concept import mentioned
from excise.concepts.everyday import BENIGN, everyday
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sites import LanguageModel

MOST_BENIGN = 20_000
"""Number of prompts of a file that are read."""


def with_benign(
    concept: Concept, own: Pipeline | None, *, sae: Path | None = None, controls: Path | None = None
) -> Concept:
    """Return a concept with prompts as the model's users write them.

    Args:
        concept: The concept.
        own: The user's own model. None for the bundled one, whose controls already resemble its training data.
        sae: Folder of its SAE. Prompts that the training held out are taken, or else everyday prompts.
        controls: File of prompts to take instead, for any model.

    Raises:
        ExciseError: The file cannot be read, or has fewer than two prompts without the concept.
    """
    if controls is not None:
        texts = list(dict.fromkeys(islice(read_prompts(controls), MOST_BENIGN)))
        if sum(not mentioned(text, concept.mentions) for text in texts) < 2:
            raise ExciseError(f"{controls} has fewer than two prompts without {concept.name!r}; add some")
        return replace(concept, benign=tuple(texts))
    if own is None or isinstance(own, LanguageModel) or concept.benign:
        return concept
    return replace(concept, benign=tuple(held_out(sae) if sae is not None else ()) or tuple(everyday(BENIGN)))
