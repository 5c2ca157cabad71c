from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise import reference
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, load
from excise.sites import PRESETS, capture


def random_sae(d: int = 6, m: int = 15, k: int = 4, seed: int = 0) -> TopKSAE:
    """Encoder and decoder untied, all biases in play, float64 so that oracles can be compared tightly."""
    sae = TopKSAE(SAEConfig(d, m, k), seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.b_enc, sae.b_pre):
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


def vectors(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(sae: TopKSAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vector, by SNCE's eqs. 1-2 with loops: dense code [m] after TopK, and the reconstruction [d]."""
    W_enc, W_dec, b_enc, b_pre = (p.detach().numpy() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_pre))
    m, d = W_enc.shape
    z = np.array([max(0.0, sum(W_enc[i, j] * (x[j] - b_pre[j]) for j in range(d)) + b_enc[i]) for i in range(m)])
    order = sorted(range(m), key=lambda i: -z[i])
    z[order[sae.config.k :]] = 0
    return z, np.array([sum(z[i] * W_dec[i, j] for i in range(m)) + b_pre[j] for j in range(d)])


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 7), m=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_encode_and_decode_agree_with_loops(d, m, k, seed):
    sae = random_sae(d, m, min(k, m), seed)
    x = vectors(3, d, seed=seed)
    reconstruction, codes = sae(x)
    for row in range(3):
        z, x_hat = oracle(sae, x[row].numpy())
        dense = np.zeros(m)
        np.add.at(dense, codes.indices[row].numpy(), codes.values[row].detach().numpy())
        np.testing.assert_allclose(dense, z, atol=1e-12)
        np.testing.assert_allclose(reconstruction[row].detach().numpy(), x_hat, atol=1e-12)


def test_codes_come_largest_first_and_never_negative():
    values = random_sae(k=15).encode(vectors(50, 6)).values
    assert (values >= 0).all()
    assert (values == 0).any()
    assert (values.diff(dim=-1) <= 0).all()


def test_a_new_sae_is_tied_unit_norm_and_seeded():
    sae = TopKSAE(SAEConfig(8, 32, 4), seed=1)
    assert torch.equal(sae.W_enc, sae.W_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(sae.W_dec, TopKSAE(SAEConfig(8, 32, 4), seed=1).W_dec)
    assert not torch.equal(sae.W_dec, TopKSAE(SAEConfig(8, 32, 4), seed=2).W_dec)


def test_a_new_sae_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    TopKSAE(SAEConfig(8, 32, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_any_leading_shape():
    sae = random_sae()
    x = vectors(2, 5, 6)
    assert sae.preactivations(x).shape == (2, 5, 15)
    reconstruction, codes = sae(x)
    flat = sae(x.reshape(10, 6))
    assert codes.values.shape == codes.indices.shape == (2, 5, 4)
    assert torch.equal(reconstruction.reshape(10, 6), flat.reconstruction)
    assert sae(x[0, 0]).reconstruction.shape == (6,)
    assert sae(x[:0]).reconstruction.shape == (0, 5, 6)


@pytest.mark.parametrize("shape", [(3, 5), (7,), ()])
def test_another_width_is_named(shape):
    with pytest.raises(ExciseError, match="width 6"):
        random_sae().encode(torch.zeros(shape, dtype=torch.float64))


def dense_reconstruction(sae: TopKSAE, x: torch.Tensor) -> torch.Tensor:
    """The same function by plain autograd over dense codes."""
    z = sae.preactivations(x)
    kept = torch.zeros_like(z).scatter(-1, z.topk(sae.config.k, dim=-1).indices, 1.0)
    return (z.relu() * kept) @ sae.W_dec + sae.b_pre


def test_the_sparse_gradient_is_the_dense_one():
    x = vectors(40, 6)
    gradients = []
    for function in (lambda sae, y: sae(y).reconstruction, dense_reconstruction):
        sae, leaf = random_sae(), x.clone().requires_grad_()
        function(sae, leaf).pow(3).sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in sae.parameters())])
    for sparse, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-9, rtol=1e-9)


