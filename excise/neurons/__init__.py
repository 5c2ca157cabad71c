"""Neurons: scores that rank them for a concept, and the evidence that they carry it.

Names are imported when first asked for, so that a neuron database is read without torch. `identify` and `validate` are
in the modules of those names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.neurons.identify import Neuron as Neuron
    from excise.neurons.identify import Ranking as Ranking
    from excise.neurons.scores import SCORES as SCORES
    from excise.neurons.scores import PromptCodes as PromptCodes
    from excise.neurons.scores import Score as Score
    from excise.neurons.scores import modulated_frequency as modulated_frequency
    from excise.neurons.validate import Validation as Validation
    from excise.neurons.validate import top_tokens as top_tokens

_HOMES = {
    "SCORES": "scores",
    "Neuron": "identify",
    "PromptCodes": "scores",
    "Ranking": "identify",
    "Score": "scores",
    "Validation": "validate",
    "modulated_frequency": "scores",
    "top_tokens": "validate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
