"""Denoising loops written by hand keep the strengths of their entry within `excise.generating`."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Eraser
from excise.errors import InvalidSetting
from excise.methods import method
from tests.erasers.apply.test_known_prompts import CONCEPT
from tests.erasers.test_settings import draw, own_pipeline

GUN = "a gun on grass"
Change = Callable[[], Any]


def _nothing() -> None:
    pass


def steps(pipe: Any, change: Change = _nothing) -> Iterator[Tensor]:
    """Denoise by hand, with guidance. `change` happens after the prompt was encoded and after every step."""
    with torch.no_grad():
        prompt, negative = pipe.encode_prompt(GUN, "cpu", 1, True, "")
        states, scheduler = torch.cat([negative, prompt]), pipe.scheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(3)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        for timestep in scheduler.timesteps:
            change()
            apart, towards = pipe.unet(torch.cat([latents] * 2), timestep, states).sample.chunk(2)
            latents = scheduler.step(apart + 3 * (towards - apart), timestep, latents).prev_sample
            yield latents


def loop(pipe: Any, change: Change = _nothing) -> Tensor:
    *_, last = steps(pipe, change)
    return last


def fitted(kind: str, pipe: Any, gun_eraser: Eraser) -> Eraser:
    made: Eraser = gun_eraser if kind == "text" else method(kind).fit(pipe, CONCEPT)
    return made


@pytest.fixture(params=["text", "uce", "sld"])
def eraser(request: Any, tiny_pipe: Any, gun_eraser: Eraser) -> Eraser:
    return fitted(request.param, tiny_pipe, gun_eraser)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe, attachment: setattr(attachment, "strength", 0.3),
        lambda pipe, attachment: excise.set_erasers(pipe, []),
        lambda pipe, attachment: attachment.detach(),
    ],
    ids=["scaled", "none set", "detached"],
)
def test_a_loop_ends_under_the_strengths_of_its_entry(
    tiny_pipe: Any, eraser: Eraser, change: Callable[[Any, Any], Any]
) -> None:
    plain = loop(tiny_pipe)
    with eraser.attach(tiny_pipe) as attachment:
        erased = loop(tiny_pipe)
        assert not torch.equal(erased, plain)
        with excise.generating():
            assert torch.equal(loop(tiny_pipe, lambda: change(tiny_pipe, attachment)), erased)
            assert torch.equal(loop(tiny_pipe), erased)
            assert attachment.active and attachment.strength == 1.0
        assert attachment.strength == 0.3 or not attachment.active
        assert not torch.equal(loop(tiny_pipe), erased), "the next image is under the new strengths"
    assert torch.equal(loop(tiny_pipe), plain)
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)


def test_pipeline_calls_and_other_encodings_in_the_block_keep_them_too(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        erased = draw(tiny_pipe)
        with excise.generating(), excise.generating():
            attachment.detach()
            assert torch.equal(draw(tiny_pipe), erased)
            ids = tiny_pipe.tokenizer(GUN, padding="max_length", return_tensors="pt").input_ids
            weighted = excise.encode(tiny_pipe, lambda: 1.1 * tiny_pipe.text_encoder(ids).last_hidden_state)
            draw(tiny_pipe, None, prompt_embeds=weighted, guidance_scale=1.0)
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)


def test_an_eraser_attached_in_the_block_acts_after_it(tiny_pipe: Any, eraser: Eraser) -> None:
    plain = loop(tiny_pipe)
    with excise.generating():
        attachment = eraser.attach(tiny_pipe)
        assert torch.equal(loop(tiny_pipe), plain)
    assert not torch.equal(loop(tiny_pipe), plain)
    attachment.detach()


def test_loops_of_tenants_in_threads_while_an_operator_changes_everything(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """Each gets what it would get alone, with every strength changed between any two steps."""
    wishes: list[dict[str, float]] = [{}, {"gun": 1.0}, {"gun": 0.5, "cat": 1.0}, {"cat": 0.25}]
    uce = fitted("uce", tiny_pipe, gun_eraser)
    with gun_eraser.attach(tiny_pipe, name="gun"), uce.attach(tiny_pipe, name="cat"):
        alone = []
        for wish in wishes:
            excise.set_erasers(tiny_pipe, list(wish), list(wish.values()))
            alone.append(loop(tiny_pipe))
        turns, made = threading.Barrier(len(wishes) + 1), list[Any]([None] * 2 * len(wishes))

        def work(n: int) -> None:
            pipe, wish = own_pipeline(tiny_pipe), wishes[n % len(wishes)]
            with excise.using(pipe, wish), excise.generating():
                made[n] = loop(pipe, lambda: turns.wait(60) and None)

        for first in (0, len(wishes)):
            threads = [threading.Thread(target=work, args=(first + n,)) for n in range(len(wishes))]
            for thread in threads:
                thread.start()
            for n in range(3):
                excise.set_erasers(tiny_pipe, ["gun", "cat"], [0.1 * n, 0.7])
                turns.wait(60)
            for thread in threads:
                thread.join()
        assert [torch.equal(image, alone[n % len(wishes)]) for n, image in enumerate(made)] == [True] * 8


def test_a_request_cannot_begin_in_the_block(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe, name="gun"):
        with (
            excise.generating(),
            pytest.raises(InvalidSetting, match=r"enter excise\.using before it"),
            excise.using(tiny_pipe, {}),
        ):
            pass
        with excise.using(tiny_pipe, {}):
            assert excise.get_active_erasers(tiny_pipe) == []


def test_copies_of_the_context_inherit_it_until_it_ends(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    uce = fitted("uce", tiny_pipe, gun_eraser)
    plain = loop(tiny_pipe)
    with uce.attach(tiny_pipe) as attachment:
        erased = loop(tiny_pipe)

        late_began = asyncio.Event()

        async def late() -> Tensor:
            await late_began.wait()
            return loop(tiny_pipe)

        async def both() -> contextvars.Context:
            task = asyncio.create_task(late())
            with excise.generating():
                attachment.enabled = False
                assert torch.equal(await asyncio.to_thread(loop, tiny_pipe), erased)
                late_began.set()
                assert torch.equal(await task, plain), "another task, begun before"
                return contextvars.copy_context()

        context = asyncio.run(both())
        assert not context.run(lambda: attachment.active), "the block has ended"
        assert torch.equal(context.run(loop, tiny_pipe), plain)
        assert not context.run(lambda: attachment.active)


def test_an_abandoned_generator_keeps_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    """As when a client closes the connection in the middle of a stream of previews."""

    def previews() -> Iterator[Tensor]:
        with excise.generating():
            yield from steps(tiny_pipe)

    plain = loop(tiny_pipe)
    attachment = eraser.attach(tiny_pipe)
    stream = previews()
    contextvars.copy_context().run(next, stream)
    attachment.detach()
    assert "_diffusers_hook" in vars(tiny_pipe.unet)
    del stream
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)
    assert torch.equal(loop(tiny_pipe), plain)
