"""Concept Steerers: subtract a k-sparse autoencoder's code of the concept's words from every prompt, all of its
features with one factor (Kim and Ghadiyaram, Concept Steerers: Leveraging K-Sparse Autoencoders for Test-Time
Controllable Generations, 2025, section 3).

    h ← h - λ W_dec relu(W_enc (h_c - b_pre) + b_enc)
position by position. h_c are the states of the concept's words, h the prompt's; in the unconditional branch the sign is
reversed. λ = 0.5 for nudity and 0.7 for violence, TopK off, and the sign in the second branch are from the authors'
code, which has no licence and is not used. Their SAE is of `encoder.layers.9` of Stable Diffusion 1.4's text encoder
(m = 3,072, k = 32, all 77 positions); here it is whichever is named. Every prompt is changed, whatever it asks for.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.sae_rows import sae_digest
from excise.erasers.edits.vectors import VectorEdit
from excise.erasers.hooks.context import unedited
from excise.errors import InvalidSetting
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.sae import SNCEConfig
from excise.methods.configs.steering import ConceptSteerersConfig
from excise.methods.sae.finding import site_of
from excise.methods.sae.metadata import sae_name
from excise.pipeline import Pipeline
from excise.sae import load
from excise.sites import capture


def fit(pipe: Pipeline, concept: Concept, config: ConceptSteerersConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the SAE is missing or was trained at another Site.
    """
    config = config or ConceptSteerersConfig()
    if not config.sae:
        raise InvalidSetting("no SAE was named; give the folder of one trained at the Site to edit")
    sae = load(Path(config.sae))
    site = site_of(pipe, sae, SNCEConfig(sae=config.sae, site=config.site))
    with unedited(), torch.no_grad():
        (seen,) = capture(pipe, [site], [config.words or ", ".join(concept.mentions)])
        codes = sae.preactivations(seen.states[site][0].to(sae.W_enc)).clamp(min=0)
        vectors = (codes @ sae.W_dec).float().cpu()
    edit = VectorEdit(site, vectors, lam=config.lam, uncond=config.uncond)
    found = {"sae_digest": sae_digest(sae), "active": float((codes > 0).float().sum(1).mean())}
    return build_eraser(
        pipe, [edit], concept, "concept-steerers", {**asdict(config), "sae": sae_name(config.sae)}, found
    )


METHOD = Fitted("concept-steerers", ConceptSteerersConfig, fit)
