"""Splitting of concepts over neurons: whether their top neurons are unique, how many share them, how monosemantic.

Shapes: N samples, m neurons, C concepts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from excise.errors import ExciseError, MissingExtra


def own_top(scores: Tensor) -> Tensor:
    """Return `[C]` bool: whether a concept's highest-scoring neuron, by `scores` `[C, m]`, is unique to it."""
    top = scores.argmax(1)
    return (top[:, None] == top).sum(1) == 1


def effective_neurons(scores: Tensor) -> Tensor:
    """Return `[C]`: exp of the entropy of a concept's positive scores as shares, from `scores` `[C, m]`.

    1 if one neuron has everything, k if k neurons share it equally; nan if no score is positive.
    """
    positive = scores.double().clamp(min=0)
    shares = positive / positive.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy.exp()


class Monosemanticity(NamedTuple):
    """Feature monosemanticity score of one concept (Härle et al. 2025)."""

    capacity: float
    """acc_0: how well the best single neuron separates samples with the concept from those without."""
    local: float
    """2 (acc_0 - acc_p): the loss when the best p neurons are removed."""
    overall: float
    """FMS@p = acc_0 (local + global) / 2, global = 1 - A(n)/n, A(n) = Σ_i (acc_i - acc_0) over n more neurons."""


def monosemanticity(codes: Tensor, present: Tensor, p: int = 1, n: int = 5, seed: int = 0) -> Monosemanticity:
    """Return FMS@p of a concept, by Gini decision trees.

    Both sides are subsampled to equal size, so that chance is one half. acc_p is the best single neuron's accuracy
    after the p best ones were removed, acc_i that of a tree with i further splits.

    Args:
        codes: Codes `[N, m]` of samples.
        present: `[N]` bool, whether each shows the concept.
        p: Number of neurons to remove.
        n: Number of deeper trees.
        seed: Seed of the subsampling.

    Raises:
        ExciseError: if a side is empty, or without scikit-learn.
    """
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(present.numpy() == side) for side in (True, False)]
    count = min(map(len, sides))
    if not count:
        raise ExciseError("a concept's monosemanticity needs samples with it and without it")
    rows = np.concatenate([rng.choice(side, count, replace=False) for side in sides])
    x, y = codes.numpy()[rows].astype(np.float32), np.repeat((1, 0), count)
    best, root = _tree(x, y, 1)
    left, accuracy = x.copy(), best
    for _ in range(p):
        left[:, root] = 0
        accuracy, root = _tree(left, y, 1)
    deeper = [_tree(x, y, 1 + depth)[0] for depth in range(1, n + 1)]
    local, whole = 2 * (best - accuracy), 1 - sum(acc - best for acc in deeper) / n
    return Monosemanticity(best, local, best * (local + whole) / 2)


def _tree(x: Any, y: Any, depth: int) -> tuple[float, int]:
    """Return the training accuracy of a Gini tree, and the neuron at its root."""
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise MissingExtra(
            "monosemanticity needs scikit-learn; install it with: pip install 'excise[trees]'"
        ) from error
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x, y)
    return float(tree.score(x, y)), max(0, int(tree.tree_.feature[0]))
