from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser
from excise.erasers.guard import denoiser
from excise.erasers.guard.accepted import MOST, Accepted, Look
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.hooks import known_vectors
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.errors import EraserDidNotFire
from tests.second_device import DEVICE, second_device

GUN, CAT = "a gun on grass", "a cat on grass"


class Image:
    """What calls belong to."""


def states(pipe: Any, prompt: str) -> Tensor:
    with torch.no_grad():
        made: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


def denoise(pipe: Any, given: Tensor) -> None:
    with torch.no_grad():
        pipe.unet(torch.zeros(len(given), 4, 8, 8), 10, given)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each full look."""
    made, marks = list[int](), KnownVectors.marks

    def counted(self: KnownVectors, tensor: Tensor) -> Tensor:
        made.append(len(tensor))
        return marks(self, tensor)

    monkeypatch.setattr(KnownVectors, "marks", counted)
    return made


@pytest.mark.parametrize("there", [False, True], ids=["here", "there"])
def test_a_call_is_found_exactly_if_all_its_values_are_equal(there: bool) -> None:
    """Against a comparison of lists, for calls of one to three tensors with few different values and shapes."""
    rng = random.Random(0)

    def call() -> list[Tensor]:
        shapes = [rng.choice([(1, 2), (2, 1), (3,)]) for _ in range(rng.randint(1, 3))]
        return [torch.tensor(rng.choices([0.0, 1.0], [8, 1], k=6)[: torch.Size(s).numel()]).view(s) for s in shapes]

    def numbers(given: Any) -> Any:
        return [(tuple(tensor.shape), tensor.tolist()) for tensor in given]

    def run(place: Callable[[Tensor], Tensor]) -> tuple[int, int]:
        found = missed = 0
        for _ in range(60):
            store, image, kept = Accepted(), Image(), [(rng.randint(0, 1), call()) for _ in range(4)]
            for under, made in kept:
                store.add(image, Look(under, tuple(map(place, made)), 0))
            under, asked = rng.randint(0, 1), call() if rng.random() < 0.5 else rng.choice(kept)[1]
            wanted = any(under == other and numbers(made) == numbers(asked) for other, made in kept)
            look = store.find(image, under, list(map(place, asked)))
            assert (look is not None) == wanted
            if look is not None:
                assert look.under == under and numbers(look.states) == numbers(asked)
            assert store.find(Image(), under, list(map(place, asked))) is None
            found, missed = found + wanted, missed + (not wanted)
        return found, missed

    if there:
        with second_device():
            found, missed = run(lambda tensor: tensor.to(DEVICE))
    else:
        found, missed = run(lambda tensor: tensor)
    assert min(found, missed) > 5


def test_nan_other_dtypes_and_forgotten_calls_are_not_found() -> None:
    store, image = Accepted(), Image()
    store.add(image, Look(0, (torch.tensor([1.0, float("nan")]),), 0))
    store.add(image, Look(0, (torch.ones(2),), 0))
    assert store.find(image, 0, [torch.tensor([1.0, float("nan")])]) is None
    assert store.find(image, 0, [torch.ones(2, dtype=torch.float64)]) is None
    assert store.find(image, 0, [torch.ones(2)]) is not None
    for n in range(MOST):
        store.add(image, Look(0, (torch.full((2,), 2.0 + n),), 0))
    assert store.find(image, 0, [torch.ones(2)]) is None, "the oldest is dropped"
    store.clear()
    assert store.find(image, 0, [torch.full((2,), 9.0)]) is None


def test_copies_are_freed_with_their_image() -> None:
    store, image, copy = Accepted(), Image(), torch.ones(2)
    there = weakref.ref(copy)
    store.add(image, Look(0, (copy,), 0))
    del copy
    gc.collect()
    assert there() is not None
    del image
    gc.collect()
    assert there() is None


def test_states_are_looked_up_once_an_image(tiny_pipe: Any, gun_eraser: Eraser, looks: list[int]) -> None:
    options = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    with gun_eraser.attach(tiny_pipe):
        looks.clear()
        tiny_pipe(GUN, **options)
        tiny_pipe(GUN, **options)
    assert looks == [2, 2]


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "in place": lambda own, foreign: own.copy_(foreign),
    "behind the write counter": lambda own, foreign: own.data.copy_(foreign),
    "through NumPy": lambda own, foreign: own.numpy().__setitem__(slice(None), foreign.numpy()),
    "one value": lambda own, foreign: own.data[0, -1, -1:].add_(1e-3),
    "other memory": lambda own, foreign: own.set_(foreign),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_accepted_states_that_were_written_to_are_refused(
    tiny_pipe: Any, gun_eraser: Eraser, write: Callable[[Tensor, Tensor], Any]
) -> None:
    foreign = states(tiny_pipe, GUN)
    with gun_eraser.attach(tiny_pipe):
        own = states(tiny_pipe, GUN)
        before = own.clone()
        denoise(tiny_pipe, own)
        denoise(tiny_pipe, own)
        address, version = own.data_ptr(), own._version
        write(own, foreign.clone())
        if write in (WRITES["behind the write counter"], WRITES["through NumPy"]):
            assert (own.data_ptr(), own._version) == (address, version), "nothing but the values shows it"
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, own)
        denoise(tiny_pipe, before)


def test_what_was_accepted_is_accepted_under_the_same_setting_only(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        own = states(tiny_pipe, GUN)
        denoise(tiny_pipe, own)
        attachment.strength = 0.5
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, own)
        attachment.strength = 1.0
        denoise(tiny_pipe, own)
        attachment.forget()
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, own)
    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire):
        denoise(tiny_pipe, own)


def test_allowed_bypasses_are_counted_in_every_step(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe, GUN)
    with gun_eraser.attach(tiny_pipe, on_bypass="allow") as attachment:
        for step in (1, 2, 3):
            denoise(tiny_pipe, foreign)
            assert attachment.status()["bypasses"] == step


def test_halves_swapped_after_they_were_accepted_are_refused(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        with torch.no_grad():
            prompt, negative = tiny_pipe.encode_prompt(CAT, "cpu", 1, True, negative_prompt=GUN)
        denoise(tiny_pipe, torch.cat([negative, prompt]))
        denoise(tiny_pipe, torch.cat([negative, prompt]))
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, torch.cat([prompt, negative]))
        with pytest.raises(EraserDidNotFire):
            denoise(tiny_pipe, negative)


def test_a_long_image_outlasts_what_others_encode_meanwhile(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for two prompts. Half of the image's batch, guidance switched off midway, is known to the end."""
    with gun_eraser.attach(tiny_pipe):
        own = torch.cat([states(tiny_pipe, CAT), states(tiny_pipe, GUN)])
        denoise(tiny_pipe, own)
        guard = DenoiserGuard.of(tiny_pipe.unet)
        assert guard is not None
        monkeypatch.setattr(known_vectors, "REMEMBERED", guard.known_vectors.nbytes)
        for n in range(12):
            denoise(tiny_pipe, states(tiny_pipe, f"a {n} on sand"))
            denoise(tiny_pipe, own)
        denoise(tiny_pipe, own[1:])


def test_more_settings_than_are_kept_may_be_in_use(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread encodes under three more settings while an image is drawn."""
    monkeypatch.setattr(denoiser, "SETTINGS", 2)
    with gun_eraser.attach(tiny_pipe) as attachment:

        def others() -> None:
            for strength in (0.2, 0.3, 0.4):
                attachment.strength = strength
                states(tiny_pipe, CAT)

        def step_end(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            thread = Thread(target=others)
            thread.start()
            thread.join()
            return {"prompt_embeds": tensors["prompt_embeds"].flip(0)}  # so that they are looked up again

        tiny_pipe(
            [GUN, CAT],
            num_inference_steps=3,
            guidance_scale=1.0,
            output_type="latent",
            callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
        assert attachment.denoiser_guard is not None
        assert len(attachment.denoiser_guard._records) == 2, "settings of no image are dropped"
