"""Edits that need the prompt's text know it in every thread, in every pipeline of the same modules, and for long."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Eraser
from excise.erasers.guard.self_test import moved
from excise.erasers.hooks import prompt_texts
from excise.erasers.hooks.prompt_texts import PromptTexts
from excise.errors import EraserDidNotFire
from excise.methods import method

PAIRS = (
    Pair("a gun on grass", "a cat on grass"),
    Pair("a soldier with a gun", "a soldier with a flower"),
    Pair("a photo of a gun", "a photo of a cup"),
)
CONCEPT = Concept("gun", ("gun", "pistol"), PAIRS)
GUN = "a soldier with a gun"
SETTINGS: dict[str, dict[str, Any]] = {
    "sld": {},
    "safree": {"alpha": 0.0, "most": 1},
    "safety-filter": {},
    "stg": {"pairs": 2, "steps": 4, "iterations": 2, "batch": 2, "threshold": 1e-6, "rho": 0.2},
    "cgce": {"iterations": 60, "batch": 4, "noise": 0.0},
    "spm": {"iterations": 4, "lr": 1e-2, "steps": 3, "batch": 2, "anchors": 2},
}


def draw(pipe: Any, prompt: Any = GUN, **options: Any) -> Tensor:
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent", **options}
    made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images
    return made


@pytest.fixture(params=SETTINGS, scope="module")
def eraser(request: Any, build_pipe: Any) -> Eraser:
    """An eraser for `tiny_pipe`, whose weights are always the same."""
    made = method(request.param)
    erased: Eraser = made.fit(build_pipe(), CONCEPT, made.Config(**SETTINGS[request.param]))
    return erased


@pytest.fixture(scope="module")
def uce(build_pipe: Any) -> Eraser:
    fitted: Eraser = method("uce").fit(build_pipe(), CONCEPT)
    return fitted


def in_thread(work: Any) -> Any:
    """What `work` returns, run in a thread of its own."""
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(work()))
    thread.start()
    thread.join()
    assert made, "the thread raised"
    return made[0]


def test_text_is_known_wherever_it_was_encoded(tiny_pipe: Any, eraser: Eraser) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    sibling = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
    other = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
    start = {"image": torch.zeros(1, 3, 16, 16), "strength": 1.0}
    plain, plain_other = draw(tiny_pipe), draw(other, **start)
    with eraser.attach(tiny_pipe) as attachment:
        erased = draw(tiny_pipe)
        assert not torch.equal(erased, plain)
        states = in_thread(lambda: tiny_pipe.encode_prompt(GUN, "cpu", 1, True, ""))
        embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), states, strict=True))
        assert torch.equal(draw(tiny_pipe, None, **embeds), erased), "encoded in another thread"
        assert torch.equal(in_thread(lambda: draw(tiny_pipe, None, **embeds)), erased), "drawn in another thread"
        assert torch.equal(draw(sibling), erased), "a pipeline of the same modules"
        assert torch.equal(in_thread(lambda: draw(sibling)), erased)
        assert not torch.equal(draw(other, **start), plain_other), "another kind of pipeline of the same modules"
        for pipe in (tiny_pipe, sibling):
            two = [draw(pipe, [GUN, "rain"], negative_prompt=["dull", "grey"])[0] for _ in range(2)]
            assert torch.equal(*two), "two images in a row in one thread"
        assert attachment.status()["bypasses"] == 0
    assert torch.equal(draw(sibling), plain)


@pytest.mark.parametrize("below", ["text", "weights"])
def test_an_edit_stays_when_a_hook_below_it_is_removed(
    tiny_pipe: Any, gun_eraser: Eraser, uce: Eraser, eraser: Eraser, below: str
) -> None:
    """diffusers drops the `forward` of the hook above the one that it removes."""
    with eraser.attach(tiny_pipe):
        alone = draw(tiny_pipe)
    first = (gun_eraser if below == "text" else uce).attach(tiny_pipe)
    with eraser.attach(tiny_pipe):
        first.detach()
        assert torch.equal(draw(tiny_pipe), alone)


def test_an_offloading_from_before_is_renewed_after_every_image(tiny_pipe: Any, eraser: Eraser) -> None:
    """diffusers has accelerate restore the `forward` that it found, which drops every later wrapper."""
    if eraser.method == "stg":
        pytest.skip("it refuses every offloading")
    with eraser.attach(tiny_pipe):
        alone = draw(tiny_pipe)
    plain = draw(tiny_pipe)

    def renew() -> None:
        for part in (tiny_pipe.text_encoder, tiny_pipe.unet):
            remove_hook_from_module(part, recurse=True)
            cpu_offload_with_hook(part, torch.device("cpu"))

    renew()
    for _ in range(2):
        with eraser.attach(tiny_pipe) as attachment:
            by = moved(attachment, eraser.canary[:1])
            for _ in range(3):
                assert torch.equal(draw(tiny_pipe), alone)
                renew()
                assert moved(attachment, eraser.canary[:1]) == by  # of its pictures, not of its own calls of the U-Net
                renew()
        assert torch.equal(draw(tiny_pipe), plain)
        assert not any("_diffusers_hook" in vars(module) for module in tiny_pipe.unet.modules())


def test_an_edit_that_is_bypassed_after_it_was_switched_off(tiny_pipe: Any) -> None:
    """The image began under it, so it is refused, although the eraser is off when the bypass is noticed."""

    def change(pipe: Any, n: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.unet.forward = type(pipe.unet).forward.__get__(pipe.unet)  # accelerate restores what it found
        attachment.enabled = False
        return kwargs

    with method("sld").fit(tiny_pipe, CONCEPT).attach(tiny_pipe) as attachment, pytest.raises(EraserDidNotFire):
        draw(tiny_pipe, callback_on_step_end=change)


def test_an_edit_that_others_drop_is_missed(tiny_pipe: Any) -> None:
    tiny_pipe.unet._diffusers_hook = registry = HookRegistry(tiny_pipe.unet)
    registry.register_hook(ModelHook(), "another's")
    with method("safety-filter").fit(tiny_pipe, CONCEPT).attach(tiny_pipe):
        draw(tiny_pipe)
        registry.remove_hook("another's")
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe)


def test_text_is_known_after_many_others(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe) as attachment:
        states = tiny_pipe.encode_prompt(GUN, "cpu", 1, True, "")
        erased = draw(tiny_pipe)
        tiny_pipe.encode_prompt([f"a cat number {n}" for n in range(300)], "cpu", 1, False)
        made = draw(tiny_pipe, None, prompt_embeds=states[0], negative_prompt_embeds=states[1])
        assert torch.equal(made, erased)
        assert attachment.status()["bypasses"] == 0


@pytest.mark.slow
def test_a_whole_batch_of_513_is_drawn(tiny_pipe: Any) -> None:
    with method("safety-filter").fit(tiny_pipe, CONCEPT).attach(tiny_pipe) as attachment:
        batch = [GUN, *(f"a cat number {n}" for n in range(512))]
        made = draw(tiny_pipe, batch, num_inference_steps=1)
        assert len(made) == 513 and attachment.status()["bypasses"] == 0


def test_memory_is_bounded_for_all_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_texts, "REMEMBERED", 12)
    texts, states = PromptTexts(), torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    for n in range(8):
        in_thread(lambda n=n: texts.add([str(n)], states[n : n + 1], True) or True)
    assert len(texts._texts) <= 12
    found = [[prompt.text for prompt in prompts] for prompts in texts.find(states)]
    assert found == [[]] * 4 + [["4"], ["5"], ["6"], ["7"]]


def test_a_text_in_both_branches() -> None:
    texts, own = PromptTexts(), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    texts.add(["gun", "cat"], own, True)
    texts.add(["gun"], own[:1], False)
    first, second = texts.find(own)
    assert [(prompt.text, prompt.prompts) for prompt in first] == [("gun", False), ("gun", True)]
    assert [(prompt.text, prompt.prompts) for prompt in second] == [("cat", True)]
    assert texts.find(own.half())[1][0].text == "cat", "cast to the denoiser's dtype"
    assert texts.find(own + 1e-3) == [[], []]
    assert texts.find(own[:, :4]) == [[], []]


def test_it_is_saved_without_prompts(tiny_pipe: Any, eraser: Eraser, tmp_path: Path) -> None:
    with eraser.attach(tiny_pipe) as attachment:
        draw(tiny_pipe)
        assert GUN not in str(attachment.status())
