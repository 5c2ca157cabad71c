"""SAFREE: project a concept's words out of the prompt before the U-Net reads it (Yoon et al., SAFREE: Training-Free and
Adaptive Guard for Safe Text-to-Image And Video Generation, ICLR 2025, section 3).

`excise.erasers.edits.projection.ProjectionEdit` does so for each prompt at generation. It finds the concept's words
(those without which the prompt is farther from the span of the concept's phrases), projects their states, and chooses
for how many steps the U-Net reads them (self-validating filtering). α = 0.01, at most 10 steps and the curve between
are from the authors' code, which has no licence and is not used. As in that code, the re-attention of latents, which
costs a second U-Net call, is off by default (s = 0.2 to 0.9 switches it on). Left out: that code always passes the
phrases as a negative prompt, which would be a second method.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.projection import ProjectionEdit
from excise.erasers.hooks.context import unedited
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import SAFREEConfig
from excise.pipeline import Pipeline
from excise.sites.denoiser import whole
from excise.sites.pooled import eos_states
from excise.sites.site import tokenizer_of


def fit(pipe: Pipeline, concept: Concept, config: SAFREEConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder.
    """
    config = config or SAFREEConfig()
    site = whole(pipe, "safree")
    more = [text.strip() for text in config.phrases.split(";") if text.strip()]
    phrases = list(dict.fromkeys((*concept.mentions, *more)))
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    ids = tokenizer(phrases, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with unedited():
        states = eos_states(pipe, ids).cpu()
    shape = {"midpoint": 5.5, "steepness": 3.5} if config.style else {}
    edit = ProjectionEdit(site, states, config.alpha, config.most, config.reattention, **shape)
    return build_eraser(pipe, [edit], concept, "safree", asdict(config), {"phrases": len(phrases)})


METHOD = Fitted("safree", SAFREEConfig, fit)
