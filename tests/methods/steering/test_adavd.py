"""AdaVD: what it takes out of a cross-attention's values, by hand, and end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.projection import ValueEdit
from excise.erasers.gates import attacking
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import AdaVDConfig
from excise.methods.cross_attention import text_states
from excise.sites import Site
from tests import tiny

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"),))
SITE = Site("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 6)


def draw(pipe: Any, prompts: list[str], **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", **how}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


def sigma(x: float, s: float, p: float, middle: float, floor: float = 1e-3) -> float:
    value = s / (1 + math.exp(-p * (x - middle)))
    return value if value >= floor else 0.0


def one_word(v: Tensor, word: Tensor, s: float, p: float, middle: float) -> Tensor:
    near = float(v @ word / (v.norm() * word.norm()))
    return sigma(near, s, p, middle) * float(v @ word) / float(word @ word) * word


def test_one_word_is_taken_out_in_proportion_to_its_gate() -> None:
    generator = torch.Generator().manual_seed(1)
    word = torch.randn(1, 6, generator=generator)
    x = torch.randn(2, 5, 6, generator=generator) + word
    edit = ValueEdit(SITE, word, scale=1.5, steepness=9.0, midpoint=0.7)
    delta = edit.delta(x, 0.5)
    assert delta is not None
    for b, t in np.ndindex(2, 5):
        wanted = 0.5 * one_word(x[b, t], word[0], 1.5, 9.0, 0.7) if t else torch.zeros(6)
        torch.testing.assert_close(delta[b, t], wanted, atol=1e-5, rtol=1e-4)
    assert edit.delta(x, 0.0) is None
    half = edit.delta(x.half())
    assert half is not None and half.dtype == torch.float32


def test_several_words_are_made_orthogonal_first() -> None:
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(3, 6, generator=generator)
    words[2] += 2 * words[0]
    x = torch.randn(1, 4, 6, generator=generator) + words[0]
    edit = ValueEdit(SITE, words, scale=2.0, steepness=5.0, midpoint=0.3)
    q: list[Tensor] = []
    mix: list[list[float]] = []
    for i in range(3):  # q_i = Σ_m mix[i][m] v_m
        own, row = words[i].double(), [float(i == m) for m in range(3)]
        for other, weights in zip(q, mix, strict=True):
            part = float(other @ words[i].double()) / float(other @ other)
            own, row = own - part * other, [r - part * w for r, w in zip(row, weights, strict=True)]
        q.append(own)
        mix.append(row)
    assert max(abs(float(q[a] @ q[b])) for a, b in ((0, 1), (0, 2), (1, 2))) < 1e-9
    delta = edit.delta(x)
    assert delta is not None
    for t in range(1, 4):
        v, wanted = x[0, t].double(), torch.zeros(6, dtype=torch.float64)
        for k in range(3):
            along = float(q[k] @ v) / float(q[k] @ q[k])
            for i in range(3):
                near = float(torch.nn.functional.cosine_similarity(v, words[i].double(), dim=0))
                wanted += along * mix[k][i] * sigma(near, 2.0, 5.0, 0.3) * words[i].double()
        torch.testing.assert_close(delta[0, t].double(), wanted, atol=1e-4, rtol=1e-4)
    whole = ValueEdit(SITE, words, scale=1.0, steepness=0.0, midpoint=0.0).delta(x, 2.0)  # σ = 1/2 everywhere
    assert whole is not None
    assert float(((x - whole)[0, 1:] @ words.T).abs().max()) < 1e-4, "nothing is left along any of the words"


def test_a_word_in_the_span_of_others_adds_nothing() -> None:
    words = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    x = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(4)) + words[:1]
    twice = ValueEdit(SITE, torch.cat([words, words.sum(0, keepdim=True)]), steepness=0.0, midpoint=0.0)
    once = ValueEdit(SITE, words, steepness=0.0, midpoint=0.0)
    torch.testing.assert_close(twice.delta(x), once.delta(x), atol=1e-4, rtol=1e-4)


def test_a_token_far_from_the_words_keeps_every_bit() -> None:
    word = torch.eye(6)[:1]
    x = torch.zeros(1, 3, 6)
    x[0, :, 0], x[0, 1, 1], x[0, 2, 1] = 1.0, 0.6, 0.3  # cosines 1, 0.857 and 0.958
    edit = ValueEdit(SITE, word)
    delta = edit.delta(x)
    assert delta is not None
    assert not delta[0, 0].any() and delta[0, 2].any()
    near = 1 / math.sqrt(1.36)
    assert 2 / (1 + math.exp(-100 * (near - 0.93))) == pytest.approx(1.4e-3, rel=0.1)
    assert delta[0, 1].any(), "1.4e-3 is above the floor"
    x[0, 1, 1] = 0.62
    delta = edit.delta(x)
    assert delta is not None and not delta[0, 1].any(), "2.5e-4 is below it"


def test_a_search_is_given_the_gradient_of_an_open_gate() -> None:
    x = torch.tensor([[[1.0, 0, 0, 0, 0, 0], [0.5, 1.0, 0, 0, 0, 0]]], requires_grad=True)
    edit = ValueEdit(SITE, torch.eye(6)[:1], steepness=20.0)
    with attacking("straight-through") as gates:
        delta = edit.delta(x)
        assert delta is not None and not delta.any()
        assert torch.autograd.grad(delta.sum(), x)[0].any()
    assert len(gates.excess) == 1


def test_it_holds_the_values_of_the_words_and_leaves_no_trace(tiny_pipe: Any, tmp_path: Path) -> None:
    config = AdaVDConfig(midpoint=0.5, steepness=50.0, scale=1.5)
    eraser = method("adavd").fit(tiny_pipe, CONCEPT, config)
    paths = [name for name, _ in tiny_pipe.unet.named_modules() if name.endswith("attn2.to_v")]
    assert [edit.site.path for edit in eraser.edits] == paths
    tokenizer = tiny_pipe.tokenizer
    rows = []
    for word, states in zip(("gun", "pistol"), text_states(tiny_pipe, ["gun", "pistol"]), strict=True):
        rows.append(states[len(tokenizer(word).input_ids) - 2])
    edit = eraser.edits[1]
    layer = tiny_pipe.unet.get_submodule(edit.site.path)
    assert isinstance(edit, ValueEdit)
    torch.testing.assert_close(edit.values, torch.stack(rows) @ layer.weight.detach().T)
    assert (edit.scale, edit.steepness, edit.midpoint, edit.floor) == (1.5, 50.0, 0.5, 1e-3)
    prompts = ["a gun on grass", "a cat on grass"]
    plain = draw(tiny_pipe, prompts)
    seen: list[Tensor] = []
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with again.attach(tiny_pipe) as attachment:
        assert not np.array_equal(draw(tiny_pipe, prompts), plain)
        handle = layer.register_forward_hook(lambda m, args, out: seen.extend([args[0].detach(), out.detach()]))
        draw(tiny_pipe, prompts, num_inference_steps=1)
        handle.remove()
        assert attachment.status()["rows_edited"] > 0
    made = seen[0] @ layer.weight.detach().T
    torch.testing.assert_close(seen[1], made - edit.delta(made), atol=1e-5, rtol=1e-4)  # type: ignore[operator]
    assert np.array_equal(draw(tiny_pipe, prompts), plain)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m)]


def test_the_defaults_are_the_authors_own() -> None:
    config = AdaVDConfig()
    assert (config.scale, config.steepness, config.midpoint) == (2.0, 100.0, 0.93)


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="adavd changes a U-Net's cross-attention"):
        method("adavd").fit(tiny.build("sd3"), CONCEPT)
    with pytest.raises(ExciseError, match="are not words' values"):
        ValueEdit(SITE, torch.ones(2, 5))
    with pytest.raises(ExciseError, match="all zero"):
        ValueEdit(SITE, torch.zeros(1, 6))
    with pytest.raises(ExciseError, match="a cosine from -1 to 1"):
        ValueEdit(SITE, torch.ones(1, 6), midpoint=1.5)
    with pytest.raises(ExciseError, match=r"not \[B, T, 6\]"):
        ValueEdit(SITE, torch.ones(1, 6)).delta(torch.ones(1, 3, 5))
