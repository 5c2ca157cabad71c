"""What a few neurons encode of a concept: sparse probing, and targeted probe perturbation.

Both as in SAEBench (Karvonen et al. 2025). Neither needs a picture. N prompts, half of them with the concept; m
neurons; d the width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError

RIDGE = 1e-2
"""Weight of a probe's squared coefficients, over features scaled to unit variance, so that it has an optimum even if
the sides are separable."""


class Probe(NamedTuple):
    """Logistic regression: predicts "with the concept" if (x - mean) / scale · weight + bias > 0."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def accuracy(self, x: Tensor, present: Tensor) -> float:
        """Return the share of `x` `[N, f]` that it classifies correctly; `present` `[N]` bool."""
        logits = (x.double() - self.mean) / self.scale @ self.weight + self.bias
        return float(((logits > 0) == present).double().mean())


def probe(x: Tensor, present: Tensor, steps: int = 50) -> Probe:
    """Fit a probe to `x` `[N, f]` by Newton's method: mean log loss + RIDGE / 2 |weight|², features standardised.

    Raises ExciseError if one side is missing.
    """
    y = present.double()
    if len(y) == 0 or not 0 < float(y.mean()) < 1:
        raise ExciseError("a probe needs prompts with the concept and prompts without it")
    x = x.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    design = torch.cat([(x - mean) / scale, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    ridge = torch.full((design.shape[1],), RIDGE, dtype=torch.float64)
    ridge[-1] = 0
    theta = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(design @ theta)
        gradient = design.T @ (p - y) / len(y) + ridge * theta
        if float(gradient.abs().max()) < 1e-10:
            break
        curvature = design.T @ (design * (p * (1 - p))[:, None]) / len(y) + torch.diag(ridge.clamp(min=1e-9))
        theta = theta - torch.linalg.solve(curvature, gradient)
    return Probe(mean, scale, theta[:-1], theta[-1])


def most_different(z: Tensor, present: Tensor, k: int) -> Tensor:
    """Return the k neurons of `z` `[N, m]` whose means with and without the concept differ most, |μ₊ - μ₋|."""
    return (z[present].double().mean(0) - z[~present].double().mean(0)).abs().topk(min(k, z.shape[1])).indices


def sparse_probing(z: Tensor, present: Tensor, fold: Tensor, k: int = 1) -> float:
    """Return the cross-validated accuracy of a probe on the k neurons that differ most.

    Neurons and probe are chosen without the fold that is tested. `z`: `[N, m]` activations of the prompts; `fold`:
    `[N]`, each prompt's fold. Raises ExciseError as `probe`.
    """
    right = 0.0
    for f in torch.unique(fold).tolist():
        test = fold == f
        chosen = most_different(z[~test], present[~test], k)
        fitted = probe(z[~test][:, chosen], present[~test])
        right += fitted.accuracy(z[test][:, chosen], present[test]) * int(test.sum())
    return right / len(z)


@dataclass(frozen=True, eq=False)
class Prompts:
    """A concept's prompts, as means over each one's scored tokens.

    Attributes:
        x: States `[N, d]`.
        z: Codes `[N, m]`.
        present: `[N]` bool.
        fold: `[N]`; probes are tested on fold 0 and fitted to the others.
    """

    x: Tensor
    z: Tensor
    present: Tensor
    fold: Tensor


@dataclass(frozen=True)
class Perturbation:
    """Targeted probe perturbation of one concept."""

    target: float
    """Accuracy that its own probe loses when its neurons are removed."""
    others: float
    """Accuracy that the other concepts' probes then lose, on average."""

    @property
    def value(self) -> float:
        """target - others. At 1 a probe went from right to wrong with the others untouched; a half is chance level."""
        return self.target - self.others


def perturbation(concepts: Sequence[Prompts], decoder: Tensor, n: int = 1) -> list[Perturbation]:
    """Return each concept's perturbation; the mean of `value` is SAEBench's TPP.

    TPP = mean_c [(A_cc⁰ - A_cc) - mean_{j≠c} (A_jc⁰ - A_jc)].
    A_jc is the accuracy of a linear probe for concept j on j's prompts, after removing the n neurons that differ most
    for c from the states, x - Σ z_i W_dec,i, with the SAE's error kept. Prompts are represented by the mean over their
    tokens: removal is linear, so it commutes with the mean. `decoder`: W_dec `[m, d]`. Raises ExciseError for fewer
    than 2 concepts.
    """
    if len(concepts) < 2:
        raise ExciseError("targeted probe perturbation needs 2 concepts or more: one to erase, others to spare")
    probes, tests = [], []
    for own in concepts:
        train = own.fold != 0
        probes.append(probe(own.x[train], own.present[train]))
        tests.append((own.x[~train].double(), own.z[~train].double(), own.present[~train]))
    plain = [fitted.accuracy(x, present) for fitted, (x, _, present) in zip(probes, tests, strict=True)]
    found = []
    for c, own in enumerate(concepts):
        train = own.fold != 0
        neurons = most_different(own.z[train], own.present[train], n)
        rows = decoder[neurons].double()
        lost = [
            before - fitted.accuracy(x - z[:, neurons] @ rows, present)
            for before, fitted, (x, z, present) in zip(plain, probes, tests, strict=True)
        ]
        others = lost[:c] + lost[c + 1 :]
        found.append(Perturbation(lost[c], sum(others) / len(others)))
    return found
