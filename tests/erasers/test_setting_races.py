"""Settings in rare orders of events: interrupts, locks of the user's, garbage collection, two operators at once."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Attachment, Eraser
from excise.erasers.hooks import setting
from excise.errors import InvalidSetting, NotFound
from excise.methods import method
from tests.erasers.apply.test_known_prompts import CONCEPT
from tests.erasers.test_generating import loop, steps
from tests.erasers.test_settings import at_first_step, draw, own_pipeline


@pytest.fixture
def weights(tiny_pipe: Any) -> Eraser:
    made: Eraser = method("uce").fit(tiny_pipe, CONCEPT)
    return made


def test_the_setting_of_an_interrupted_run_is_not_taken_for_a_later_one(tiny_pipe: Any, weights: Eraser) -> None:
    """Python gives a later frame the id of a freed one."""

    class Stop(BaseException):
        """As Ctrl-C."""

    def stop(*run: Any) -> None:
        raise Stop

    def run() -> Tensor:
        with torch.no_grad():
            made: Tensor = tiny_pipe.unet(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 77, 64)).sample
        return made

    with weights.attach(tiny_pipe) as attachment:
        erased, image = run(), draw(tiny_pipe)
        for generate, expected in ((run, erased), (lambda: draw(tiny_pipe), image)):
            for _ in range(6):
                attachment.enabled = False
                handle = tiny_pipe.unet.conv_in.register_forward_hook(stop)
                with pytest.raises(Stop):
                    generate()
                handle.remove()
                attachment.enabled = True
                assert torch.equal(generate(), expected)


CHANGES: dict[str, Callable[[Attachment], Any]] = {
    "scaled": lambda attachment: setattr(attachment, "strength", 0.3),
    "disabled": lambda attachment: setattr(attachment, "enabled", False),
    "detached": lambda attachment: attachment.detach(),
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("weights", "scaled"),
        pytest.param("text", "disabled", marks=pytest.mark.slow),
        pytest.param("text", "scaled", marks=pytest.mark.slow),
        pytest.param("text", "detached", marks=pytest.mark.slow),
        pytest.param("weights", "disabled", marks=pytest.mark.slow),
        pytest.param("weights", "detached", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_keeps_the_setting_too(
    tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser, kind: str, change: str
) -> None:
    torch._dynamo.reset()
    with (gun_eraser if kind == "text" else weights).attach(tiny_pipe) as attachment:
        for module in (tiny_pipe.unet, tiny_pipe.text_encoder):
            module.compile(backend="aot_eager")
        erased = draw(tiny_pipe)
        changed = draw(tiny_pipe, **at_first_step(lambda: CHANGES[change](attachment)))
        torch.testing.assert_close(changed, erased)


def test_a_copied_context_brings_no_setting_of_another_thread(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """A context copied while the denoiser runs is used in another thread, after the eraser was switched off."""
    plain, other, made = draw(tiny_pipe), own_pipeline(tiny_pipe), list[Tensor]()

    def generate(*run: Any) -> None:
        if not made:
            excise.disable_erasers(tiny_pipe)
            made.append(torch.empty(0))
            context = contextvars.copy_context()
            thread = threading.Thread(target=lambda: made.append(context.run(draw, other)))
            thread.start()
            thread.join()

    with gun_eraser.attach(tiny_pipe):
        erased = draw(tiny_pipe)
        handle = tiny_pipe.unet.conv_in.register_forward_hook(generate)
        image = draw(tiny_pipe)
        handle.remove()
    assert torch.equal(image, erased) and torch.equal(made[1], plain)


def test_a_callback_may_wait_for_an_image(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """No lock of ours is held while a callback runs."""
    other, late = own_pipeline(tiny_pipe), list[bool]()

    def callback(event: Any) -> None:
        if event.kind == "strength":
            thread = threading.Thread(target=draw, args=(other,), daemon=True)
            thread.start()
            thread.join(20)
            late.append(thread.is_alive())

    with gun_eraser.attach(tiny_pipe, name="gun"):
        remove = excise.on_event(callback)
        excise.set_erasers(tiny_pipe, ["gun"], 0.5)
        excise.disable_erasers(tiny_pipe)
        remove()
    assert late == [False] * 3


def test_hooks_are_removed_after_garbage_collection_under_any_lock(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    guard = gun_eraser.attach(tiny_pipe).denoiser_guard
    assert guard is not None

    def fail() -> None:
        excise.unload_eraser(tiny_pipe)
        raise RuntimeError

    def image() -> None:
        try:
            draw(tiny_pipe, **at_first_step(fail))
        except RuntimeError as error:
            cycle: list[Any] = [error]
            cycle.append(cycle)

    held, collecting = threading.Event(), threading.Event()

    def detach() -> None:
        with setting.LOCK:
            held.set()
            collecting.wait(5)
            with guard._lock:
                pass

    def collect() -> None:
        held.wait(5)
        with guard._lock:
            collecting.set()
            gc.collect()

    gc.disable()
    try:
        image()
        threads = [threading.Thread(target=work, daemon=True) for work in (detach, collect)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        gc.enable()
    assert not any(thread.is_alive() for thread in threads)
    for _ in range(200):
        if "_diffusers_hook" in vars(tiny_pipe.unet):
            threading.Event().wait(0.05)
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)


def test_an_eraser_that_is_unloaded_while_it_is_replaced_stays_unloaded(
    tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path
) -> None:
    plain = draw(tiny_pipe)
    replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=2.5),)).save_pretrained(tmp_path)  # type: ignore[type-var]
    gun_eraser.attach(tiny_pipe, name="gun")
    remove = excise.on_event(lambda event: excise.unload_eraser(tiny_pipe, "gun") if event.kind == "attached" else None)
    with pytest.raises(NotFound, match="meanwhile"):
        excise.replace_eraser(tiny_pipe, "gun", tmp_path)
    remove()
    assert not excise.list_erasers(tiny_pipe)
    assert torch.equal(draw(tiny_pipe), plain)


def test_one_eraser_is_attached_once_by_two_threads(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread begins as soon as the first gives the lock back."""
    real, other, refused = setting.LOCK, own_pipeline(tiny_pipe), list[Exception]()

    def attach(name: str) -> None:
        try:
            gun_eraser.attach(other if name == "second" else tiny_pipe, name=name)
        except InvalidSetting as error:
            refused.append(error)

    class Lock(type(real)):  # type: ignore[misc]
        tried = False

        def __exit__(self, *error: object) -> None:
            super().__exit__(*error)
            if not self._depth and not self.tried and threading.current_thread() is threading.main_thread():
                self.tried = True
                thread = threading.Thread(target=attach, args=("second",))
                thread.start()
                thread.join()

    monkeypatch.setattr(setting, "LOCK", Lock())
    attach("first")
    assert len(refused) == 1 and len(excise.list_erasers(tiny_pipe)) == 1


