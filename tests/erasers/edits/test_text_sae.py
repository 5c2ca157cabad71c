from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from excise.erasers.edits.base import without
from excise.erasers.edits.sae_rows import sae_digest
from excise.erasers.edits.text_sae import SAEEdit, contribution, onward_codes, threshold_codes, whole_codes
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site

SITE = Site("text_encoder", "encoder.layers.2", 6)
T = 5


def sae(seed: int = 0, k: int = 4) -> TopKSAE:
    model = TopKSAE(SAEConfig(d=6, m=12, k=k), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        model.b_pre.normal_(generator=generator)
        model.b_enc.normal_(generator=generator)
        model.W_enc.normal_(generator=generator)
    return model


def states(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, T, 6, generator=torch.Generator().manual_seed(seed + 2)).to(dtype)


def oracle(
    model: TopKSAE,
    h: Tensor,
    neurons: list[int],
    lam: float,
    gate: str,
    threshold: list[float],
    typical: list[float],
    lead: int,
) -> Tensor:
    """Eqs. 1, 8 and 9 written out with loops, in float64, for source="prompt"."""
    W_enc, W_dec = model.W_enc.detach().double(), model.W_dec.detach().double()
    b_enc, b_pre = model.b_enc.detach().double(), model.b_pre.detach().double()
    out = h.double().clone()
    for b in range(h.shape[0]):
        prompt = [[float(W_enc[i] @ (x.double() - b_pre) + b_enc[i]) for i in range(len(b_enc))] for x in h[b]]
        for t in range(lead, h.shape[1]):
            z = prompt[t]
            cutoff = sorted(z, reverse=True)[model.config.k - 1]
            for n, i in enumerate(neurons):
                level = max(threshold[n], 0.0)
                loudest = max(row[i] for row in prompt[lead:])
                active = {
                    "relu": z[i] > 0,
                    "threshold": z[i] > level,
                    "topk": z[i] > 0 and z[i] >= cutoff,
                    "whole": z[i] > 0 and loudest > level,
                }[gate]
                gain = typical[n] / loudest if gate == "whole" and 0 < loudest < typical[n] else 1.0
                M = lam * gain * z[i] if active else 0.0
                out[b, t] -= M * W_dec[i]
    return out


@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize("gate", ["relu", "threshold", "topk", "whole"])
@given(seed=st.integers(0, 1000), lam=st.floats(0, 4), strength=st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_equations_8_and_9_with_the_prompts_own_codes(
    gate: Any, lead: int, seed: int, lam: float, strength: float
) -> None:
    model, h, neurons, threshold, typical = sae(seed), states(seed), [7, 2], [0.8, -1.0], [5.0, 1.0]
    levels = {"threshold": torch.tensor(threshold), "typical": torch.tensor(typical)}
    edit = SAEEdit.from_sae(model, SITE, neurons, gate=gate, lam=lam, lead=lead, **levels)
    expected = oracle(model, h, neurons, lam * strength, gate, threshold, typical, lead)
    torch.testing.assert_close(edit.apply(h, strength, sae=model).double(), expected, atol=2e-5, rtol=1e-5)


@given(seed=st.integers(0, 1000), lam=st.floats(0, 4))
@settings(max_examples=20, deadline=None)
def test_equations_8_and_9_with_the_concepts_codes(seed: int, lam: float) -> None:
    model, h = sae(seed), states(seed)
    Z_c = torch.rand(T, 2, generator=torch.Generator().manual_seed(seed))
    edit = SAEEdit.from_sae(model, SITE, [3, 9], source="concept", concept_codes=Z_c, lam=lam)
    expected = h.double().clone()
    for b in range(3):
        for t in range(T):
            for n, i in enumerate((3, 9)):
                expected[b, t] -= lam * float(Z_c[t, n]) * model.W_dec[i].detach().double()
    torch.testing.assert_close(edit.apply(h).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_silent_rows_keep_every_bit_in_every_dtype(dtype: torch.dtype) -> None:
    model, h = sae(), states(dtype=dtype)
    h[0, 0, 0] = -0.0
    edit = SAEEdit.from_sae(model, SITE, [7], gate="threshold", threshold=torch.tensor([0.5]), lam=2.0)
    fires = edit.codes(h)[..., 0] > 0
    assert fires.any()
    assert not fires.all()
    out = edit.apply(h)
    assert out.dtype == dtype
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(bits)[~fires], h.view(bits)[~fires])
    assert (out != h).any(-1)[fires].all()


def test_a_whole_prompt_is_opened_and_raised_or_keeps_every_bit() -> None:
    model = sae()
    with torch.no_grad():
        model.b_pre.zero_()
        model.b_enc.zero_()
    toward = model.W_enc[7].detach() / model.W_enc[7].detach().square().sum()
    # Codes of neuron 7, state by state: a prompt with the concept, one with a weak synonym, one with a murmur.
    z = torch.tensor([[9.0, 0.0, 6.0, 4.0, 4.0], [0.0, 3.0, 1.0, 0.5, -1.0], [0.5, 1.9, 0.5, 0.5, 0.5]])
    levels = {"threshold": torch.tensor([2.0]), "typical": torch.tensor([6.0])}
    edit = SAEEdit.from_sae(model, SITE, [7], gate="whole", lead=1, **levels)
    h = z[..., None] * toward
    expected = torch.tensor([[0.0, 0.0, 6.0, 4.0, 4.0], [0.0, 6.0, 2.0, 1.0, 0.0], [0.0] * 5])
    torch.testing.assert_close(edit.codes(h)[..., 0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(edit.apply(h)[2], h[2])
    assert torch.equal(edit.apply(h)[:, 0], h[:, 0])


def test_half_precision_is_the_float32_edit_rounded_once() -> None:
    model, h = sae(), states(dtype=torch.float16)
    edit = SAEEdit.from_sae(model, SITE, [7], gate="relu")
    assert torch.equal(edit.apply(h), edit.apply(h.float()).half())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(edit.apply(h.float()), edit.apply(h.float()))
        inside = edit.apply(h.float())
    assert torch.equal(inside, edit.apply(h.float())), "autocast does not reach into the edit"


def test_strength_zero_is_the_identity() -> None:
    h = states()
    assert SAEEdit.from_sae(sae(), SITE, [7], gate="relu").apply(h, 0.0) is h


@pytest.mark.parametrize(("uncond", "sign"), [("none", 0), ("same", 1), ("flip", -1)])
def test_the_unconditional_branch(uncond: Any, sign: int) -> None:
    h = states()
    edit = SAEEdit.from_sae(sae(), SITE, [7], gate="relu", uncond=uncond)
    delta = h - edit.apply(h)
    torch.testing.assert_close(h - edit.apply(h, branch="unconditional"), sign * delta)


def test_topk_reads_codes_as_the_whole_sae_does() -> None:
    model, h = sae(), states()
    edit = SAEEdit.from_sae(model, SITE, list(range(12)), gate="topk")
    codes = model.encode(h.flatten(0, 1))
    dense = torch.zeros(3 * T, 12).scatter(1, codes.indices, codes.values.detach())
    assert torch.equal(edit.codes(h, model).flatten(0, 1), dense)
    with pytest.raises(ExciseError, match="needs the whole SAE"):
        edit.codes(h)


def test_all_rows_are_read_only_where_an_edited_neuron_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = sae(), states()
    edit = SAEEdit.from_sae(model, SITE, [7], gate="topk")
    firing = (model.preactivations(h.flatten(0, 1))[:, 7] > 0).sum()
    codes = model.encode(h.flatten(0, 1))
    own = torch.where(codes.indices == 7, codes.values, 0).sum(-1, keepdim=True).detach()
    read: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: (read.append(len(x)), encode(x))[1])
    torch.testing.assert_close(edit.codes(h, model).flatten(0, 1), own)
    assert read == [int(firing)]
    assert 0 < firing < 3 * T
    with torch.no_grad():
        model.b_enc[7] = -1e3
    assert not edit.codes(h, model).any()
    assert len(read) == 1


def test_an_edit_that_removes_all_codes_leaves_the_residual() -> None:
    """With λ = 1 and every neuron edited, the result is x minus its reconstruction, plus b_pre."""
    model, h = sae(), states()
    edit = SAEEdit.from_sae(model, SITE, list(range(12)), gate="topk")
    left = h - (model(h).reconstruction - model.b_pre)
    torch.testing.assert_close(edit.apply(h, sae=model), left.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "sigmoid"}, "gate cannot be"),
        ({"uncond": "both"}, "uncond cannot be"),
        ({"lam": -1.0}, "λ is -1"),
        ({"lam": float("nan")}, "λ is nan"),
        ({"lead": -1}, "lead is -1"),
        ({"site": Site("text_encoder", "x", 7)}, "has shape"),
        ({"indices": torch.tensor([7, 7])}, "has shape"),
        ({"indices": torch.tensor([-7])}, "at least 0"),
        ({"W_dec": torch.full((1, 6), float("nan"))}, "not finite"),
        ({"source": "concept"}, "has concept codes, and needs them"),
        ({"concept_codes": torch.ones(5, 1)}, "has concept codes, and needs them"),
        ({"source": "concept", "concept_codes": torch.ones(5, 2)}, "concept_codes has shape"),
    ],
)
def test_impossible_edits_are_refused(change: dict[str, Any], message: str) -> None:
    edit = SAEEdit.from_sae(sae(), SITE, [7])
    with pytest.raises(ExciseError, match=message):
        replace(edit, **change)


