"""The supervised terms that give every concept a latent of its own (SAEmnesia, 2026).

L = L_SAE + β (L_CA + η L_DC) + λ L_1. The paper's training code is not public; where its text leaves a choice, both
are here and the docstring says which is the paper's. Shapes: B samples of N vectors, m latents, C concepts; `assigned`
`[C]` is each concept's latent, `labels` `[B, C]` which concepts a sample has.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError

Negatives = Literal["none", "assigned"]


class Supervision(NamedTuple):
    """The supervised terms of one batch, each a scalar."""

    total: Tensor
    """β (L_CA + η L_DC) + λ L_1."""
    association: Tensor
    decorrelation: Tensor
    sparsity: Tensor


def supervision(
    preactivations: Tensor,
    labels: Tensor,
    assigned: Tensor,
    groups: Tensor,
    *,
    beta: float = 3.0,
    eta: float = 0.1,
    l1: float = 0.01,
    negatives: Negatives = "none",
) -> Supervision:
    """All terms, for pre-activations `[B, N, m]` (before TopK). `groups` `[C]` numbers each concept's macro-group
    (objects, styles). The defaults are those that the published model was trained with.

    Raises ExciseError where no sample has any concept, or shapes disagree.
    """
    batch, concepts = labels.shape
    if preactivations.ndim != 3 or len(preactivations) != batch or not len(assigned) == len(groups) == concepts:
        raise ExciseError(
            f"pre-activations {tuple(preactivations.shape)}, labels {tuple(labels.shape)}, {len(assigned)} assigned "
            f"latents and {len(groups)} groups do not belong together"
        )
    v = activity(preactivations, assigned)
    association = concept_association(v, labels, negatives)
    apart = decorrelation(v, groups)
    sparsity = preactivations.abs().mean()
    return Supervision(beta * (association + eta * apart) + l1 * sparsity, association, apart, sparsity)


def activity(preactivations: Tensor, assigned: Tensor) -> Tensor:
    """v `[B, C]`: each concept's latent after ReLU, as a mean over a sample's vectors."""
    return preactivations[..., assigned].relu().mean(1)


def concept_association(v: Tensor, labels: Tensor, negatives: Negatives = "none") -> Tensor:
    """L_CA. "none", the paper's formula: -mean over the concepts that are present of log σ(v_c). "assigned": binary
    cross-entropy over all concepts, present or not, which also pushes a latent down where its concept is absent.

    Raises ExciseError where nothing is labelled.
    """
    present = labels.to(v.dtype)
    if not bool(present.any()):
        raise ExciseError("no sample of the batch has a labelled concept; check the labels")
    if negatives == "assigned":
        return F.binary_cross_entropy_with_logits(v, present)
    return -(F.logsigmoid(v) * present).sum() / present.sum()


def decorrelation(v: Tensor, groups: Tensor) -> Tensor:
    """L_DC: the mean of ρ² over pairs of latents of different macro-groups, ρ Pearson's over the batch. A latent that
    is constant over the batch correlates with nothing. Zero where there is one group."""
    centred = v - v.mean(0)
    norms = centred.norm(dim=0)
    # Where a norm is 0 its column is 0 too; dividing by 1 leaves it, and the gradient, clean.
    unit = centred / torch.where(norms > 0, norms, torch.ones_like(norms))
    rho = unit.T @ unit
    apart = groups[:, None] != groups
    return rho.square()[apart].mean() if bool(apart.any()) else v.new_zeros(())
