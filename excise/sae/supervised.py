"""Supervised loss terms that give every concept its own latent (SAEmnesia, 2026).

L = L_SAE + β (L_CA + η L_DC) + λ L_1. The paper's training code is not public. Where its text leaves a choice, both
options are here and the docstring says which is the paper's. Shapes: B samples of N vectors, m latents, C concepts,
each with one assigned latent; `labels` `[B, C]` are the concepts that a sample shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.config import _Json, _number
from excise.sae.parallel import ALONE, Mesh

Negatives = Literal["none", "assigned", "balanced"]
Pooling = Literal["mean", "max", "each"]


@dataclass(frozen=True)
class Supervision(_Json):
    """Assignment of latents to concepts, and loss weights. Default weights are those of the published model."""

    concepts: tuple[str, ...]
    groups: tuple[int, ...]
    """Index of each concept's macro-group (objects, styles)."""
    assigned: tuple[int, ...]
    """Each concept's latent, all different."""
    beta: float = 3.0
    """Weight of concept association and decorrelation."""
    eta: float = 0.1
    """Weight of decorrelation within it."""
    l1: float = 0.01
    """Weight of the mean code."""
    negatives: Negatives = "none"
    """Treatment of concepts that a sample lacks. "none", the paper's formula, ignores them. "assigned" pushes their
    latents down, each as strongly as it pushes up those of present concepts. "balanced" weights all absent ones
    together like all present ones."""
    pooling: Pooling = "mean"
    """A latent's activity in a sample: its mean over the sample's vectors (the paper's, of patches), its maximum (for
    text, where a concept is one word of many), or that in each vector by itself, as if it had the sample's labels
    (G-SAE)."""
    check_every: int = 100
    """Steps between two checks of the validation samples."""
    patience: int = 10
    """Training stops after so many checks without improvement; the best weights are kept."""

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
            raise ExciseError("two concepts have the same name or the same latent; give each its own")
        if self.negatives not in get_args(Negatives) or self.pooling not in get_args(Pooling):
            raise ExciseError('negatives is "none", "assigned" or "balanced", pooling "mean", "max" or "each"')

    def check_labels(self, labels: Tensor, m: int) -> None:
        """Raise ExciseError if no label in [n, C] shows a concept, or a latent's index is not below m."""
        if labels.shape[1] != len(self.concepts):
            raise ExciseError(f"the samples have labels for {labels.shape[1]} concepts, not for {len(self.concepts)}")
        shown = labels.any(0).tolist()
        if absent := [name for name, present in zip(self.concepts, shown, strict=True) if not present]:
            raise ExciseError(f"no sample shows {absent[0]!r}; add some, or leave the concept out")
        if not 0 <= min(self.assigned) <= max(self.assigned) < m:
            raise ExciseError(f"latent {max(self.assigned)} was assigned, but there are {m}, numbered from 0")


class Terms(NamedTuple):
    """Supervised terms of one batch, each a scalar."""

    total: Tensor
    """β (L_CA + η L_DC) + λ L_1."""
    association: Tensor
    decorrelation: Tensor
    sparsity: Tensor


def terms(own: Tensor, codes: Tensor, labels: Tensor, supervision: Supervision, mesh: Mesh = ALONE) -> Terms:
    """Return all terms, from the assigned latents' pre-activations `own` `[B, N, C]` and the batch's codes.

    L_1 is the mean of `codes`, of any shape. The trainer passes those that TopK kept, whose gradient costs nothing;
    pass all pre-activations after ReLU for every latent's. Where ranks divide a batch's samples, L_CA and L_DC are
    those of the whole batch, as neither is a sum over samples.
    """
    if supervision.pooling == "each":
        labels = labels.repeat_interleave(own.shape[1], 0)
    v = mesh.joined(activity(own, supervision.pooling))
    logits = v if supervision.negatives == "none" else mesh.joined(pooled(own, supervision.pooling))
    labels = mesh.joined(labels.to(v.dtype)).bool()
    association = concept_association(logits, labels, supervision.negatives)
    apart = decorrelation(v, torch.tensor(supervision.groups, device=v.device))
    sparsity = codes.mean()
    total = supervision.beta * (association + supervision.eta * apart) + supervision.l1 * sparsity
    return Terms(total, association, apart, sparsity)


def activity(own: Tensor, pooling: Pooling = "mean") -> Tensor:
    """Return v, each concept's latent after ReLU, `pooled` over a sample's vectors, from `[B, N, C]`."""
    return pooled(own.relu(), pooling)


def pooled(own: Tensor, pooling: Pooling) -> Tensor:
    """Return the mean or maximum `[B, C]` over a sample's vectors of `[B, N, C]`, or with "each" all `[B N, C]`."""
    if pooling == "each":
        return own.flatten(0, 1)
    return own.mean(1) if pooling == "mean" else own.amax(1)


def concept_association(v: Tensor, labels: Tensor, negatives: Negatives = "none") -> Tensor:
    """Return L_CA of v `[B, C]`.

    "none", the paper's formula: -mean over the present concepts of log σ(v_c), zero if none is present.
    "assigned": binary cross-entropy over all concepts, which also pushes a latent down if its concept is absent; with
    48 concepts and two in a sample, that is most of its effect.
    "balanced": the paper's mean over the present ones, plus one of -log σ(-v_c) over the absent ones. v is then pooled
    before ReLU, since σ of a value that is never negative cannot express absence.
    """
    present = labels.to(v.dtype)
    if negatives == "assigned":
        return F.binary_cross_entropy_with_logits(v, present)
    of_present = -(F.logsigmoid(v) * present).sum() / present.sum().clamp(min=1)
    if negatives == "none":
        return of_present
    absent = 1 - present
    return of_present - (F.logsigmoid(-v) * absent).sum() / absent.sum().clamp(min=1)


def decorrelation(v: Tensor, groups: Tensor) -> Tensor:
    """Return L_DC: the mean of ρ² over pairs of latents of different macro-groups, ρ being Pearson's over the batch.

    A latent that is constant over the batch has ρ = 0. Zero if there is only one group.
    """
    centred = v - v.mean(0)
    norms = centred.norm(dim=0)
    # A norm of 0 has a column of zeros: dividing it by 1 keeps values and gradients finite.
    unit = centred / torch.where(norms > 0, norms, torch.ones_like(norms))
    rho = unit.T @ unit
    apart = groups[:, None] != groups
    return rho.square()[apart].mean() if bool(apart.any()) else v.new_zeros(())