def test_states_that_do_not_fit_are_refused() -> None:
    edit = SAEEdit.from_sae(sae(), SITE, [7], source="concept", concept_codes=torch.ones(T, 1))
    with pytest.raises(ExciseError, match="4 positions, the eraser's concept codes 5"):
        edit.apply(states()[:, :4])
    with pytest.raises(ExciseError, match="gave states of shape"):
        edit.apply(states()[..., :4])
    with pytest.raises(ExciseError, match="no 12"):
        SAEEdit.from_sae(sae(), SITE, [12])
    with pytest.raises(ExciseError, match="the SAE is 6 wide"):
        SAEEdit.from_sae(sae(), Site("text_encoder", "x", 8), [1])


def test_the_saes_digest_tells_saes_apart() -> None:
    assert sae_digest(sae()) == sae_digest(sae())
    assert len({sae_digest(sae()), sae_digest(sae(1)), sae_digest(sae(k=5))}) == 3


@pytest.mark.parametrize("gate", ["relu", "threshold", "topk", "whole"])
def test_gradients_pass_as_finite_differences_say(gate: Any) -> None:
    """A white-box attack must meet the edit itself: masked gradients would make an eraser look robust."""
    model = sae().double()
    levels = {"threshold": torch.tensor([0.5]), "typical": torch.tensor([0.8])}
    edit = SAEEdit.from_sae(model, SITE, [7], gate=gate, **levels)
    h = states(dtype=torch.float64)
    towards = torch.randn(h.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (edit.apply(x, sae=model) * towards).sum()

    leaf = h.clone().requires_grad_()
    value(leaf).backward()
    assert leaf.grad is not None
    step = 1e-5 * torch.randn(h.shape, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    by_difference = float(value(h + step) - value(h - step)) / 2
    assert float((leaf.grad * step).sum()) == pytest.approx(by_difference, rel=1e-4)
    assert not torch.equal(leaf.grad, towards), "the edit is in the gradient"


def test_a_silent_prompt_has_a_clean_gradient() -> None:
    edit = SAEEdit.from_sae(sae(), SITE, [7], gate="whole", threshold=torch.tensor([1e9]), typical=torch.tensor([5.0]))
    h = states()
    for prompts in (h, torch.where(h > 0, -100 * edit.W_enc[0].sign(), h)):
        leaf = prompts.clone().requires_grad_()
        edit.apply(leaf).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_subtracting_nothing_is_the_identity() -> None:
    h = states()
    assert torch.equal(without(h, contribution(torch.zeros(3, T, 1), torch.ones(1, 6), 3.0)), h)


def test_a_code_at_its_threshold_is_silence() -> None:
    """A threshold equal to a state's code must spare the state, although real states seldom have equal values."""
    at, just_above = torch.tensor([[1.5]]), torch.tensor([[1.5000001]])
    level = torch.tensor([1.5])
    assert threshold_codes(at, level).item() == 0 < threshold_codes(just_above, level).item()
    assert whole_codes(at[None], level, level).item() == 0 < whole_codes(just_above[None], level, level).item()
    for before in (None, torch.tensor([[1.0]])):
        assert onward_codes(at[None], level, level, before)[0].item() == 0
        assert onward_codes(just_above[None], level, level, before)[0].item() > 0
    assert onward_codes(at[None], level, level, torch.tensor([[1.6]]))[0].item() > 0
