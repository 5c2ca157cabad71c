"""Changed weights: the sum that a layer computes with, and that the model's own are never touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.erasers import Eraser, WeightEdit, made_for, verify
from excise.erasers.hooks.context import unedited
from excise.errors import EraserDidNotFire, ExciseError
from excise.sites import Site

PROMPT, STEPS = "a gun on grass", 3
KEY, CONV = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "up_blocks.0.resnets.0.conv1"


def change_of(pipe: Any, path: str, scale: float = 1.0, rank: int = 0, seed: int = 0) -> WeightEdit:
    weight = pipe.unet.get_submodule(path).weight
    generator = torch.Generator().manual_seed(seed)
    site = Site("unet", path, len(weight))
    if rank:
        up, down = (torch.randn(n, generator=generator) for n in ((len(weight), rank), (rank, weight.shape[1])))
        return WeightEdit(site, up=scale * up, down=down)
    return WeightEdit(site, delta=scale * torch.randn(weight.shape, generator=generator))


def eraser_of(pipe: Any, *edits: WeightEdit, name: str = "gun") -> Eraser:
    origin = made_for(pipe, ["unet"])
    return Eraser(edits, name, "gun", ("gun",), origin, canary=(PROMPT,), method="uce")


@pytest.fixture
def eraser(tiny_pipe: Any) -> Eraser:
    return eraser_of(tiny_pipe, change_of(tiny_pipe, KEY, rank=2), change_of(tiny_pipe, CONV, 0.1))


def draw(pipe: Any, prompt: str = PROMPT) -> np.ndarray:
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images
    return made


def with_written_weights(build_pipe: Callable[..., Any], eraser: Eraser, strength: float = 1.0) -> np.ndarray:
    """Generate with the changes written into a model's own weights, as the papers do."""
    pipe = build_pipe()
    for edit in eraser.edits:
        assert isinstance(edit, WeightEdit)
        weight = pipe.unet.get_submodule(edit.site.path).weight
        delta = edit.delta if edit.delta is not None else edit.up @ edit.down  # type: ignore[operator]
        weight.data = weight.data + strength * delta
    return draw(pipe)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_it_draws_as_written_weights_do(
    tiny_pipe: Any, build_pipe: Callable[..., Any], eraser: Eraser, strength: float
) -> None:
    plain = draw(tiny_pipe)
    before = {name: (p.data_ptr(), p._version) for name, p in tiny_pipe.unet.named_parameters()}
    with eraser.attach(tiny_pipe, strength=strength) as attachment:
        made = draw(tiny_pipe)
        assert np.array_equal(made, with_written_weights(build_pipe, eraser, strength))
        assert attachment.shift > 0
        with unedited():
            assert np.array_equal(draw(tiny_pipe), plain)
        attachment.strength = 0.0
        assert np.array_equal(draw(tiny_pipe), plain)
        attachment.strength = strength
        assert np.array_equal(draw(tiny_pipe), made)
        attachment.enabled = False
        assert np.array_equal(draw(tiny_pipe), plain)
    assert not np.array_equal(made, plain)
    assert np.array_equal(draw(tiny_pipe), plain)
    assert before == {name: (p.data_ptr(), p._version) for name, p in tiny_pipe.unet.named_parameters()}
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m) or m._forward_pre_hooks]


def test_several_are_summed_in_any_order(tiny_pipe: Any, eraser: Eraser) -> None:
    other = eraser_of(tiny_pipe, change_of(tiny_pipe, KEY, 0.5, seed=1), name="other")
    made = []
    for first, second in ((eraser, other), (other, eraser)):
        with first.attach(tiny_pipe), second.attach(tiny_pipe):
            made.append(draw(tiny_pipe))
    assert np.array_equal(*made)
    with eraser.attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe), made[0])
        with pytest.raises(ExciseError, match="attached to this pipeline already"):
            replace(eraser).attach(tiny_pipe)


def test_another_thread_may_draw_without_it(tiny_pipe: Any, eraser: Eraser) -> None:
    plain, seen = draw(tiny_pipe), []

    def spared() -> None:
        with unedited():
            seen.append(draw(tiny_pipe))

    with eraser.attach(tiny_pipe):
        edited = draw(tiny_pipe)
        thread = threading.Thread(target=spared)
        thread.start()
        # The scheduler is one; the denoiser by itself can be run by both.
        thread.join()
        assert np.array_equal(draw(tiny_pipe), edited)
    assert np.array_equal(seen[0], plain)


@pytest.mark.usefixtures("short_removal")
def test_it_is_saved_and_verified_as_any_other(tiny_pipe: Any, eraser: Eraser, tmp_path: Path) -> None:
    with eraser.attach(tiny_pipe) as attachment:
        whole, wanted = replace(eraser, canary_shift=attachment.shift), draw(tiny_pipe)
    whole.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == whole.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with again.attach(tiny_pipe):
        assert np.array_equal(draw(tiny_pipe), wanted)


def test_half_precision_is_kept(tiny_pipe: Any, tmp_path: Path) -> None:
    edit = change_of(tiny_pipe, CONV)
    assert edit.delta is not None
    eraser_of(tiny_pipe, replace(edit, delta=edit.delta.half())).save(tmp_path / "gun")
    (again,) = Eraser.load(tmp_path / "gun").edits
    assert isinstance(again, WeightEdit)
    assert again.delta is not None
    assert torch.equal(again.delta, edit.delta.half())


