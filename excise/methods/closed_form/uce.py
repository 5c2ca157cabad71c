"""UCE: new keys and values for a concept's words, in closed form (Gandikota et al., Unified Concept Editing in
Diffusion Models, WACV 2024, section 4).

Every cross-attention's W₀, to_k's and to_v's, becomes the W that solves
    min Σ_c a |W c - W₀ g|² + Σ_p b |W p - W₀ p|² + λ |W - W₀|²
c are the states of the concept's words, g of the guide and p of the words to keep, each that of its last token:
    W = (λ W₀ + a Σ W₀ g cᵀ + b Σ W₀ p pᵀ) (λ I + a Σ c cᵀ + b Σ p pᵀ)⁻¹
So W - W₀ = a Σ W₀ (g - c) cᵀ (...)⁻¹, whose rank is at most the number of words. λ = 0.5 and a = b = 1 are from the
authors' code (rohitgandikota/unified-concept-editing, MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import Eraser, WeightEdit
from excise.methods.base import Fitted
from excise.methods.closed_form.solved import fit_solved
from excise.methods.configs.closed_form import UCEConfig
from excise.methods.cross_attention import keys_and_values, word_states
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: UCEConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, or a word to keep mentions the concept.
    """
    return fit_solved(pipe, concept, METHOD, config or UCEConfig())


def solve(pipe: Pipeline, words: Sequence[str], kept: Sequence[str], config: UCEConfig) -> list[WeightEdit]:
    """Return the edits that erase `words` and hold `kept`. Raises ExciseError if there is no cross-attention."""
    layers = keys_and_values(pipe, "uce")
    erased, guide = word_states(pipe, words), word_states(pipe, [config.guide])
    held = word_states(pipe, kept) if kept else erased[:0]
    down = right_factor(erased, held, config.erase, config.keep, config.lam)
    return [
        WeightEdit(site, up=layer.weight.detach().float().cpu() @ (guide - erased).T, down=down)
        for site, layer in layers.items()
    ]


def right_factor(erased: Tensor, kept: Tensor, erase: float, keep: float, lam: float) -> Tensor:
    """Return a cᵀ (λ I + a Σ c cᵀ + b Σ p pᵀ)⁻¹ `[n, d]` for the rows c of `erased` `[n, d]` and p of `kept`."""
    c, p = erased.double(), kept.double()
    held = lam * torch.eye(c.shape[1], dtype=c.dtype) + erase * c.T @ c + keep * p.T @ p
    found: Tensor = torch.linalg.solve(held, erase * c.T)
    return found.T.float()


METHOD = Fitted("uce", UCEConfig, fit, solve)
