"""The untouched model: an eraser that edits nothing, the baseline of every comparison."""

from __future__ import annotations

from excise.concepts import Concept
from excise.erasers import Eraser, made_for
from excise.methods.base import Fitted
from excise.methods.configs.baselines import NoneConfig
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: NoneConfig) -> Eraser:
    """Return an eraser whose attachment leaves every bit alone; it cannot be saved."""
    return Eraser((), "none", concept.name, concept.mentions, made_for=made_for(pipe), method="none")


METHOD = Fitted("none", NoneConfig, fit)
