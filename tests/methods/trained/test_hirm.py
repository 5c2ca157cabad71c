"""HiRM: its loss by hand, which weights it trains, and an eraser of a text encoder as any other."""

from __future__ import annotations

import copy
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
from excise.methods.configs.trained import HiRMConfig
from excise.methods.trained.hirm import BETAS, EPS, Task
from tests import tiny

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"), Pair("a gun", "a cup")))
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


def draw(pipe: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how).images
    return made


def body(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder)


def outputs(pipe: Any, encoder: Any, text: str) -> Tensor:
    """What the last self-attention returns for a text, without its residual, [T, d]."""
    ids = pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    found: list[Tensor] = []
    layer = body(encoder).encoder.layers[-1].self_attn
    handle = layer.register_forward_hook(lambda m, args, out: found.append(out[0]))
    encoder(ids)
    handle.remove()
    return found[0][0]


@pytest.mark.parametrize("category", ["", "thing"])
@torch.no_grad()
def test_the_loss_is_the_paper_s(tiny_pipe: Any, category: str) -> None:
    task = Task(tiny_pipe, CONCEPT, HiRMConfig(alpha=40.0, category=category, seed=4, batch=2))
    for n, change in enumerate(task.student.changes.values()):
        change.normal_(0, 0.05, generator=torch.Generator().manual_seed(n))
    trained = copy.deepcopy(tiny_pipe.text_encoder)
    assert {site.path for site in task.student.changes} == {f"encoder.layers.0.{name}" for name in LINEAR}
    for site, change in task.student.changes.items():
        body(trained).get_submodule(site.path).weight.data += change
    if category:
        towards = outputs(tiny_pipe, tiny_pipe.text_encoder, "thing")
    else:
        towards = torch.rand(77, trained.config.hidden_size, generator=torch.Generator().manual_seed(4))
    target = 40.0 * towards / towards.square().sum().sqrt()
    torch.testing.assert_close(task.target, target, atol=1e-5, rtol=1e-4)
    wanted = sum(float((outputs(tiny_pipe, trained, word) - target).square().mean()) for word in ("gun", "pistol")) / 2
    assert float(task.loss(torch.Generator().manual_seed(0))) == pytest.approx(wanted, rel=1e-4)
    alone = Task(tiny_pipe, CONCEPT, HiRMConfig(alpha=40.0, category=category, seed=4))
    found = sorted({round(float(alone.loss(torch.Generator().manual_seed(seed))), 6) for seed in range(12)})
    untrained = (outputs(tiny_pipe, tiny_pipe.text_encoder, word) for word in ("gun", "pistol"))
    assert found == pytest.approx(sorted(float((o - target).square().mean()) for o in untrained), abs=2e-6)


def test_it_takes_the_authors_steps_of_adam(tiny_pipe: Any) -> None:
    config = HiRMConfig(iterations=3, lr=1e-3, alpha=40.0)
    eraser = method("hirm").fit(tiny_pipe, Concept("gun", ("gun",), CONCEPT.pairs), config)
    task = Task(tiny_pipe, Concept("gun", ("gun",), CONCEPT.pairs), config)
    changes = list(task.student.changes.values())
    first, second = ([torch.zeros_like(change) for change in changes] for _ in range(2))
    for step in range(1, 4):
        slopes = torch.autograd.grad(task.loss(torch.Generator().manual_seed(0)), changes)
        with torch.no_grad():
            for change, slope, m, v in zip(changes, slopes, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * slope)
                v.mul_(0.98).add_(0.02 * slope.square())
                rate = (v / (1 - 0.98**step)).sqrt() + 1e-6
                change -= 1e-3 * m / (1 - 0.9**step) / rate
    for edit, change in zip(eraser.edits, changes, strict=True):
        assert isinstance(edit, WeightEdit)
        torch.testing.assert_close(edit.change(), change.detach(), atol=2e-5, rtol=1e-2)
    assert (BETAS, EPS) == ((0.9, 0.98), 1e-6)


def test_it_is_an_eraser_as_any_other(tiny_pipe: Any, tmp_path: Path) -> None:
    plain = draw(tiny_pipe)
    eraser = method("hirm").fit(tiny_pipe, CONCEPT, HiRMConfig(iterations=4, lr=1e-2))
    assert eraser.measured["loss_last"] < eraser.measured["loss_first"]
    eraser.save(tmp_path / "gun")
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with eraser.attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe), plain)
    assert np.array_equal(draw(tiny_pipe), plain)


def test_the_settings_are_the_authors_own() -> None:
    config = HiRMConfig()
    assert (config.iterations, config.lr, config.alpha, config.batch, config.category) == (50, 1e-4, 5000.0, 1, "")


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="pistol"):
        method("hirm").fit(tiny_pipe, CONCEPT, HiRMConfig(category="a pistol"))
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match="hirm trains the only text encoder of a pipeline, a CLIP's"):
            method("hirm").fit(tiny.build("sd3"), CONCEPT)
