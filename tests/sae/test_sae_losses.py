"""The objective against an oracle written from Gao et al. 2024, and the four properties public code breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from excise.sae.config import SAEConfig
from excise.sae.losses import (
    aux_k,
    aux_loss,
    aux_reconstruction,
    idle_tokens,
    loss,
    project_gradient,
    renormalise,
    step,
)
from excise.sae.model import Codes, TopKSAE

D, M, K, N = 8, 24, 3, 20
ALPHA = 1 / 32


def batch(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=generator, dtype=torch.float64) @ torch.randn(
        D, D, generator=generator, dtype=torch.float64
    )


def an_sae(dead: list[int], seed: int = 0) -> TopKSAE:
    """Latents in `dead` can never be among the top k, as b_enc keeps them low, yet have positive pre-activations."""
    sae = TopKSAE(SAEConfig(D, M, K), seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        sae.W_enc += 0.3 * torch.randn(M, D, generator=generator, dtype=torch.float64)
        sae.b_pre += torch.randn(D, generator=generator, dtype=torch.float64)
        sae.b_enc += 30
        sae.b_enc[dead] = 0.5
    renormalise(sae)  # unit to float64's precision
    return sae


def mask(dead: list[int]) -> torch.Tensor:
    return torch.zeros(M, dtype=torch.bool).index_fill(0, torch.tensor(dead, dtype=torch.long), True)


def run(sae: TopKSAE, x: torch.Tensor, dead: list[int], variance: float):
    return loss(sae, x, sae(x).reconstruction, variance, mask(dead), ALPHA)


def oracle(sae: TopKSAE, x: np.ndarray, dead: list[int], variance: float) -> tuple[float, float]:
    """(mse, aux) with loops over vectors and latents."""
    W_enc, W_dec, b_enc, b_pre = (p.detach().numpy() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_pre))
    n, d = x.shape
    e, e_hat, squares = np.zeros((n, d)), np.zeros((n, d)), 0.0
    k_aux = min(len(dead), 2 ** int(np.floor(np.log2(d / 2))))
    for row in range(n):
        z = {i: float(W_enc[i] @ (x[row] - b_pre) + b_enc[i]) for i in range(len(W_enc))}
        best = sorted(z, key=lambda i: -z[i])[: sae.config.k]
        x_hat = sum((max(0.0, z[i]) * W_dec[i] for i in best), start=b_pre.copy())
        e[row] = x[row] - x_hat
        squares += float(((x_hat - x[row]) ** 2).sum())
        for i in sorted(dead, key=lambda i: -z[i])[:k_aux]:
            e_hat[row] += max(0.0, z[i]) * W_dec[i]
    aux = ((e_hat - e) ** 2).mean() / ((e - e.mean(axis=0)) ** 2).mean() if dead else 0.0
    return squares / (n * d) / variance, float(aux)


@pytest.mark.parametrize("dead", [[], [3], [0, 5], [1, 2, 3, 4], list(range(2, 15))])
def test_the_loss_agrees_with_the_oracle(dead):
    sae, x = an_sae(dead), batch()
    mse, aux = oracle(sae, x.numpy(), dead, variance=2.5)
    parts = run(sae, x, dead, 2.5)
    assert parts.mse.item() == pytest.approx(mse, rel=1e-12)
    assert parts.aux.item() == pytest.approx(aux, rel=1e-12)
    assert parts.total.item() == pytest.approx(mse + ALPHA * aux, rel=1e-12)
    assert (parts.aux.item() > 0) == bool(dead)


@pytest.mark.parametrize(
    ("n_dead", "d", "expected"),
    [(0, 768, 0), (5, 768, 5), (2000, 768, 256), (2000, 256, 128), (2000, 1024, 512), (9, 7, 2), (9, 1, 1), (9, 3, 1)],
)
def test_k_aux_is_a_power_of_two_up_to_half_the_width(n_dead, d, expected):
    assert aux_k(n_dead, d) == expected


def test_aux_is_zero_and_gives_no_gradient_when_nothing_is_dead():
    sae, x = an_sae([]), batch()
    aux = aux_loss(sae, x, sae(x).reconstruction, mask([]))
    assert float(aux) == 0
    assert not aux.requires_grad


@pytest.mark.parametrize("dead", [[7], [2, 9, 11], list(range(10))])
def test_the_aux_gradient_reaches_dead_rows_alone(dead):
    sae, x = an_sae(dead), batch()
    aux_loss(sae, x, sae(x).reconstruction, mask(dead)).backward()
    alive = ~mask(dead)
    for parameter in (sae.W_enc, sae.W_dec, sae.b_enc):
        assert not parameter.grad[alive].any()
    assert sae.b_pre.grad is None or not sae.b_pre.grad.any()
    # sparsify's fused encoder gives the encoder no gradient at all on this path. (Of many dead, k_aux are chosen.)
    for parameter in (sae.W_enc, sae.W_dec):
        reached = parameter.grad[dead].abs().sum(1) > 0
        assert int(reached.sum()) >= min(len(dead), aux_k(len(dead), D))


@pytest.mark.parametrize("dead", [[7], [2, 9, 11], list(range(10))])
def test_the_whole_losss_gradient_is_that_of_dense_products(dead):
    """Every product over all latents, by autograd, in float32: what the sparse one saves changes no gradient."""
    sae, x = an_sae(dead).float(), batch().float()
    parameters = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_pre]
    sparse = torch.autograd.grad(run(sae, x, dead, 2.0).total, parameters)
    z = F.linear(x - sae.b_pre, sae.W_enc, sae.b_enc)
    top = z.topk(K, dim=-1)
    reconstruction = torch.zeros_like(z).scatter(-1, top.indices, top.values.relu()) @ sae.W_dec + sae.b_pre
    error = (x - reconstruction).detach()
    theirs = F.linear(x - sae.b_pre.detach(), sae.W_enc, sae.b_enc)[:, dead]
    most = theirs.topk(aux_k(len(dead), D), dim=-1)
    revived = torch.zeros_like(theirs).scatter(-1, most.indices, most.values).relu() @ sae.W_dec[dead]
    aux = F.mse_loss(revived, error) / (error - error.mean(0)).square().mean()
    dense = torch.autograd.grad(F.mse_loss(reconstruction, x) / 2.0 + ALPHA * aux, parameters)
    for own, other in zip(sparse, dense, strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_without_a_weight_the_auxiliary_term_is_not_worked_out(monkeypatch):
    monkeypatch.setattr("excise.sae.losses.aux_loss", lambda *args: pytest.fail("worked out"))
    sae, x = an_sae([7]), batch()
    parts = loss(sae, x, sae(x).reconstruction, 2.0, mask([7]), 0.0)
    assert float(parts.aux) == 0
    assert float(parts.total) == float(parts.mse)


def test_the_reconstruction_is_untouched_by_dead_latents():
    sae, x = an_sae([4]), batch()
    assert not (sae.encode(x).indices == 4).any()


@pytest.mark.parametrize("scale", [1e-3, 0.5, 4.0, 1e3])
def test_the_loss_does_not_see_the_scale_of_x(scale):
    dead = [1, 5, 6, 7, 8, 9]
    sae, x = an_sae(dead), batch()
    before = run(sae, x, dead, 2.0)
    with torch.no_grad():
        sae.b_pre *= scale
        sae.b_enc *= scale
    after = run(sae, scale * x, dead, 2.0 * scale**2)
    for part, other in zip(before, after, strict=True):
        assert other.item() == pytest.approx(part.item(), rel=1e-9)


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_switching_on_a_fitted_dead_latent_lowers_fvu():
    """With the error's sign reversed (SAeUron's code), or b_pre counted twice, this raises it."""
    dead = [4]
    sae, x = TopKSAE(SAEConfig(D, M, K)).double(), batch()
    with torch.no_grad():
        sae.b_enc[dead] = -1e9
        live = sae(x).reconstruction
        sae.b_enc[dead] = 0.5
    optimiser = torch.optim.Adam([sae.W_enc, sae.W_dec, sae.b_enc], lr=0.05)
    for _ in range(150):
        aux_loss(sae, x, live, mask(dead)).backward()
        step(sae, optimiser)
    switched_on = live + aux_reconstruction(sae, x, mask(dead)).detach()
    assert fvu(x, switched_on) < 0.95 * fvu(x, live)
    assert fvu(x, 2 * live - switched_on) > fvu(x, live)


def test_a_perfect_reconstruction_teaches_nothing():
    sae, x = an_sae([1]), batch()
    assert float(aux_loss(sae, x, x.clone(), mask([1]))) == 0
    assert float(aux_loss(sae, x[:1], sae(x[:1]).reconstruction, mask([1]))) == 0


def test_idle_tokens_count_vectors_and_start_again_when_a_latent_fires():
    idle = torch.tensor([10, 10, 10, 10])
    codes = Codes(torch.tensor([[2.0, 1e-4], [0.5, 0.0]]), torch.tensor([[0, 1], [0, 2]]))
    assert idle_tokens(idle, codes, 1e-3).tolist() == [0, 12, 12, 12]
    assert idle_tokens(idle, codes, 0.0).tolist() == [0, 0, 12, 12]


def test_idle_tokens_count_every_leading_dimension():
    codes = Codes(torch.zeros(2, 7, 1), torch.zeros(2, 7, 1, dtype=torch.long))
    assert idle_tokens(torch.zeros(3, dtype=torch.long), codes, 0.0).tolist() == [14, 14, 14]


def test_the_projected_gradient_is_tangent_to_the_sphere():
    sae, x = an_sae([]), batch()
    run(sae, x, [], 1.0).total.backward()
    full = sae.W_dec.grad.clone()
    project_gradient(sae)
    parallel = (sae.W_dec.grad * sae.W_dec.detach()).sum(1)
    assert float(parallel.abs().max()) < 1e-12
    removed = full - sae.W_dec.grad
    cosine = F.cosine_similarity(removed, sae.W_dec.detach(), dim=1).abs()
    moved = removed.norm(dim=1) > 1e-9
    assert moved.any()
    torch.testing.assert_close(cosine[moved], torch.ones_like(cosine[moved]))


def test_a_step_turns_the_decoder_along_the_projected_gradient():
    """Plain gradient descent, row by row: what is parallel to a row is taken from its gradient before the step."""
    sae, x = an_sae([]), batch()
    before = sae.W_dec.detach().clone()
    run(sae, x, [], 1.0).total.backward()
    gradient = sae.W_dec.grad.clone()
    stretch = (gradient * before).sum(1, keepdim=True)
    assert float(stretch.abs().max()) > 1e-2, "else projecting changes nothing"
    step(sae, torch.optim.SGD(sae.parameters(), lr=1.0))
    turned, plain = before - (gradient - stretch * before), before - gradient
    torch.testing.assert_close(sae.W_dec.detach(), F.normalize(turned, dim=1))
    assert float((F.normalize(plain, dim=1) - F.normalize(turned, dim=1)).abs().max()) > 1e-3
    assert sae.W_dec.grad is None


def test_the_decoder_is_unit_norm_after_each_step():
    sae, x = an_sae([]), batch()
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        run(sae, x, [], 1.0).total.backward()
        step(sae, optimiser)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M, dtype=torch.float64))
        assert all(p.grad is None for p in sae.parameters())


def test_renormalise_survives_a_zero_row():
    sae = an_sae([])
    with torch.no_grad():
        sae.W_dec[3] = 0
    renormalise(sae)
    assert torch.isfinite(sae.W_dec).all()
