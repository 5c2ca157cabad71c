"""LEACE: no probe finds the label after it, no affine map does so with a smaller change, and the edit of a prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.vectors import AffineEdit
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import LEACEConfig
from excise.methods.steering.leace import leace, states
from excise.sites import Site, capture, sites_of
from tests import tiny

PAIRS = (Pair("a gun on grass", "a cat on grass"), Pair("a photo of a gun", "a photo of a cup"))
CONCEPT = Concept("gun", ("gun",), PAIRS)
SITE = Site("text_encoder", "final_layer_norm", 3)
SHARE = 0.25


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    shown, others = (torch.randn(n, 3, generator=generator, dtype=torch.float64) @ mix for n in (20, 30))
    return shown + torch.tensor([1.0, -0.5, 2.0]), others


def weighted() -> tuple[Tensor, Tensor]:
    """The same, each row as often as it weighs: a quarter of all rows show the concept."""
    shown, others = data()
    return torch.cat([shown, others.repeat(2, 1)]), torch.cat([torch.ones(20), torch.zeros(60)]).double()


def mapped(x: Tensor) -> Tensor:
    mean, read, write = leace(*data(), SHARE)
    return x - torch.outer((x - mean) @ read, write)


def test_no_linear_probe_beats_the_constant_one_after_it() -> None:
    x, z = weighted()

    def slope(x: Tensor) -> Tensor:
        """Of the logistic loss, which is convex, at the best constant probe: with w = 0."""
        w, bias = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.logit(z.mean())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + bias, z)
        (found,) = torch.autograd.grad(loss, w)
        return found

    assert float(slope(x).abs().max()) > 0.1
    assert float(slope(mapped(x)).abs().max()) < 1e-10
    design = torch.cat([mapped(x), torch.ones(80, 1)], 1)
    least = design @ torch.linalg.lstsq(design, z[:, None]).solution
    assert float((least - z.mean()).abs().max()) < 1e-9


def test_no_affine_map_that_does_so_changes_the_states_less() -> None:
    """Against the least squares over all A x + b with A Σ_xz = 0, and against random ones."""
    x, z = weighted()
    along = ((x - x.mean(0)).T @ (z - z.mean())) / 80
    hidden = torch.linalg.svd(along[None]).Vh[1:]  # A = B `hidden`, with any B [3, 2]
    design = torch.cat([x @ hidden.T, torch.ones(80, 1)], 1)
    best = torch.linalg.lstsq(design, x).solution
    torch.testing.assert_close(mapped(x), design @ best, atol=1e-8, rtol=1e-6)
    own = float((mapped(x) - x).square().sum())
    for seed in range(20):
        step = 0.05 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float((design @ (best + step) - x).square().sum()) > own


def test_its_vectors_are_the_paper_s_with_square_roots() -> None:
    x, z = weighted()
    mean, read, write = leace(*data(), SHARE)
    torch.testing.assert_close(mean, x.mean(0))
    covariance = (x - mean).T @ (x - mean) / 80
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ values.sqrt().diag() @ vectors.T
    W = torch.linalg.inv(root)
    w = W @ ((x - mean).T @ z / 80)
    P = torch.outer(w, w) / (w @ w)
    torch.testing.assert_close(torch.outer(write, read), root @ P @ W, atol=1e-9, rtol=1e-6)


def test_a_rare_concept_moves_other_states_less() -> None:
    shown, others = data()

    def moved(share: float, x: Tensor) -> float:
        mean, read, write = leace(shown, others, share)
        return float(torch.outer((x - mean) @ read, write).mean(0).norm())

    assert moved(0.01, others) < 0.05 * moved(0.01, shown)
    assert moved(0.5, others) == pytest.approx(moved(0.5, shown), rel=1e-6)


def test_every_state_but_the_first_ones_is_projected() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, read, write = torch.randn(3, 3, generator=generator)
    h = torch.randn(2, 4, 3, generator=generator)
    delta = AffineEdit(SITE, mean, read, write, lead=1).delta(h, 0.5)
    assert delta is not None
    for b, t in np.ndindex(2, 4):
        wanted = 0.5 * float((h[b, t] - mean) @ read) * write if t else torch.zeros(3)
        torch.testing.assert_close(delta[b, t], wanted)
    assert AffineEdit(SITE, mean, read, write).delta(h, 0.0) is None
    everywhere = AffineEdit(SITE, mean, read, write).delta(h)
    assert everywhere is not None and everywhere[:, 0].any()


def test_it_is_fitted_from_the_word_on_and_leaves_no_trace(tiny_pipe: Any, tmp_path: Path) -> None:
    site = sites_of(tiny_pipe)[-1]
    assert site.path == "final_layer_norm"
    (seen,) = capture(tiny_pipe, [site], [side for pair in CONCEPT.pairs for side in (pair.concept, pair.deconcept)])
    h = seen.states[site]
    at = tuple(
        next(t for t in range(77) if not torch.allclose(h[2 * n, t], h[2 * n + 1, t], atol=1e-4)) for n in range(2)
    )
    shown, others, lead = states(tiny_pipe, site, CONCEPT, 2)
    torch.testing.assert_close(shown, torch.cat([h[0, at[0] :], h[2, at[1] :]]))
    torch.testing.assert_close(others, torch.cat([h[1, at[0] :], h[3, at[1] :]]))
    assert lead == 1
    eraser = method("leace").fit(tiny_pipe, CONCEPT, LEACEConfig(share=0.2))
    (edit,) = eraser.edits
    assert isinstance(edit, AffineEdit) and edit.lead == 1
    for made, wanted in zip((edit.mean, edit.read, edit.write), leace(shown, others, 0.2), strict=True):
        torch.testing.assert_close(made, wanted.float())

    def draw() -> np.ndarray:
        how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
        image: np.ndarray = tiny_pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how).images
        return image

    plain = draw()
    eraser.save(tmp_path / "gun")
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with eraser.attach(tiny_pipe):
        assert not np.array_equal(draw(), plain)
        (edited,) = capture(tiny_pipe, [site], ["a gun on grass"])
        torch.testing.assert_close(edited.states[site][0], (h - edit.delta(h))[0], atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    assert np.array_equal(draw(), plain)


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("leace").fit(tiny_pipe, replace(CONCEPT, pairs=()))
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match="leace edits the only text encoder of a pipeline"):
            method("leace").fit(tiny.build("sd3"), CONCEPT)
    with pytest.raises(ExciseError, match="are not three vectors"):
        AffineEdit(SITE, torch.zeros(3), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ExciseError):
        LEACEConfig(share=1.0)
