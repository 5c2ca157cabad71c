"""SLD: guidance that also leads away from a concept (Schramowski et al., Safe Latent Diffusion, CVPR 2023, section 3).

    ε_∅ + g (ε_p - γ - ε_∅),   γ = μ ⊙ (ε_S - ε_∅) + s_m ν
as `excise.erasers.apply.guidance` computes it. ε_S is the U-Net's prediction for the concept's words, which takes a
third U-Net call in every step. The four levels are the paper's (table in its appendix; also diffusers' SafetyConfig,
except for `weak`, whose s is 20 there):
    level     warm-up  s     λ      s_m   β_m
    weak      15       200   0.0    0.0   0.0
    medium    10       1000  0.01   0.3   0.4
    strong    7        2000  0.025  0.5   0.7
    max       0        5000  1.0    0.5   0.7
Warm-up is counted in steps of 50; scale `warmup` in proportion for another number of steps. The authors' code (MIT)
uses one text of twenty words for everything unsafe; here the text is the concept's words.
"""

from __future__ import annotations

from dataclasses import asdict

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.guidance import GuidanceEdit
from excise.erasers.hooks.context import unedited
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import Level, SLDConfig
from excise.pipeline import Pipeline
from excise.sites import encode_prompt
from excise.sites.denoiser import whole
from excise.sites.encoding import tensors_of

LEVELS: dict[Level, tuple[int, float, float, float, float]] = {
    "weak": (15, 200.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}
"""Warm-up, s, λ, s_m and β_m."""


def fit(pipe: Pipeline, concept: Concept, config: SLDConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder.
    """
    config = config or SLDConfig()
    warmup, scale, threshold, momentum, decay = LEVELS[config.level]
    site, words = whole(pipe, "sld"), config.concept or ", ".join(concept.mentions)
    with unedited():
        states = next(iter(tensors_of(encode_prompt(pipe, words))))[0].detach().float().cpu()
    edit = GuidanceEdit(
        site,
        states,
        scale=config.scale or scale,
        threshold=threshold,
        warmup=warmup if config.warmup < 0 else config.warmup,
        momentum=momentum,
        decay=decay,
    )
    return build_eraser(pipe, [edit], concept, "sld", asdict(config), {})


METHOD = Fitted("sld", SLDConfig, fit)