def test_the_sparse_gradient_against_finite_differences():
    sae, x = random_sae(d=3, m=6, k=2), vectors(4, 3).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in sae.parameters()]
    names = [name for name, _ in sae.named_parameters()]

    def reconstruct(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(sae, state, (x,)).reconstruction

    assert torch.autograd.gradcheck(reconstruct, (x, *parameters))


def test_no_gradient_is_kept_where_none_is_wanted():
    with torch.no_grad():
        output = random_sae()(vectors(3, 6))
    assert not output.reconstruction.requires_grad
    assert not output.codes.values.requires_grad


@pytest.mark.parametrize(("m", "k", "seed"), [(15, 4, 0), (15, 1, 1), (40, 3, 2), (6, 6, 3)])
def test_batchtopk_keeps_the_largest_of_the_whole_batch(m, k, seed):
    """Against a sort of every pre-activation; one vector is so loud that it takes more than its share."""
    sae, x = random_sae(m=m, k=k, seed=seed), vectors(9, 6)
    x[2] *= 8
    preacts = sae.preactivations(x).detach()
    least = preacts.flatten().sort(descending=True).values[9 * k - 1]
    wanted = torch.where(preacts >= least, preacts, 0).relu()
    values, indices = sae.encode_batch(x)
    assert torch.equal(torch.zeros_like(wanted).scatter(1, indices, values), wanted)
    assert int((wanted > 0).sum(1).max()) > k or k == m


def test_batchtopk_has_the_dense_gradient():
    sae, x = random_sae().double(), vectors(9, 6).double().requires_grad_()
    sae.decode(sae.encode_batch(x)).square().sum().backward()
    sparse = [x.grad.clone(), *(p.grad.clone() for p in sae.parameters())]
    x.grad = None
    sae.zero_grad()
    preacts = sae.preactivations(x)
    least = preacts.flatten().topk(9 * sae.config.k).values[-1]
    ((preacts * (preacts >= least)).relu() @ sae.W_dec + sae.b_pre).square().sum().backward()
    for got, dense in zip(sparse, [x.grad, *(p.grad for p in sae.parameters())], strict=True):
        assert torch.allclose(got, dense, atol=1e-12)


@pytest.mark.parametrize("spare", [11, 400])
def test_a_shortlist_of_all_latents_misses_none(spare):
    sae, x = random_sae(), vectors(64, 6)
    plain = sae.encode(x)
    sae.shortlist = spare
    short = sae.encode(x)
    assert torch.equal(short.indices, plain.indices)
    torch.testing.assert_close(short.values, plain.values)
    gradients = [torch.autograd.grad(sae.decode(codes).square().sum(), sae.W_enc)[0] for codes in (plain, short)]
    torch.testing.assert_close(*gradients)


def test_a_shortlist_finds_the_same_latents_on_real_text_states():
    pipe, site = reference.load(), PRESETS["reference"][0]
    prompts = [f"{word} {place}" for word in ("a gun", "two cats", "the ink style") for place in ("", "on grass")]
    (read,) = capture(pipe, [site], prompts)
    sae = load(reference.sae_folder())
    plain = sae.encode(read.states[site])
    sae.shortlist = 8
    short = sae.encode(read.states[site])
    assert torch.equal(short.indices.sort(-1).values, plain.indices.sort(-1).values)  # BOS and padding among them
    torch.testing.assert_close(short.values, plain.values, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_codes_are_rounded_and_gradients_are_the_dense_ones():
    sae, x = random_sae(8, 40, 5).float(), vectors(64, 8).float()
    sae.rough = True
    codes = sae.encode(x)
    assert codes.values.dtype == torch.float32
    exact = sae.preactivations(x).gather(1, codes.indices).relu()
    assert not torch.equal(codes.values, exact)
    torch.testing.assert_close(codes.values, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    weights = torch.randn(codes.values.shape, generator=torch.Generator().manual_seed(1))
    sparse = torch.autograd.grad((codes.values * weights).sum(), (sae.W_enc, sae.b_enc, sae.b_pre))
    positive = codes.values > 0
    dense = torch.autograd.grad((exact * weights * positive).sum(), (sae.W_enc, sae.b_enc, sae.b_pre))
    for own, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
