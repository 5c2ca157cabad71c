"""Neurons: scores that rank them for a concept, and the evidence that they carry it.

Names are imported when first asked for, so that a neuron database is read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.neurons.identification import Neuron as Neuron
    from excise.neurons.identification import Ranking as Ranking
    from excise.neurons.identification import identify as identify
    from excise.neurons.scores import SCORES as SCORES
    from excise.neurons.scores import PromptCodes as PromptCodes
    from excise.neurons.scores import Score as Score
    from excise.neurons.scores import modulated_frequency as modulated_frequency
    from excise.neurons.validation import Validation as Validation
    from excise.neurons.validation import top_tokens as top_tokens
    from excise.neurons.validation import validate as validate

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

_HOMES = {
    "SCORES": "scores",
    "Neuron": "identification",
    "PromptCodes": "scores",
    "Ranking": "identification",
    "Score": "scores",
    "Validation": "validation",
    "identify": "identification",
    "modulated_frequency": "scores",
    "top_tokens": "validation",
    "validate": "validation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
