"""LEACE: project the concept out of text states, so that no linear probe finds it there (Belrose et al., LEACE: Perfect
Linear Concept Erasure in Closed Form, NeurIPS 2023, theorem 4.3). It is the linear baseline.

    x ← x - W⁺ P W (x - μ),   W = (Σ_xx^(1/2))⁺,   P = the projection on the span of W Σ_xz
μ and Σ_xx are the mean and the covariance of the states x `[d]`, Σ_xz the covariance with the label z: 1 in prompts
with the concept, 0 in those without it. One label makes it
    x ← x - Σ_xz ⟨v, x - μ⟩,   v = Σ_xx⁺ Σ_xz / ⟨Σ_xz, Σ_xx⁺ Σ_xz⟩
Of all affine maps after which the covariance with z is zero, it changes the states least in the mean square.

x are the states of the concept's pairs, from the end of the words in which the two prompts differ, to the padding's
end. Both labels go to μ, which with as many states of either is half the concept's: other prompts then show half of
it. So states are weighted, as if a `share` of all prompts were the concept's. The formula is the paper's; the authors'
code (EleutherAI/concept-erasure, MIT) is not used. The paper has no text-to-image model.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.vectors import AffineEdit
from excise.errors import ExciseError, WrongModel
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import LEACEConfig
from excise.methods.prompt_codes import difference_ends, features, stacked
from excise.pipeline import Pipeline
from excise.sites import Site, site_at, sites_of, text_encoders

SMALL = 1e-6
"""Eigenvalues of Σ_xx below this share of the largest count as zero."""
SAME = 1e-3
"""Largest difference of the first states of two prompts that counts as none."""


def fit(pipe: Pipeline, concept: Concept, config: LEACEConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has several text encoders, the Site is unknown, or the concept has no pairs.
    """
    config = config or LEACEConfig()
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    if len(text_encoders(pipe)) != 1:
        raise WrongModel(
            f"leace edits the only text encoder of a pipeline, and {type(pipe).__name__} has "
            f"{len(text_encoders(pipe))}; choose another method, such as snce"
        )
    site = site_at(pipe, config.site) if config.site else sites_of(pipe)[-1]
    shown, others, lead = states(pipe, site, concept, config.pairs)
    mean, read, write = leace(shown, others, config.share)
    edit = AffineEdit(site, mean.float(), read.float(), write.float(), lead)
    measured = {"pairs": len(concept.pairs[: config.pairs]), "states": len(shown) + len(others)}
    return build_eraser(pipe, [edit], concept, "leace", asdict(config), measured)


def states(pipe: Pipeline, site: Site, concept: Concept, most: int) -> tuple[Tensor, Tensor, int]:
    """Return the states `[n, d]` of concept and of deconcept prompts, and 1 if the first state is always the same.

    They begin at the end of the words in which the prompts of a pair differ; 0 stands for "no".
    """
    pairs = concept.pairs[:most]
    sides = []
    for prompts in ([pair.concept for pair in pairs], [pair.deconcept for pair in pairs]):
        batches = features(pipe, site, prompts)
        scored = stacked([batch.scored for batch in batches]).cpu()
        ids = stacked([batch.ids for batch in batches]).cpu()
        last = (scored * torch.arange(scored.shape[1])).argmax(1)
        texts = [row[: int(end) + 1].tolist() for row, end in zip(ids, last, strict=True)]
        sides.append((stacked([batch.states[site].float().cpu() for batch in batches]), texts))
    (shown, own), (others, other) = sides
    ends = [difference_ends(*both) or (1, 1) for both in zip(own, other, strict=True)]
    first = torch.cat([shown[:, 0], others[:, 0]])
    lead = int(bool((first.amax(0) - first.amin(0) <= SAME).all()))
    return (
        torch.cat([row[end:] for row, (end, _) in zip(shown, ends, strict=True)]),
        torch.cat([row[end:] for row, (_, end) in zip(others, ends, strict=True)]),
        lead,
    )


def leace(shown: Tensor, others: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return μ, v and Σ_xz, each `[d]` in float64, of states with the concept `[n, d]` and without it `[m, d]`.

    The former weigh `share` in all, the latter 1 - `share`.
    """
    x = torch.cat([shown, others]).double()
    z = torch.cat([x.new_ones(len(shown)), x.new_zeros(len(others))])
    weights = z * share / len(shown) + (1 - z) * (1 - share) / len(others)
    mean = weights @ x
    centred = (x - mean) * weights[:, None]
    both, along = centred.T @ (x - mean), centred.T @ z
    read = torch.linalg.pinv(both, rtol=SMALL, hermitian=True) @ along
    return mean, read / (read @ along), along


METHOD = Fitted("leace", LEACEConfig, fit)
