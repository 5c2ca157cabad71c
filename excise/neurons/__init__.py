"""Neurons: scores that rank them for a concept, and the evidence that they carry it."""

from __future__ import annotations

from excise.neurons.identify import Neuron, Ranking, identify
from excise.neurons.scores import SCORES, PromptCodes, Score, modulated_frequency
from excise.neurons.validate import Validation, top_tokens, validate

__all__ = [
    "SCORES",
    "Neuron",
    "PromptCodes",
    "Ranking",
    "Score",
    "Validation",
    "identify",
    "modulated_frequency",
    "top_tokens",
    "validate",
]
