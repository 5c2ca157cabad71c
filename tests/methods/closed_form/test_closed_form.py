"""UCE and RECE against their objectives: no change of the weights, or of an embedding, makes them smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, WeightEdit, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.closed_form.rece import restoring_embeddings
from excise.methods.configs.closed_form import RECEConfig, UCEConfig
from excise.methods.cross_attention import kept_words, keys_and_values, word_states
from tests import tiny

CONCEPT = Concept(
    "gun",
    ("gun", "pistol"),
    tuple(
        Pair(f"a gun {place}", f"a {other} {place}") for place in ("on grass", "in a box") for other in ("cat", "dog")
    ),
    ("a house",),
)


def changed(eraser: Eraser) -> dict[str, Tensor]:
    """ΔW by path, float64."""
    made = {}
    for edit in eraser.edits:
        assert isinstance(edit, WeightEdit)
        made[edit.site.path] = edit.change().double()
    return made


def objective(W: Tensor, W0: Tensor, words: Tensor, guide: Tensor, kept: Tensor, config: UCEConfig) -> Tensor:
    """UCE's, written out word by word."""
    total = config.lam * (W - W0).square().sum()
    for c in words:
        total = total + config.erase * (W @ c - W0 @ guide).square().sum()
    for p in kept:
        total = total + config.keep * (W @ p - W0 @ p).square().sum()
    return total


def test_uce_minimises_its_objective(tiny_pipe: Any) -> None:
    config = UCEConfig(guide="thing", preserve="cat; dog", erase=2.0, keep=0.3, lam=0.7)
    eraser = method("uce").fit(tiny_pipe, CONCEPT, config)
    words, guide, kept = (word_states(tiny_pipe, t).double() for t in (["gun", "pistol"], ["thing"], ["cat", "dog"]))
    layers = keys_and_values(tiny_pipe, "uce")
    assert set(changed(eraser)) == {site.path for site in layers}
    for site, layer in layers.items():
        W0 = layer.weight.detach().double()
        W = (W0 + changed(eraser)[site.path]).requires_grad_()
        (slope,) = torch.autograd.grad(objective(W, W0, words, guide[0], kept, config), W)
        (before,) = torch.autograd.grad(objective(W0.requires_grad_(), W0.detach(), words, guide[0], kept, config), W0)
        assert float(slope.abs().max()) < 1e-4 * float(before.abs().max())


def test_a_words_state_is_its_last_tokens(tiny_pipe: Any) -> None:
    states = tiny_pipe.encode_prompt("ice cream", "cpu", 1, False)[0][0]
    ids = tiny_pipe.tokenizer("ice cream").input_ids
    assert ids[-1] == tiny_pipe.tokenizer.eos_token_id
    assert torch.equal(word_states(tiny_pipe, ["ice cream"])[0], states[len(ids) - 2])
    empty = tiny_pipe.encode_prompt("", "cpu", 1, False)[0][0]
    assert torch.equal(word_states(tiny_pipe, [""])[0], empty[0])


def test_what_stands_for_the_concept_is_kept() -> None:
    assert kept_words(CONCEPT) == ["cat", "dog"]
    assert kept_words(CONCEPT, " horse;ice cream ; ") == ["horse", "ice cream"]
    with pytest.raises(ExciseError, match="'two pistols' is to be kept and is 'gun'"):
        kept_words(CONCEPT, "horse;two pistols")


def test_the_embedding_that_brings_a_word_back_is_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    now, before = ([torch.randn(5, 7, generator=generator) for _ in range(3)] for _ in range(2))
    words = torch.randn(2, 7, generator=generator)
    for word, made in zip(words.double(), restoring_embeddings(now, before, words, 0.3).double(), strict=True):
        made.requires_grad_()
        distance = 0.3 * made.square().sum()
        for W, W0 in zip(now, before, strict=True):
            distance = distance + (W.double() @ made - W0.double() @ word).square().sum()
        (slope,) = torch.autograd.grad(distance, made)
        assert float(slope.abs().max()) < 1e-4


