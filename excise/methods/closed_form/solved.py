"""Fitting by solving: the edits follow from the model, the words and the settings, and the eraser records all three."""

from __future__ import annotations

from dataclasses import asdict

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.closed_form import SPEEDConfig, UCEConfig
from excise.methods.cross_attention import kept_words
from excise.pipeline import Pipeline


def fit_solved(pipe: Pipeline, concept: Concept, method: Fitted, config: UCEConfig | SPEEDConfig) -> Eraser:
    """Solve for the edits of a method that has `solve`, and self-test the eraser.

    Raises ExciseError if the pipeline has no cross-attention, or a word to keep mentions the concept.
    """
    assert method.solve is not None
    kept = kept_words(concept, config.preserve)
    edits = method.solve(pipe, concept.mentions, kept, config)
    measured = {"words": len(concept.mentions), "kept": len(kept), "kept_words": kept}
    return build_eraser(pipe, edits, concept, method.name, asdict(config), measured)
