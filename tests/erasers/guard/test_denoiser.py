from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.hooks.context import unedited
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.errors import EraserDidNotFire
from tests import tiny

GUN = "a gun on grass"


def states(pipe: Any, prompt: str = GUN) -> Tensor:
    with torch.no_grad():
        made: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


def draw(pipe: Any, **arguments: Any) -> Any:
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", **arguments}
    return pipe(**options, generator=torch.Generator().manual_seed(3)).images


def denoise(pipe: Any, given: Tensor, **how: Any) -> Any:
    with torch.no_grad():
        return pipe.unet(torch.zeros(len(given), 4, 8, 8), 10, given, **how).sample


@pytest.fixture
def sibling(tiny_pipe: Any) -> Any:
    """Another pipeline of the same components, without an attached eraser."""
    from diffusers import StableDiffusionImg2ImgPipeline

    made = StableDiffusionImg2ImgPipeline(**tiny_pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def test_states_from_elsewhere_do_not_reach_the_denoiser(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe) as attachment:
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states that were not encoded under"):
            denoise(tiny_pipe, foreign)
        own = states(tiny_pipe)
        denoise(tiny_pipe, own)
        denoise(tiny_pipe, torch.cat([own, own]))
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, torch.cat([own, foreign]))
        with pytest.raises(EraserDidNotFire):
            tiny_pipe.unet(torch.zeros(1, 4, 8, 8), 10, encoder_hidden_states=foreign)
        own.add_(1)
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, own)
        assert attachment.status()["bypasses"] == 4
    assert denoise(tiny_pipe, foreign) is not None


def test_a_pipeline_of_the_same_components_draws_but_takes_no_states_from_elsewhere(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser
) -> None:
    foreign, image = states(tiny_pipe), torch.zeros(1, 3, 16, 16)
    plain = draw(sibling, prompt=GUN, image=image)
    with gun_eraser.attach(tiny_pipe):
        assert not (draw(sibling, prompt=GUN, image=image) == plain).all()
        both = image.expand(4, -1, -1, -1)
        draw(sibling, prompt=["a cat", GUN], image=both, num_images_per_prompt=2, negative_prompt=["dull", "grey"])
        with pytest.raises(EraserDidNotFire, match="not encoded under"):
            draw(sibling, prompt_embeds=foreign, image=image, guidance_scale=1.0)
    assert (draw(sibling, prompt=GUN, image=image) == plain).all()


def test_what_was_encoded_before_a_change_does_not_count(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        before = states(tiny_pipe)
        attachment.strength = 0.5
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, before)
        attachment.enabled = False
        denoise(tiny_pipe, before)
        plain = states(tiny_pipe)
        attachment.enabled = True
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, plain)


def test_what_was_encoded_across_a_change_counts_for_neither_setting(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    first, changes = tiny.body(tiny_pipe.text_encoder).encoder.layers[0], list[Any]()
    first.register_forward_hook(lambda *run: changes.pop()() if changes else None)
    with gun_eraser.attach(tiny_pipe) as attachment:
        changes.append(lambda: setattr(attachment, "strength", 0.5))
        across = tiny_pipe.text_encoder(torch.arange(77)[None]).last_hidden_state.detach()
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, across)
        denoise(tiny_pipe, tiny_pipe.text_encoder(torch.arange(77)[None]).last_hidden_state.detach())


def test_a_change_while_states_are_written_down_comes_before_or_after(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread changes the eraser just when the states' epoch has been looked at."""
    add, changes = KnownVectors.add, list[Thread]()
    with gun_eraser.attach(tiny_pipe) as attachment:

        def interrupted(self: KnownVectors, *args: Any, **how: Any) -> None:
            if not changes:
                changes.append(Thread(target=setattr, args=(attachment, "strength", 0.5)))
                changes[0].start()
                changes[0].join(0.5)  # with the epoch locked it has to wait, and outlasts this
            add(self, *args, **how)

        monkeypatch.setattr(KnownVectors, "add", interrupted)
        across = states(tiny_pipe)
        changes[0].join()
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, across)


def test_states_that_were_read_unedited_are_not_let_in_later(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        with unedited():
            plain = states(tiny_pipe)
            denoise(tiny_pipe, plain)
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, plain)


def test_an_encoder_whose_edited_layer_is_passed_by_makes_nothing_that_counts(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser
) -> None:
    """The layer's own forward is put back behind the eraser's back: the states it makes are refused at the denoiser."""
    layer = tiny.body(tiny_pipe.text_encoder).encoder.layers[2]
    with gun_eraser.attach(tiny_pipe):
        wrapped = layer.forward
        layer.forward = type(layer).forward.__get__(layer)
        with pytest.raises(EraserDidNotFire):
            draw(sibling, prompt=GUN, image=torch.zeros(1, 3, 16, 16))
        layer.forward = wrapped
        draw(sibling, prompt=GUN, image=torch.zeros(1, 3, 16, 16))


def test_two_erasers_share_one_witness_and_leave_no_trace(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    from dataclasses import replace

    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=2.0),))
    first, second = gun_eraser.attach(tiny_pipe), other.attach(tiny_pipe)
    guard = DenoiserGuard.of(tiny_pipe.unet)
    assert guard is not None
    assert guard.attachments == [first, second]
    denoise(tiny_pipe, states(tiny_pipe))
    first.detach()
    denoise(tiny_pipe, states(tiny_pipe))
    second.detach()
    for module in (tiny_pipe.unet, tiny_pipe.text_encoder):
        assert not {"forward", "_diffusers_hook"} & set(vars(module))