def test_weights_written_to_render_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        draw(tiny_pipe)
        tiny_pipe.unet.conv_in.weight.data.mul_(1.01)
        with pytest.raises(EraserDidNotFire, match="the denoiser changed after"):
            draw(tiny_pipe)


def test_a_torn_off_hook_renders_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        del tiny_pipe.unet.get_submodule(CONV).forward
        with pytest.raises(EraserDidNotFire, match=r"saw no run of unet/up_blocks\.0\.resnets"):
            draw(tiny_pipe)


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_compiled_in_one_graph(tiny_pipe: Any, eraser: Eraser, when: str) -> None:
    torch._dynamo.reset()
    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe):
        erased = draw(tiny_pipe)
    if when == "before":
        tiny_pipe.unet.compile(backend="aot_eager", fullgraph=True)
    with eraser.attach(tiny_pipe) as attachment:
        if when == "after":
            tiny_pipe.unet.compile(backend="aot_eager", fullgraph=True)
        np.testing.assert_allclose(draw(tiny_pipe), erased, atol=1e-4)
        attachment.strength = 0.0
        np.testing.assert_allclose(draw(tiny_pipe), plain, atol=1e-4)
        attachment.strength = 1.0
        np.testing.assert_allclose(draw(tiny_pipe), erased, atol=1e-4)
    assert not np.allclose(erased, plain, atol=1e-3)
    np.testing.assert_allclose(draw(tiny_pipe), plain, atol=1e-4)


def test_offloading_comes_after_it(tiny_pipe: Any, eraser: Eraser) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe) as attachment:
        wanted = draw(tiny_pipe)
        cpu_offload(tiny_pipe.unet, execution_device=torch.device("cpu"))
        assert np.array_equal(draw(tiny_pipe), wanted)
        attachment.enabled = False
        assert np.array_equal(draw(tiny_pipe), plain)
    assert np.array_equal(draw(tiny_pipe), plain)
    with pytest.raises(ExciseError, match="is wrapped already"):
        eraser.attach(tiny_pipe)
    remove_hook_from_module(tiny_pipe.unet, recurse=True)
    assert np.array_equal(draw(tiny_pipe), plain)


def test_a_lora_within_it_is_let_be(tiny_pipe: Any, eraser: Eraser) -> None:
    """PEFT wraps the layer. The edit changes the wrapped weight."""
    from peft import LoraConfig

    with eraser.attach(tiny_pipe):
        wanted = draw(tiny_pipe)
    tiny_pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"], init_lora_weights=True))
    own = replace(eraser, made_for=made_for(tiny_pipe, ["unet"]))
    with own.attach(tiny_pipe):
        assert np.array_equal(draw(tiny_pipe), wanted), "a fresh LoRA adds nothing"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"delta": None}, "give one of them"),
        ({"up": torch.zeros(64, 1)}, "give one of them"),
        ({"delta": torch.full((3, 3), torch.nan)}, "not finite numbers"),
        ({"delta": torch.zeros(3, 3)}, "does not fit the weights of unet/"),
        ({"delta": None, "up": torch.zeros(16, 2), "down": torch.zeros(3, 4)}, "does not fit the weights of unet/"),
    ],
)
def test_an_impossible_change_is_refused(tiny_pipe: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ExciseError, match=match):
        replace(change_of(tiny_pipe, KEY), **change)


def test_a_layer_that_is_not_there_is_refused(tiny_pipe: Any, eraser: Eraser) -> None:
    edit = eraser.edits[0]
    for site, match in (
        (Site("unet", "no.such", 16), "no plain Linear or Conv2d at 'no.such'"),
        (Site("unet", "up_blocks.0", 16), "no plain Linear or Conv2d at 'up_blocks.0'"),
        (Site("unet", CONV, len(tiny_pipe.unet.get_submodule(CONV).weight)), r"has weights \(.*\), the edit"),
    ):
        own = WeightEdit(site, up=torch.ones(site.width, 1), down=torch.ones(1, 5))
        with pytest.raises(ExciseError, match=match):
            eraser_of(tiny_pipe, own).attach(tiny_pipe)
    with pytest.raises(ExciseError, match="here, not 7; use a Site of this model"):
        eraser_of(tiny_pipe, WeightEdit(Site("unet", KEY, 7), delta=torch.ones(7, 64))).attach(tiny_pipe)
    assert edit.neurons == []


def test_an_edit_that_cannot_be_put_leaves_no_trace(tiny_pipe: Any) -> None:
    plain = draw(tiny_pipe)
    good, wrong = change_of(tiny_pipe, KEY), change_of(tiny_pipe, CONV)
    wrong = WeightEdit(wrong.site, delta=wrong.delta[:, :3])  # type: ignore[index]
    with pytest.raises(ExciseError, match="has weights"):
        eraser_of(tiny_pipe, good, wrong).attach(tiny_pipe)
    assert "encode_prompt" not in vars(tiny_pipe)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m) or m._forward_pre_hooks]
    assert np.array_equal(draw(tiny_pipe), plain)
