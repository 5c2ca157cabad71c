"""The edit that leaves other neurons' directions alone: its projection by elimination, and how it is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser, SAEEdit
from excise.erasers.edits.merged_sae import can_be_merged
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit, orthogonal
from excise.erasers.edits.sae_rows import ROWS, altered_rows
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site

SITE = Site("text_encoder", "layers.0", 12)
KEPT = (3, 9, 4)


@pytest.fixture
def sae() -> TopKSAE:
    sae = TopKSAE(SAEConfig(d=12, m=20, k=4), seed=3)
    with torch.no_grad():
        sae.W_dec.normal_(generator=torch.Generator().manual_seed(3))
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
    return sae


def edited(sae: TopKSAE, kept: tuple[int, ...] = KEPT, **options: Any) -> OrthogonalSAEEdit:
    return OrthogonalSAEEdit.from_sae(sae, SITE, [1, 7], coupled=kept, gate="relu", lam=1.5, **options)


def by_elimination(row: Tensor, kept: Tensor) -> Tensor:
    """I - D (DᵀD)⁻¹ Dᵀ applied to one row, the linear system solved by Gaussian elimination in Python's numbers."""
    D = [[float(x) for x in each] for each in kept]
    v = [float(x) for x in row]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    n = len(D)
    rows = [[dot(D[i], D[j]) for j in range(n)] + [dot(D[i], v)] for i in range(n)]
    for i in range(n):
        pivot = rows[i][i]
        rows[i] = [x / pivot for x in rows[i]]
        for j in range(n):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    weights = [each[n] for each in rows]
    return torch.tensor([x - sum(w * d[at] for w, d in zip(weights, D, strict=True)) for at, x in enumerate(v)])


def test_the_projection_is_the_papers_formula(sae: TopKSAE) -> None:
    rows, kept = sae.W_dec.detach()[[1, 7]], sae.W_dec.detach()[list(KEPT)]
    made = orthogonal(rows, kept)
    for row, found in zip(rows, made, strict=True):
        torch.testing.assert_close(found, by_elimination(row, kept), atol=1e-6, rtol=1e-6)
    assert float((made @ kept.T).abs().max()) < 1e-6
    assert float((made - rows).norm()) > 0.1
    again = orthogonal(rows, torch.cat([kept, 2 * kept[:1]]))
    torch.testing.assert_close(again, made, atol=1e-6, rtol=1e-6)


def test_what_is_subtracted_is_the_papers_and_no_code_of_a_kept_direction_moves(sae: TopKSAE) -> None:
    edit, plain = edited(sae), SAEEdit.from_sae(sae, SITE, [1, 7], gate="relu", lam=1.5)
    h = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    delta = edit.delta(h, 0.8)
    assert delta is not None
    for b in range(2):
        for t in range(5):
            wanted = torch.zeros(12)
            for i in (1, 7):
                z = max(0.0, ((h[b, t] - sae.b_pre) @ sae.W_enc[i] + sae.b_enc[i]).item())
                wanted += 0.8 * 1.5 * z * by_elimination(sae.W_dec[i].detach(), sae.W_dec.detach()[list(KEPT)])
            torch.testing.assert_close(delta[b, t], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(edit.codes(h), plain.codes(h)), "the gate stays as it is"
    along = sae.W_dec.detach()[list(KEPT)]
    torch.testing.assert_close(edit.apply(h) @ along.T, h @ along.T, atol=1e-4, rtol=1e-4)
    silent = replace(edit, gate="threshold", threshold=torch.full((2,), 1e6))
    assert torch.equal(silent.apply(h), h), "a prompt in which no neuron fires keeps every bit"


def test_it_says_what_is_left_of_a_direction(sae: TopKSAE) -> None:
    rows = sae.W_dec.detach()[[1, 7]]
    for row, share in zip(rows, edited(sae).left(rows), strict=True):
        assert share == pytest.approx(float(by_elimination(row, sae.W_dec.detach()[list(KEPT)]).norm() / row.norm()))
        assert 0 < share < 1


def test_it_is_saved_and_loaded_as_it_is(sae: TopKSAE, tmp_path: Path) -> None:
    eraser = Eraser((edited(sae),), "gun", "gun", made_for={}, canary=("a gun",))
    eraser.save(tmp_path / "gun")
    (edit,) = Eraser.load(tmp_path / "gun").edits
    assert isinstance(edit, OrthogonalSAEEdit)
    assert edit.coupled == KEPT and torch.equal(edit.W_dec, edited(sae).W_dec)
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert replace(eraser, edits=(edited(sae, (3, 9)),)).digest != eraser.digest
    assert not can_be_merged(replace(edit, gate="whole")), "two of them may write one neuron in two directions"


def test_its_directions_are_computed_again_from_the_sae(sae: TopKSAE) -> None:
    edit = edited(sae)
    assert altered_rows(edit, sae) == []
    rounded = edit.W_dec.clone()
    rounded.view(torch.int32).view(-1)[0] ^= 1
    assert altered_rows(replace(edit, W_dec=rounded), sae) == [], "another machine rounds differently"
    for W_dec in (-edit.W_dec, edit.W_dec + 1e-3, sae.W_dec.detach()[[1, 7]].clone(), edit.W_dec.flip(0)):
        assert altered_rows(replace(edit, W_dec=W_dec), sae) == ["W_dec"]
    assert altered_rows(replace(edit, coupled=(3, 9, 5)), sae) == ["W_dec"]
    assert altered_rows(replace(edit, coupled=(3, 9, 20)), sae) == ["W_dec"]
    assert altered_rows(replace(edit, b_enc=edit.b_enc + 1), sae) == ["b_enc"]
    spanning = tuple(n for n in range(20) if n not in (1, 7))
    for few in (spanning, spanning[:11]):
        tiny = 1e-6 * torch.randn(2, 12, generator=torch.Generator().manual_seed(5))
        hidden = replace(edit, coupled=few, W_dec=tiny, lam=1e6)
        assert altered_rows(hidden, sae) == ["W_dec"], "nothing is left of the direction, so a large λ could hide any"
    assert altered_rows(replace(edit, indices=torch.tensor([1, 20])), sae) == [*ROWS]


@pytest.mark.parametrize("coupled", [(), (3, 3), (1, 3), (-1,), (True,), (2.0,), ("3",)])
def test_impossible_neurons_are_refused(sae: TopKSAE, coupled: Any) -> None:
    with pytest.raises(ExciseError, match="coupled neurons are named once each"):
        replace(edited(sae), coupled=coupled)


def test_a_neuron_that_is_not_there_or_leaves_nothing_is_refused(sae: TopKSAE) -> None:
    with pytest.raises(ExciseError, match="the SAE has 20 neurons, numbered from 0; there is no 20"):
        edited(sae, (20,))
    with torch.no_grad():
        sae.W_dec[3] = -2 * sae.W_dec[7]
    with pytest.raises(ExciseError, match="what neuron 7 writes lies within what 3 coupled ones do; lower ortho"):
        edited(sae)
