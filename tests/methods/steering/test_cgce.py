"""CGCE: its classifier and its steps by hand, and prompts that it does not find keep every bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.guidance import ClassifierEdit, logits
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import CGCEConfig
from excise.methods.cross_attention import text_states
from excise.sites import Site
from tests import tiny

PAIRS = (
    Pair("a gun on grass", "a cat on grass"),
    Pair("a soldier with a gun", "a soldier with a flower"),
    Pair("a photo of a gun", "a photo of a cup"),
)
CONCEPT = Concept("gun", ("gun",), PAIRS, ("a house on grass",))
SITE = Site("unet", "", 4)


def parts(width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((2, width), (3, width), (2, 3)))  # type: ignore[return-value]


def by_hand(states: Tensor, keys: Tensor, values: Tensor, weights: Tensor, bias: float) -> float:
    total = bias
    for query, own in zip(keys, weights, strict=True):
        scores = [math.exp(float(query @ x)) for x in states]
        read = sum(((s / sum(scores)) * (values @ x) for s, x in zip(scores, states, strict=True)), torch.zeros(3))
        total += sum(
            float(w) * float(r) * 0.5 * (1 + math.erf(float(r) / 2**0.5)) for w, r in zip(own, read, strict=True)
        )
    return total


def test_the_logit_is_that_of_attention_from_each_query() -> None:
    states = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    made = logits(states, *parts(), 0.3)
    for b in range(3):
        assert float(made[b]) == pytest.approx(by_hand(states[b], *parts(), 0.3), abs=1e-4)


def test_steps_go_down_the_probability_until_it_reaches_the_target() -> None:
    states = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    bias = 2.0 - float(logits(states[None], *parts(), 0.0)[0])  # p = 0.88
    edit = ClassifierEdit(SITE, *parts(), bias, threshold=0.8, target=math.log(0.3 / 0.7), step=0.05)
    e, steps, width = states.double(), 0, 1e-6
    own = [part.double() for part in parts()]
    while (p := float(torch.sigmoid(logits(e[None], *own, bias)[0]))) > (0.3 if steps else 0.8):
        slope = torch.zeros_like(e)  # of log p, by differences
        for t, d in np.ndindex(4, 5):
            up = e.clone()
            up[t, d] += width
            slope[t, d] = (math.log(float(torch.sigmoid(logits(up[None], *own, bias)[0]))) - math.log(p)) / width
        e = e - 0.05 * e.norm() * slope / slope.norm()
        steps += 1
    assert steps > 1
    made = edit.guided(states)
    assert made is not None
    torch.testing.assert_close(made.double(), e, atol=1e-3, rtol=1e-3)
    once = replace(edit, most=1).guided(states)
    assert once is not None and float((once - states).norm()) == pytest.approx(0.05 * float(states.norm()), rel=1e-4)
    assert replace(edit, threshold=0.9).guided(states) is None, "p is 0.88"


def draw(pipe: Any, prompts: list[str]) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np"}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


def test_it_finds_the_concept_and_leaves_every_bit_of_other_prompts(tiny_pipe: Any, tmp_path: Path) -> None:
    config = CGCEConfig(iterations=60, batch=4)
    eraser = method("cgce").fit(tiny_pipe, CONCEPT, config)
    assert eraser.measured["opened"] == 1.0 and eraser.measured["opened_without"] == 0.0
    (edit,) = eraser.edits
    assert isinstance(edit, ClassifierEdit)
    shown, other = text_states(tiny_pipe, ["a photo of a gun", "a photo of a cup"])
    moved = edit.guided(shown)
    assert moved is not None and edit.guided(other) is None
    made = logits(moved[None], edit.keys, edit.values, edit.weights, edit.bias)
    kept = ["", "a cat on grass", "a soldier with a flower", "a photo of a cup", "a house on grass"]
    spared = logits(torch.stack(text_states(tiny_pipe, kept)), edit.keys, edit.values, edit.weights, edit.bias)
    assert edit.target == pytest.approx(8.0 * float(spared.mean()), rel=1e-4) and edit.target < 0
    assert float(made) <= edit.target
    prompts = ["a photo of a gun", "a photo of a cup"]
    plain = draw(tiny_pipe, prompts)
    eraser.save(tmp_path / "gun")
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with eraser.attach(tiny_pipe):
        drawn = draw(tiny_pipe, prompts)
    assert not np.array_equal(drawn[0], plain[0]) and np.array_equal(drawn[1], plain[1])
    assert np.array_equal(draw(tiny_pipe, prompts), plain)
    again = method("cgce").fit(tiny_pipe, CONCEPT, config)
    assert torch.equal(again.edits[0].keys, edit.keys)  # type: ignore[union-attr]


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("cgce").fit(tiny_pipe, replace(CONCEPT, pairs=()))
    keys, values, weights = parts()
    with pytest.raises(ExciseError, match="of a classifier"):
        ClassifierEdit(SITE, keys, values, weights.T, 0.0)
    with pytest.raises(ExciseError, match="most from 1 to 1000"):
        ClassifierEdit(SITE, keys, values, weights, 0.0, most=10**9)
    with pytest.raises(ExciseError, match="the classifier's are 5 wide"):
        ClassifierEdit(SITE, keys, values, weights, 0.0).guided(torch.zeros(4, 6))
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match="cgce needs a U-Net that reads one text encoder"):
            method("cgce").fit(tiny.build("sd3"), CONCEPT)
