"""SAEmnesia's idea on a text encoder: SNCE's edit of the neuron that a supervised SAE assigned to the concept.

None of the papers has it. SNCE searches for the neuron that carries a concept; here the SAE's card names it.
Calibration and editing are SNCE's.
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
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the SAE was not supervised, or not for this concept, and as `excise.methods.sae.snce.fit`.
    """
    config = config or SAEmnesiaTextConfig()
    if not config.sae:
        raise InvalidSetting("no SAE was named; give the folder of a supervised one on the text encoder")
    made = snce.fit(pipe, concept, replace(config, neurons=(assigned(config.sae, concept),)))
    name = f"{concept.name}-{METHOD.name}"
    return replace(made, name=name, method=METHOD.name, created={**made.created, "method": METHOD.name})


METHOD = Fitted("saemnesia-text", SAEmnesiaTextConfig, fit)