def test_an_interrupted_image_does_not_answer_for_the_strength(tiny_pipe: Any, weights: Eraser) -> None:
    class Stop(BaseException):
        """As Ctrl-C."""

    def stop(*run: Any) -> None:
        raise Stop

    with weights.attach(tiny_pipe) as attachment:
        handle = tiny_pipe.unet.conv_in.register_forward_hook(stop)
        with pytest.raises(Stop) as kept:
            draw(tiny_pipe)
        handle.remove()
        attachment.strength = 0.3
        assert attachment.strength == 0.3
        assert kept.tb is not None
        left = setting._ENTRANCES[tiny_pipe.unet]._opened
        draw(tiny_pipe)
        assert left == [], "the interrupted run leaves nothing on the list of open ones"


def test_a_second_detach_takes_no_hook_from_an_image(tiny_pipe: Any, weights: Eraser) -> None:
    """Another thread unloads the eraser, and the `with` block ends."""
    attachment = weights.attach(tiny_pipe)
    erased = draw(tiny_pipe)
    twice = lambda: [attachment.detach(), attachment.detach()]  # noqa: E731
    assert torch.equal(draw(tiny_pipe, **at_first_step(twice)), erased)
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)


def streaming(pipe: Any) -> Any:
    """Return a pipeline of the same modules whose call yields the latents of every step."""
    from diffusers import StableDiffusionPipeline

    class Streaming(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self) -> Iterator[Tensor]:
            yield from steps(self)

    return Streaming(**pipe.components, requires_safety_checker=False)


@pytest.mark.parametrize("kind", ["text", "weights"])
def test_a_pipeline_call_that_yields_keeps_its_setting(
    tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser, kind: str
) -> None:
    """A server may run every step in another thread."""
    pipe, plain = streaming(tiny_pipe), loop(tiny_pipe)
    attachment = (gun_eraser if kind == "text" else weights).attach(tiny_pipe)
    erased = loop(tiny_pipe)
    with ThreadPoolExecutor(3) as pool:
        stream = pipe()
        made = [pool.submit(next, stream).result()]
        attachment.detach()
        assert torch.equal(loop(tiny_pipe), plain), "an image of its own, which begins later"
        made += [pool.submit(next, stream).result() for _ in range(2)]
    assert torch.equal(made[-1], erased)
    del stream
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)


def test_an_abandoned_call_keeps_its_setting_until_it_is_freed(tiny_pipe: Any, weights: Eraser) -> None:
    attachment = weights.attach(tiny_pipe)
    stream = streaming(tiny_pipe)()
    next(stream)
    attachment.detach()
    assert "_diffusers_hook" in vars(tiny_pipe.unet)
    del stream
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)
    assert not setting._LEAVING


def test_images_in_greenlets_take_turns(tiny_pipe: Any, weights: Eraser) -> None:
    """A greenlet that waits, as gevent's do, is on no thread's stack."""
    greenlet = pytest.importorskip("greenlet")
    plain, (one, other) = draw(tiny_pipe), (own_pipeline(tiny_pipe), own_pipeline(tiny_pipe))
    attachment = weights.attach(tiny_pipe, name="cat")
    erased, here = draw(tiny_pipe), greenlet.getcurrent()

    def waits() -> dict[str, Any]:
        return {"callback_on_step_end": lambda pipe, n, timestep, kwargs: here.switch() or kwargs}

    def bare() -> Tensor:
        with excise.using(tiny_pipe, {}):
            return draw(other, **waits())

    first, second = greenlet.greenlet(lambda: draw(one, **waits())), greenlet.greenlet(bare)
    try:
        first.switch()
        second.switch()
        attachment.detach()
        for green, expected in ((first, erased), (second, plain)):
            while not green.dead:
                image = green.switch()
            assert torch.equal(image, expected)
    finally:
        torch.set_grad_enabled(True)  # PyTorch keeps it by thread, so that one greenlet's no_grad ends in another's
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)
