"""The supervised terms that give every concept a latent of its own (SAEmnesia, 2026).

L = L_SAE + β (L_CA + η L_DC) + λ L_1. The paper's training code is not public; where its text leaves a choice, both
are here and the docstring says which is the paper's. Shapes: B samples of N vectors, m latents, C concepts, each of
which has a latent assigned to it; `labels` `[B, C]` says which concepts a sample has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.config import _Json, _number

Negatives = Literal["none", "assigned", "balanced"]
Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class Supervision(_Json):
    """Which latent is whose, and how much that weighs. The weights are those the published model was trained with."""

    concepts: tuple[str, ...]
    groups: tuple[int, ...]
    """Number of each concept's macro-group (objects, styles)."""
    assigned: tuple[int, ...]
    """Each concept's latent, all different."""
    beta: float = 3.0
    """Weight of concept association and decorrelation."""
    eta: float = 0.1
    """Weight of decorrelation within that."""
    l1: float = 0.01
    """Weight of the mean code."""
    negatives: Negatives = "none"
    """Of concepts that a sample lacks: nothing is asked ("none", the paper's formula), or that their latents be silent,
    each as much as those of concepts it has be loud ("assigned"), or all of them together as much ("balanced")."""
    pooling: Pooling = "mean"
    """A latent's activity in a sample: its mean over the sample's vectors (the paper's, of patches), or its maximum
    (for text, where a concept is a word of many)."""
    check_every: int = 100
    """Steps between two looks at the validation samples."""
    patience: int = 10
    """Training stops after so many looks that found nothing better; the best weights are kept."""

    def __post_init__(self) -> None:
        for name in ("concepts", "groups", "assigned"):  # json has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("beta", "eta", "l1"):
            _number(name, getattr(self, name), least=0)
        for name in ("check_every", "patience"):
            _number(name, getattr(self, name), least=1, whole=True)
        if not self.concepts or not len(self.concepts) == len(self.groups) == len(self.assigned):
            raise ExciseError("every concept needs a group and a latent, and there must be at least one")
        if len(set(self.concepts)) < len(self.concepts) or len(set(self.assigned)) < len(self.assigned):
            raise ExciseError("two concepts of one name, or with one latent, cannot be told apart")
        if self.negatives not in get_args(Negatives) or self.pooling not in get_args(Pooling):
            raise ExciseError('negatives is "none", "assigned" or "balanced", pooling "mean" or "max"')

    def check_labels(self, labels: Tensor, m: int) -> None:
        """Raises ExciseError where labels [n, C] lack a concept, or a latent is none of the m."""
        if labels.shape[1] != len(self.concepts):
            raise ExciseError(f"the samples have labels for {labels.shape[1]} concepts, not for {len(self.concepts)}")
        if absent := [name for name, there in zip(self.concepts, labels.any(0).tolist(), strict=True) if not there]:
            raise ExciseError(f"no sample shows {absent[0]!r}; add some, or leave the concept out")
        if not 0 <= min(self.assigned) <= max(self.assigned) < m:
            raise ExciseError(f"latent {max(self.assigned)} was assigned, but there are {m}, numbered from 0")


class Terms(NamedTuple):
    """The supervised terms of one batch, each a scalar."""

    total: Tensor
    """β (L_CA + η L_DC) + λ L_1."""
    association: Tensor
    decorrelation: Tensor
    sparsity: Tensor


def terms(own: Tensor, codes: Tensor, labels: Tensor, supervision: Supervision) -> Terms:
    """All terms, from the assigned latents' pre-activations `own` `[B, N, C]` and the batch's codes, of any shape.

    L_1 is the mean code: of those that TopK kept, as the trainer has it, where its gradient costs nothing; or of every
    latent, given all pre-activations after ReLU.
    """
    v = activity(own, supervision.pooling)
    logits = v if supervision.negatives == "none" else pooled(own, supervision.pooling)
    association = concept_association(logits, labels, supervision.negatives)
    apart = decorrelation(v, torch.tensor(supervision.groups, device=v.device))
    sparsity = codes.mean()
    total = supervision.beta * (association + supervision.eta * apart) + supervision.l1 * sparsity
    return Terms(total, association, apart, sparsity)


def activity(own: Tensor, pooling: Pooling = "mean") -> Tensor:
    """v `[B, C]`: each concept's latent after ReLU, as a mean or maximum over a sample's vectors, from `[B, N, C]`."""
    return pooled(own.relu(), pooling)


def pooled(own: Tensor, pooling: Pooling) -> Tensor:
    """The mean or maximum `[B, C]` over a sample's vectors of `[B, N, C]`."""
    return own.mean(1) if pooling == "mean" else own.amax(1)


def concept_association(v: Tensor, labels: Tensor, negatives: Negatives = "none") -> Tensor:
    """L_CA. "none", the paper's formula: -mean over the concepts that are present of log σ(v_c), zero where none is.
    "assigned": binary cross-entropy over all concepts, present or not, which also pushes a latent down where its
    concept is absent; with 48 concepts of which a sample has two, that is most of what it does. "balanced": the paper's
    mean over the present ones, and another one, of -log σ(-v_c), over the absent ones. v is then pooled before ReLU: σ
    of what is never negative never says no."""
    present = labels.to(v.dtype)
    if negatives == "assigned":
        return F.binary_cross_entropy_with_logits(v, present)
    there = -(F.logsigmoid(v) * present).sum() / present.sum().clamp(min=1)
    if negatives == "none":
        return there
    absent = 1 - present
    return there - (F.logsigmoid(-v) * absent).sum() / absent.sum().clamp(min=1)


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