def test_rece_erases_what_brings_the_concept_back_round_by_round(tiny_pipe: Any) -> None:
    """Against the same in dense matrices, with an inverse."""
    config = RECEConfig(preserve="cat", rounds=2, lam=0.2, rho=0.4)
    made = changed(method("rece").fit(tiny_pipe, CONCEPT, config))
    words, guide, kept = (word_states(tiny_pipe, t).double() for t in (["gun", "pistol"], [""], ["cat"]))
    before = {site.path: layer.weight.detach().double() for site, layer in keys_and_values(tiny_pipe, "rece").items()}
    now, erased, one = dict(before), words, torch.eye(words.shape[1], dtype=torch.float64)
    for round_ in range(3):
        if round_:
            left = sum(W.T @ W for W in now.values()) + 0.4 * one
            right = sum(W.T @ before[path] for path, W in now.items())
            erased = torch.stack([torch.linalg.inv(left) @ right @ c for c in words])
        held = 0.2 * one + sum(torch.outer(c, c) for c in erased) + 0.1 * sum(torch.outer(p, p) for p in kept)
        for path, W in now.items():
            wanted = 0.2 * W + sum(torch.outer(W @ guide[0], c) for c in erased)
            wanted = wanted + 0.1 * sum(torch.outer(W @ p, p) for p in kept)
            now[path] = wanted @ torch.linalg.inv(held)
    for path, W in now.items():
        torch.testing.assert_close(made[path], W - before[path], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("short_removal")
@pytest.mark.parametrize("name", ["uce", "rece", "speed"])
def test_it_is_an_eraser_as_any_other(tiny_pipe: Any, name: str, tmp_path: Path) -> None:
    def draw() -> np.ndarray:
        how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
        made: np.ndarray = tiny_pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how).images
        return made

    plain = draw()
    eraser = method(name).fit(tiny_pipe, CONCEPT, method(name).Config())
    eraser.save(tmp_path / "gun")
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert sum(f.stat().st_size for f in (tmp_path / "gun").iterdir()) < 60_000
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with eraser.attach(tiny_pipe):
        assert not np.array_equal(draw(), plain)
    assert np.array_equal(draw(), plain)
    nobody = replace(CONCEPT, pairs=())
    assert method(name).fit(tiny_pipe, nobody, method(name).Config()).measured["kept"] == 0


@pytest.mark.parametrize("name", ["uce", "rece", "speed"])
def test_a_pipeline_without_cross_attention_is_refused(name: str) -> None:
    if (reason := tiny.missing("sd3")) is not None:
        pytest.skip(reason)
    with pytest.raises(ExciseError, match=f"{name} changes a U-Net's cross-attention .* has none"):
        method(name).fit(tiny.build("sd3"), CONCEPT, method(name).Config())


def test_two_encoders_states_side_by_side() -> None:
    """SDXL's U-Net reads both."""
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    pipe = tiny.build("sdxl")
    eraser = method("uce").fit(pipe, CONCEPT, UCEConfig())
    plain = tiny.call("sdxl", pipe, "a gun")
    with eraser.attach(pipe):
        assert not np.array_equal(np.asarray(tiny.call("sdxl", pipe, "a gun")), np.asarray(plain))


@pytest.mark.parametrize(
    ("config", "values"),
    [(UCEConfig, {"lam": 0.0}), (UCEConfig, {"erase": -1.0}), (RECEConfig, {"rounds": 0}), (RECEConfig, {"rho": 0.0})],
)
def test_impossible_settings_are_refused(config: Callable[..., Any], values: dict[str, Any]) -> None:
    with pytest.raises(ExciseError):
        config(**values)


def test_the_weights_are_the_authors_own() -> None:
    uce, rece = UCEConfig(), RECEConfig()
    assert (uce.erase, uce.keep, uce.lam) == (1.0, 1.0, 0.5)
    assert (rece.erase, rece.keep, rece.lam, rece.rounds, rece.rho) == (1.0, 0.1, 0.1, 3, 0.1)
