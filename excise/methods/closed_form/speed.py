"""SPEED: new values for a concept's words, changed only where kept words have no part (Li et al., SPEED: Scalable,
Precise, and Efficient Concept Erasure for Diffusion Models, ICLR 2026, sections 3 and 4).

Every cross-attention's to_v, W, becomes W + X with the X that solves
    min mean_c |(W + X) c - W a|² + s |X|² + |X K₂|² / λ   among the X with X = X P
c are the states of the concept's words and a that of the anchor, each that of its last token. With C₁ = mean c cᵀ,
A = mean a cᵀ and M = (C₁ P + s I)⁻¹,
    X = W (A - C₁) P [I - M K₂ (K₂ᵀ P M K₂ + λ I)⁻¹ K₂ᵀ P] M
Its rank is at most the number of words. λ = 0 requires X K₂ = 0. The columns of K₂ are the empty prompt's first state
and three k-means centres of its others.

P projects on the singular vectors of the kept words' C₀ = mean r rᵀ whose singular values are below a limit. Kept are
the words r that a plain edit, ΔE = W (A - C₁) (I + C₁)⁻¹, moves by more than their mean |ΔE r|. To each of them, ten
states r + v vᵀ ε are added, ε ~ N(0, I), with v the last right singular vector of W; again those above the mean stay.

s = 1, λ = 0, the limit 0.1, ten added states, three centres and to_v alone are from the authors' code
(Ouxiang-Li/SPEED, Apache-2.0). Differences: the words to keep are by default those that replace the concept in its
pairs; means are over all words, where the authors' are over batches of 128; k-means starts at states far from each
other instead of at random ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import Eraser, WeightEdit
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.closed_form.solved import fit_solved
from excise.methods.configs.closed_form import SPEEDConfig
from excise.methods.cross_attention import keys_and_values, text_states, word_states
from excise.pipeline import Pipeline

CENTRES, ROUNDS = 3, 100
"""k-means centres of the empty prompt's states, and most rounds to find them in."""


def fit(pipe: Pipeline, concept: Concept, config: SPEEDConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, a word to keep mentions the concept, or the kept words
    leave nothing to change.
    """
    return fit_solved(pipe, concept, METHOD, config or SPEEDConfig())


def solve(pipe: Pipeline, words: Sequence[str], kept: Sequence[str], config: SPEEDConfig) -> list[WeightEdit]:
    """Return the edits that erase `words` and keep `kept`; without any, the empty prompt's states are kept.

    Raises ExciseError if there is no cross-attention, or the kept words leave nothing to change.
    """
    layers = {site: layer for site, layer in keys_and_values(pipe, "speed").items() if site.path.endswith(".to_v")}
    erased, anchor = word_states(pipe, words).double(), word_states(pipe, [config.guide]).double()
    empty = text_states(pipe, [""])[0].double()
    held = word_states(pipe, kept).double() if kept else empty[1:]
    fixed = torch.cat([empty[:1], centres(empty[1:], CENTRES)]).T
    edits = []
    for site, layer in layers.items():
        weight = layer.weight.detach().cpu().double()
        generator = torch.Generator().manual_seed(config.seed)
        null = null_space(affected(weight, erased, anchor, held, config, generator), config.limit)
        down = right_factor(erased, null, fixed, config.scale, config.lam)
        up = weight @ (anchor - erased).T / len(erased)
        edits.append(WeightEdit(site, up=up.float(), down=down.float()))
    return edits


def right_factor(erased: Tensor, null: Tensor, fixed: Tensor, scale: float, lam: float) -> Tensor:
    """Return cᵀ P [I - M K₂ (K₂ᵀ P M K₂ + λ I)⁻¹ K₂ᵀ P] M for each row c of `erased`, `[n, d]` float64.

    `null` is P `[d, d]`, `fixed` is K₂ `[d, m]`; its columns may depend on each other.
    """
    one = torch.eye(len(null), dtype=null.dtype)
    inverse = torch.linalg.inv(erased.T @ erased / len(erased) @ null + scale * one)
    held = fixed.T @ null @ inverse @ fixed + lam * torch.eye(fixed.shape[1], dtype=null.dtype)
    made: Tensor = erased @ null @ (one - inverse @ fixed @ torch.linalg.pinv(held) @ fixed.T @ null) @ inverse
    return made


def affected(
    weight: Tensor, erased: Tensor, anchor: Tensor, kept: Tensor, config: SPEEDConfig, generator: torch.Generator
) -> Tensor:
    """Return the kept states `[r, d]` that a plain edit moves most, and others near them that it moves most.

    `weight` is W `[out, d]`, `erased` and `kept` are states `[n, d]`, `anchor` is one `[1, d]`.
    """
    covariance = erased.T @ erased / len(erased)
    aim = anchor.T @ erased.mean(0, keepdim=True) - covariance
    plain = weight @ aim @ torch.linalg.inv(torch.eye(len(covariance), dtype=weight.dtype) + covariance)

    def most_moved(states: Tensor) -> Tensor:
        moved = (states @ plain.T).norm(dim=1)
        above = moved > moved.mean()
        return states[above] if bool(above.any()) else states  # all are moved alike

    chosen = most_moved(kept) if config.filtered else kept
    if not config.added:
        return chosen
    last = torch.linalg.svd(weight, full_matrices=False).Vh[-1]
    near = chosen.repeat(config.added, 1)
    noise = torch.randn(near.shape, generator=generator, dtype=near.dtype)
    return torch.cat([chosen, most_moved(near + (noise @ last)[:, None] * last)])


def null_space(kept: Tensor, limit: float) -> Tensor:
    """Return the projection `[d, d]` on the singular vectors of mean r rᵀ whose singular values are below `limit`.

    Raises ExciseError if there are none.
    """
    vectors, values, _ = torch.linalg.svd(kept.T @ kept / len(kept))
    chosen = vectors[:, values < limit]
    if not chosen.shape[1]:
        raise ExciseError(f"the kept words leave no direction to change; raise limit above {limit:g}, or keep fewer")
    made: Tensor = chosen @ chosen.T
    return made


def centres(states: Tensor, count: int) -> Tensor:
    """Return `count` k-means centres of `states` `[n, d]`; all distinct states if there are no more.

    Lloyd's rounds begin at the state farthest from the mean, and then at those farthest from the ones chosen.
    """
    chosen = states.mean(0, keepdim=True)
    for _ in range(min(count, len(torch.unique(states, dim=0)))):
        apart = torch.cdist(states, chosen).amin(1)
        chosen = torch.cat([chosen, states[apart.argmax()][None]])
    chosen = chosen[1:]
    for _ in range(ROUNDS):
        nearest = torch.cdist(states, chosen).argmin(1)
        moved = torch.stack([states[nearest == n].mean(0) for n in range(len(chosen))])
        if torch.equal(moved, chosen):
            break
        chosen = moved
    return chosen


METHOD = Fitted("speed", SPEEDConfig, fit, solve)
