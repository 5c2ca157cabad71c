"""SPEED against its objective, and each step that finds what it keeps, by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import WeightEdit
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.closed_form.speed import affected, centres, null_space, right_factor
from excise.methods.configs.closed_form import SPEEDConfig
from excise.methods.cross_attention import text_states, word_states

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"), Pair("a gun", "a dog")))
D = 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projection(rank: int) -> Tensor:
    basis = torch.linalg.qr(random(D, rank, seed=9)).Q
    return basis @ basis.T


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_the_change_is_the_least_of_its_objective(lam: float) -> None:
    weight, words, anchor, fixed = (
        random(4, D, seed=1),
        random(3, D, seed=2),
        random(1, D, seed=3),
        random(D, 2, seed=4),
    )
    null, scale = projection(4), 0.7
    X = weight @ (anchor - words).T / 3 @ right_factor(words, null, fixed, scale, lam)
    torch.testing.assert_close(X @ null, X)
    if not lam:
        assert float((X @ fixed).abs().max()) < 1e-9

    def objective(X: Tensor) -> Tensor:
        total = scale * X.square().sum() + (((X @ fixed).square().sum() / lam) if lam else 0)
        for c in words:
            total = total + ((weight + X) @ c - weight @ anchor[0]).square().sum() / 3
        return total

    free = null
    if not lam:  # directions that also leave K2 alone
        inside = torch.linalg.svd(torch.cat([(null @ fixed).T, torch.eye(D, dtype=torch.float64) - null])).Vh[-2:]
        free = inside.T @ inside
        assert float((free @ fixed).abs().max()) < 1e-9 and torch.allclose(free @ null, free)
    least = float(objective(X))
    for seed in range(20):
        step = 1e-3 * random(4, D, seed=20 + seed) @ free
        assert float(objective(X + step)) > least
    X.requires_grad_()
    (slope,) = torch.autograd.grad(objective(X), X)
    assert float((slope @ free).abs().max()) < 1e-9


def test_columns_that_depend_on_each_other_hold_as_one() -> None:
    words, fixed, null = random(2, D, seed=2), random(D, 1, seed=4), projection(4)
    once = right_factor(words, null, fixed, 1.0, 0.0)
    torch.testing.assert_close(right_factor(words, null, fixed.repeat(1, 3), 1.0, 0.0), once, atol=1e-8, rtol=1e-6)


def test_the_null_space_is_that_of_the_kept_words() -> None:
    kept = random(7, 3, seed=5) @ random(3, D, seed=6)
    P = null_space(kept, 1e-6)
    torch.testing.assert_close(P @ P, P)
    assert float((kept @ P).abs().max()) < 1e-6 and round(float(P.trace())) == D - 3
    total = sum((torch.outer(r, r) for r in kept), torch.zeros(D, D, dtype=torch.float64)) / 7
    values = torch.linalg.eigvalsh(total)
    for limit in (float(values[3]) * 1.01, float(values[4]) * 0.99):
        assert round(float(null_space(kept, limit).trace())) == 4
    with pytest.raises(ExciseError, match=r"leave no direction to change; raise limit above 0\.1"):
        null_space(10 * torch.eye(D, dtype=torch.float64), 0.1)


@pytest.mark.parametrize(("filtered", "added"), [(True, 0), (False, 0), (True, 2), (False, 2)])
def test_the_words_that_are_kept_are_those_that_a_plain_edit_moves(filtered: bool, added: int) -> None:
    weight, words, anchor, kept = random(4, D, seed=1), random(2, D, seed=2), random(1, D, seed=3), random(5, D, seed=7)
    config = SPEEDConfig(filtered=filtered, added=added)
    made = affected(weight, words, anchor, kept, config, torch.Generator().manual_seed(8))
    C1 = sum((torch.outer(c, c) for c in words), torch.zeros(D, D, dtype=torch.float64)) / 2
    A = sum((torch.outer(anchor[0], c) for c in words), torch.zeros(D, D, dtype=torch.float64)) / 2
    plain = weight @ (A - C1) @ torch.linalg.inv(torch.eye(D, dtype=torch.float64) + C1)

    def above(rows: list[Tensor]) -> list[Tensor]:
        moved = [float((plain @ r).norm()) for r in rows]
        return [r for r, by in zip(rows, moved, strict=True) if by > sum(moved) / len(moved)]

    wanted = above(list(kept)) if filtered else list(kept)
    assert 0 < len(wanted) <= 5 and (len(wanted) < 5) is filtered
    if added:
        v = torch.linalg.eigh(weight @ weight.T)  # of W's left side; the right vector follows from it
        right = weight.T @ v.eigenvectors[:, 0]
        right = right / right.norm()
        noise = torch.randn(added * len(wanted), D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        near = [wanted[n % len(wanted)] + float(eps @ right) * right for n, eps in enumerate(noise)]
        wanted = wanted + above(near)
    torch.testing.assert_close(made, torch.stack(wanted))


def test_a_single_kept_word_stays() -> None:
    words, anchor, kept = (random(1, D, seed=seed) for seed in (1, 2, 3))
    made = affected(random(4, D), words, anchor, kept, SPEEDConfig(added=0), torch.Generator())
    torch.testing.assert_close(made, kept)


def test_the_centres_are_the_best_of_all_ways_to_divide() -> None:
    states = torch.cat(
        [random(3, 2, seed=n) * 0.3 + torch.tensor(at) for n, at in enumerate(([0.0, 4], [5, 0], [-4, -4]))]
    )

    def spread(labels: tuple[int, ...]) -> float:
        chosen = torch.tensor(labels)
        parts = [states[chosen == n] for n in range(3)]
        return sum(float((part - part.mean(0)).square().sum()) for part in parts if len(part))

    best = torch.tensor(min(product(range(3), repeat=9), key=spread))
    wanted = torch.stack([states[best == n].mean(0) for n in range(3)])
    made = centres(states, 3)
    assert sorted(map(tuple, made.round(decimals=6).tolist())) == sorted(map(tuple, wanted.round(decimals=6).tolist()))
    assert len(centres(states[:1].repeat(5, 1), 3)) == 1


def test_the_edits_are_the_formula_on_the_pipelines_own_states(tiny_pipe: Any) -> None:
    config = SPEEDConfig(limit=0.05, preserve="cat; dog; horse", guide="thing", scale=0.8, lam=0.2, added=1, seed=3)
    eraser = method("speed").fit(tiny_pipe, CONCEPT, config)
    words, anchor, kept = (
        word_states(tiny_pipe, texts).double() for texts in (["gun", "pistol"], ["thing"], ["cat", "dog", "horse"])
    )
    empty = text_states(tiny_pipe, [""])[0].double()
    paths = [name for name, _ in tiny_pipe.unet.named_modules() if name.endswith("attn2.to_v")]
    assert [edit.site.path for edit in eraser.edits] == paths
    K2 = torch.cat([empty[:1], centres(empty[1:], 3)]).T
    for edit in eraser.edits:
        assert isinstance(edit, WeightEdit) and edit.rank == 2
        W = tiny_pipe.unet.get_submodule(edit.site.path).weight.detach().double()
        one = torch.eye(W.shape[1], dtype=torch.float64)
        held = affected(W, words, anchor, kept, config, torch.Generator().manual_seed(3))
        P = null_space(held, 0.05)
        C1 = sum((torch.outer(c, c) for c in words), 0 * one) / 2
        A = sum((torch.outer(anchor[0], c) for c in words), 0 * one) / 2
        M = torch.linalg.inv(C1 @ P + 0.8 * one)
        inner = torch.linalg.inv(K2.T @ P @ M @ K2 + 0.2 * torch.eye(K2.shape[1], dtype=torch.float64))
        wanted = W @ (A - C1) @ P @ (one - M @ K2 @ inner @ K2.T @ P) @ M
        torch.testing.assert_close(edit.change().double(), wanted, atol=1e-5, rtol=1e-3)
        assert float((wanted @ held[0]).norm() / (wanted @ words[0]).norm()) < 1.0


def test_the_settings_are_the_authors_own() -> None:
    config = SPEEDConfig()
    assert (config.guide, config.scale, config.lam, config.limit, config.filtered, config.added) == (
        "", 1.0, 0.0, 0.1, True, 10,
    )  # fmt: skip
