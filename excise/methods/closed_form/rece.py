"""RECE: UCE, then repeatedly erase the embeddings that would bring the concept back (Gong et al., Reliable and
Efficient Concept Erasure of Text-to-Image Diffusion Models, ECCV 2024, section 3).

After each edit, find the embedding c' whose edited keys and values come nearest to the concept's original ones,
    c' = argmin Σ_i |W_i c' - W₀_i c|² + ρ |c'|² = (ρ I + Σ_i W_iᵀ W_i)⁻¹ (Σ_i W_iᵀ W₀_i) c,
over all layers i. It is then erased like a word: starting from the current weights, towards the guide. Three rounds,
and 0.1 for ρ, λ and the weight of what is kept, are the paper's for nudity; for styles ρ is 0.001 (CharlesGong12/RECE,
Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import Eraser, WeightEdit
from excise.methods.base import Fitted
from excise.methods.closed_form.solved import fit_solved
from excise.methods.closed_form.uce import right_factor
from excise.methods.configs.closed_form import RECEConfig
from excise.methods.cross_attention import keys_and_values, word_states
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: RECEConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, or a word to keep mentions the concept.
    """
    return fit_solved(pipe, concept, METHOD, config or RECEConfig())


def solve(pipe: Pipeline, words: Sequence[str], kept: Sequence[str], config: RECEConfig) -> list[WeightEdit]:
    """Return the edits that erase `words` and hold `kept`. Raises ExciseError if there is no cross-attention."""
    layers = keys_and_values(pipe, "rece")
    before = [layer.weight.detach().float().cpu() for layer in layers.values()]
    own, guide = word_states(pipe, words), word_states(pipe, [config.guide])
    held = word_states(pipe, kept) if kept else own[:0]
    now, ups, downs, erased = list(before), [list[Tensor]() for _ in before], list[Tensor](), own
    for round_ in range(config.rounds + 1):
        if round_:
            erased = restoring_embeddings(now, before, own, config.rho)
        downs.append(right_factor(erased, held, config.erase, config.keep, config.lam))
        for n, weight in enumerate(now):
            ups[n].append(weight @ (guide - erased).T)
            now[n] = weight + ups[n][-1] @ downs[-1]
    return [WeightEdit(site, up=torch.cat(up, 1), down=torch.cat(downs)) for site, up in zip(layers, ups, strict=True)]


def restoring_embeddings(now: Sequence[Tensor], before: Sequence[Tensor], words: Tensor, rho: float) -> Tensor:
    """Return, for each of `words` `[n, d]`, the c' whose keys and values under `now` are nearest to its own before.

    `now` and `before` hold each layer's weights `[out, d]`.
    """
    pairs = [(w.double(), w0.double()) for w, w0 in zip(now, before, strict=True)]
    d = words.shape[1]
    left = rho * torch.eye(d, dtype=torch.float64) + torch.stack([w.T @ w for w, _ in pairs]).sum(0)
    right = torch.stack([w.T @ w0 for w, w0 in pairs]).sum(0) @ words.double().T
    found: Tensor = torch.linalg.solve(left, right)
    return found.T.float()


METHOD = Fitted("rece", RECEConfig, fit, solve)
