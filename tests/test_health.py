"""Readiness: every way in which an eraser can be out of force is a reason, and reading it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise import health
from excise.erasers import Eraser, WeightEdit, made_for
from excise.errors import EraserDidNotFire, InvalidSetting
from excise.sites import Site
from tests import tiny


@pytest.fixture
def served(tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path) -> tuple[Any, dict[str, str]]:
    """Return a pipeline with an eraser on it, and what is required of it."""
    gun_eraser.save_pretrained(tmp_path / "gun")
    excise.load_eraser(tiny_pipe, tmp_path / "gun", "gun")
    return tiny_pipe, {"gun": gun_eraser.digest}


def test_an_eraser_in_force_is_ready_and_asking_counts_nothing(served: tuple[Any, dict[str, str]]) -> None:
    pipe, required = served
    before = pipe.encode_prompt("a gun", "cpu", 1, False)[0]
    counts = excise.list_erasers(pipe)
    assert counts["gun"]["rows_edited"] > 0
    seen: list[Any] = []
    stop = excise.on_event(seen.append)
    for _ in range(2):
        assert (
            health.ready(pipe)
            == health.ready(pipe, required)
            == health.ready(pipe, {"gun": required["gun"][:12]})
            == []
        )
    stop()
    assert excise.list_erasers(pipe) == counts
    assert seen == []
    assert torch.equal(pipe.encode_prompt("a gun", "cpu", 1, False)[0], before)
    with excise.using(pipe, {}):  # one caller's request
        assert health.ready(pipe, required) == []


def _tear_off(pipe: Any) -> None:
    del tiny.body(pipe.text_encoder).encoder.layers[2].forward


def _write(pipe: Any) -> None:
    tiny.body(pipe.text_encoder).encoder.layers[1].mlp.fc1.weight.data.add_(0.1)


def _overwrite(pipe: Any) -> None:
    pipe.encode_prompt = type(pipe).encode_prompt.__get__(pipe)


def _bypass(pipe: Any) -> None:
    with pytest.raises(EraserDidNotFire):
        pipe(prompt_embeds=torch.randn(1, 77, 64), num_inference_steps=1, guidance_scale=1.0, output_type="np")


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "unloaded": (excise.unload_eraser, "is not loaded"),
    "disabled": (excise.disable_erasers, "is disabled"),
    "weakened": (lambda pipe: excise.set_erasers(pipe, "gun", 0.5), "has the strength 0.5, less than 1"),
    "allowing bypasses": (
        lambda pipe: setattr(excise.erasers.loaded.loaded_on(pipe)["gun"], "on_bypass", "warn"),
        "does not refuse bypasses",
    ),
    "bypassed": (_bypass, "was bypassed 1 times"),
    "changed weights": (_write, "the text encoder changed"),
    "removed hook": (_tear_off, "saw no text-encoder run"),
    "replaced encode_prompt": (_overwrite, "encode_prompt was replaced"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_eraser_out_of_force_is_not(served: tuple[Any, dict[str, str]], what: str) -> None:
    pipe, required = served
    change, message = CHANGES[what]
    change(pipe)
    reasons = health.ready(pipe, required)
    assert len(reasons) == 1 and message in reasons[0], reasons
    if what == "changed weights":
        assert excise.list_erasers(pipe)["gun"]["bypasses"] == 0


def test_a_replaced_encoder_is_not_ready(served: tuple[Any, dict[str, str]], build_pipe: Any) -> None:
    pipe, required = served
    pipe.text_encoder = build_pipe().text_encoder
    assert any("text_encoder was replaced" in reason for reason in health.ready(pipe, required, canary=False))
    assert health.ready(pipe, required)


def test_what_is_required_is_the_digest_under_the_name(served: tuple[Any, dict[str, str]]) -> None:
    pipe, required = served
    assert "has the digest" in health.ready(pipe, {"gun": "0" * 64})[0]
    assert health.ready(pipe, {"gun": required["gun"], "knife": "0" * 64}) == ["eraser 'knife' is not loaded"]
    for digest in ("", "abc", None):
        with pytest.raises(InvalidSetting, match="at least its first 12 digits"):
            health.ready(pipe, {"gun": digest})  # type: ignore[dict-item]
    excise.set_erasers(pipe, "gun", 0.5)
    assert health.ready(pipe, required, min_strength=0.5) == health.ready(pipe, min_strength={"gun": 0.5}) == []
    assert health.ready(pipe, required, min_strength={"knife": 0.5}) != []


def test_a_pipeline_without_erasers_is_not_ready(tiny_pipe: Any) -> None:
    assert health.ready(tiny_pipe) == ["no eraser is loaded"]
    assert health.ready(tiny_pipe, {}) == []


def test_an_eraser_of_the_denoiser_is_proved_by_a_prediction(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    path = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = tiny_pipe.unet.get_submodule(path).weight
    edit = WeightEdit(Site("unet", path, len(weight)), delta=torch.randn(weight.shape))
    eraser = replace(gun_eraser, edits=(edit,), made_for=made_for(tiny_pipe, ["unet"]), method="uce")
    with eraser.attach(tiny_pipe, name="weights") as attached:
        assert health.ready(tiny_pipe) == []
        assert attached.status()["rows_edited"] == 0
        with torch.no_grad():
            weight.mul_(1.5)
        assert "the denoiser changed" in health.ready(tiny_pipe)[0]
