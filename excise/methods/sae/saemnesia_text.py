"""SNCE's edit of the neuron that a supervised SAE on the text encoder gave the concept: SAEmnesia's idea, our place.

None of the papers has it. Where SNCE searches for the neuron that carries a concept, the SAE's card names it; how it is
calibrated and turned down is SNCE's.
"""

from __future__ import annotations

from dataclasses import replace

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.errors import InvalidSetting
from excise.methods.base import Fitted
from excise.methods.configs.sae import SAEmnesiaTextConfig
from excise.methods.sae import snce
from excise.methods.sae.saemnesia import assigned
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: SAEmnesiaTextConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, calibrated and proved with its canary.

    Raises ExciseError where the SAE was not supervised, or not for this concept, and as `excise.methods.sae.snce.fit`.
    """
    config = config or SAEmnesiaTextConfig()
    if not config.sae:
        raise InvalidSetting("no SAE was named; give the folder of a supervised one on the text encoder")
    made = snce.fit(pipe, concept, replace(config, neurons=(assigned(config.sae, concept),)))
    name = f"{concept.name}-{METHOD.name}"
    return replace(made, name=name, method=METHOD.name, created={**made.created, "method": METHOD.name})


METHOD = Fitted("saemnesia-text", SAEmnesiaTextConfig, fit)
