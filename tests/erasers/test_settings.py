"""Settings change while images are generated: an image ends as it began, and requests differ from one another."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Eraser, WeightEdit, made_for
from excise.errors import EraserDidNotFire, InvalidSetting, NotFound
from excise.sites import Site
from tests import tiny

GUN = "a gun on grass"


def draw(pipe: Any, prompt: Any = GUN, **options: Any) -> Tensor:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent", **options}
    made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images
    return made


def at_first_step(change: Callable[[], Any]) -> dict[str, Any]:
    """Options that make `change` happen once, after the first step."""

    def step(pipe: Any, n: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if n == 0:
            change()
        return kwargs

    return {"callback_on_step_end": step}


def own_pipeline(pipe: Any) -> Any:
    """Another pipeline of the same modules, with a scheduler and tokenizer for one thread alone."""
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    made.scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    made.tokenizer = copy.deepcopy(pipe.tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def weights(tiny_pipe: Any) -> Eraser:
    """An eraser that changes weights of the U-Net: it acts at every step, not while the prompt is encoded."""
    path = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    delta = torch.randn(tiny_pipe.unet.get_submodule(path).weight.shape, generator=torch.Generator().manual_seed(0))
    edit = WeightEdit(Site("unet", path, len(delta)), delta=delta)
    return Eraser((edit,), "cat-test", "cat", ("cat",), made_for(tiny_pipe, ["unet"]), canary=(GUN,), method="uce")


@pytest.fixture
def plain(tiny_pipe: Any) -> Tensor:
    return draw(tiny_pipe)


@pytest.fixture(params=["text", "weights"])
def eraser(request: Any, gun_eraser: Eraser, weights: Eraser) -> Eraser:
    return gun_eraser if request.param == "text" else weights


def test_setting_again_what_is_set_changes_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe, name="it") as attachment:
        made = draw(tiny_pipe)
        embeds = tiny_pipe.encode_prompt(GUN, "cpu", 1, True, "")

        def again() -> None:
            excise.set_erasers(tiny_pipe, ["it"], 1.0)
            excise.enable_erasers(tiny_pipe)
            attachment.strength, attachment.enabled = 1.0, True

        assert torch.equal(draw(tiny_pipe, **at_first_step(again)), made)
        again()
        assert torch.equal(draw(tiny_pipe, None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1]), made)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe, attachment: setattr(attachment, "strength", 0.3),
        lambda pipe, attachment: setattr(attachment, "strength", 0.0),
        lambda pipe, attachment: excise.disable_erasers(pipe),
        lambda pipe, attachment: excise.set_erasers(pipe, []),
        lambda pipe, attachment: attachment.detach(),
        lambda pipe, attachment: excise.unload_eraser(pipe),
    ],
    ids=["scaled", "strength 0", "disabled", "none set", "detached", "unloaded"],
)
def test_an_image_ends_under_the_setting_that_it_began_under(
    tiny_pipe: Any, eraser: Eraser, plain: Tensor, change: Callable[[Any, Any], Any]
) -> None:
    with eraser.attach(tiny_pipe) as attachment:
        erased = draw(tiny_pipe)
        assert not torch.equal(erased, plain)
        assert torch.equal(draw(tiny_pipe, **at_first_step(lambda: change(tiny_pipe, attachment))), erased)
        after = draw(tiny_pipe)
        assert not torch.equal(after, erased), "the next image is under the new setting"
        assert torch.equal(after, plain) == (attachment.strength != 0.3)
    assert torch.equal(draw(tiny_pipe), plain)
    assert "_diffusers_hook" not in vars(tiny_pipe.unet)
    assert not tiny_pipe.unet._forward_pre_hooks
    assert not tiny_pipe.text_encoder._forward_hooks


def test_an_eraser_attached_during_an_image_acts_in_the_next(
    tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser, plain: Tensor
) -> None:
    """Also where no hook saw the image begin, since it is the first eraser."""
    attached, other = list[Any](), own_pipeline(tiny_pipe)  # proving an eraser draws, and so needs another scheduler
    for eraser in (gun_eraser, weights):
        before = draw(tiny_pipe)
        image = draw(tiny_pipe, **at_first_step(lambda own=eraser: attached.append(own.attach(other))))
        assert torch.equal(image, before)
        assert not torch.equal(draw(tiny_pipe), before)
    for attachment in attached:
        attachment.detach()
    assert torch.equal(draw(tiny_pipe), plain)


def test_embeddings_count_for_the_setting_that_they_were_made_under(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    def again(embeds: Any) -> Tensor:
        return draw(tiny_pipe, None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])

    def encoded() -> Any:
        return tiny_pipe.encode_prompt(GUN, "cpu", 1, True, "")

    with gun_eraser.attach(tiny_pipe) as attachment:
        whole, image = encoded(), draw(tiny_pipe)
        attachment.strength = 0.5
        half = encoded()
        with pytest.raises(EraserDidNotFire):
            again(whole)
        attachment.enabled = False
        off = encoded()
        attachment.enabled, attachment.strength = True, 1.0
        for embeds in (half, off):
            with pytest.raises(EraserDidNotFire):
                again(embeds)
        assert torch.equal(again(whole), image), "made under this very setting"


@pytest.mark.parametrize("encode", ["encode_prompt", "excise.encode", "by hand"])
def test_a_prompt_is_encoded_under_one_setting(tiny_pipe: Any, gun_eraser: Eraser, encode: str) -> None:
    """The strength is changed when the encoder has begun and the edit is still to come."""

    def by_hand(text: str) -> Tensor:
        ids = tiny_pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        made: Tensor = tiny_pipe.text_encoder(ids).last_hidden_state
        return made

    def states() -> Tensor:
        if encode == "encode_prompt":
            made: Tensor = tiny_pipe.encode_prompt(GUN, "cpu", 1, False)[0]
            return made
        found: Tensor = excise.encode(tiny_pipe, by_hand, GUN) if encode == "excise.encode" else by_hand(GUN)
        return found

    first, changes = tiny.body(tiny_pipe.text_encoder).encoder.layers[0], list[Callable[[], Any]]()
    first.register_forward_hook(lambda *run: changes.pop()() if changes else None)
    with gun_eraser.attach(tiny_pipe) as attachment:
        whole = states()
        changes.append(lambda: setattr(attachment, "strength", 0.5))
        across = states()
        assert torch.equal(across, whole)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=across, guidance_scale=1.0)
        attachment.strength = 1.0
        draw(tiny_pipe, None, prompt_embeds=across, guidance_scale=1.0)


def test_embeddings_from_before_are_refused_although_their_thread_drew_then(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """The setting of an earlier image, or of an encoding of its own, does not outlive it."""
    sibling = own_pipeline(tiny_pipe)
    with gun_eraser.attach(tiny_pipe) as attachment:
        attachment.enabled = False
        embeds = tiny_pipe.encode_prompt(GUN, "cpu", 1, False)[0]
        draw(tiny_pipe, None, prompt_embeds=embeds, guidance_scale=1.0)
        attachment.enabled = True
        for pipe in (tiny_pipe, sibling):
            with pytest.raises(EraserDidNotFire):
                draw(pipe, None, prompt_embeds=embeds, guidance_scale=1.0)


def test_an_interrupted_image_leaves_no_setting_behind(tiny_pipe: Any, eraser: Eraser, plain: Tensor) -> None:
    class Stop(BaseException):
        """As Ctrl-C."""

    interrupted: list[Any] = []

    def stop(module: Any, *run: Any) -> None:
        if module in interrupted:
            raise Stop

    errors: list[BaseException] = []
    handles = [module.register_forward_hook(stop) for module in (tiny_pipe.unet, tiny_pipe.text_encoder)]
    with eraser.attach(tiny_pipe) as attachment:
        for module in (tiny_pipe.unet, tiny_pipe.text_encoder):
            interrupted[:] = [module]
            try:
                draw(tiny_pipe)
            except Stop as error:
                errors.append(error)  # which keeps the frames of the call alive
        interrupted.clear()
        erased = draw(tiny_pipe)
        attachment.enabled = False
        assert torch.equal(draw(tiny_pipe), plain)
        attachment.enabled = True
        assert torch.equal(draw(tiny_pipe), erased)
    for handle in handles:
        handle.remove()
    assert "_diffusers_hook" not in vars(tiny_pipe.unet), "a kept exception keeps no hook"
    assert len(errors) == 2


def test_requests_in_threads_differ_at_the_same_time(
    tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser, plain: Tensor
) -> None:
    """Four tenants on the same modules, whose steps take turns: each gets what it would get alone."""
    wishes: list[dict[str, float]] = [{}, {"gun": 1.0}, {"gun": 0.5, "cat": 1.0}, {"cat": 0.25}]
    with gun_eraser.attach(tiny_pipe, name="gun"), weights.attach(tiny_pipe, name="cat"):
        alone = []
        for wish in wishes:
            excise.set_erasers(tiny_pipe, list(wish), list(wish.values()))
            alone.append(draw(tiny_pipe))
        excise.set_erasers(tiny_pipe, ["gun"], 0.75)
        everybody = draw(tiny_pipe)
        turns, made = threading.Barrier(len(wishes)), list[Any]([None] * len(wishes))

        def work(n: int) -> None:
            def step(pipe: Any, i: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
                turns.wait(60)
                return kwargs

            with excise.using(tiny_pipe, wishes[n]):
                made[n] = draw(own_pipeline(tiny_pipe), callback_on_step_end=step)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(wishes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [torch.equal(one, other) for one, other in zip(made, alone, strict=True)] == [True] * 4
        assert torch.equal(alone[0], plain)
        assert torch.equal(draw(tiny_pipe), everybody), "what is set for everybody is as it was"
        assert all(status["bypasses"] == 0 for status in excise.list_erasers(tiny_pipe).values())


def test_requests_in_asyncio(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe, name="gun") as attachment:
        erased = draw(tiny_pipe)
        attachment.enabled = False
        bare = draw(tiny_pipe)

        async def request(wish: dict[str, float]) -> Tensor:
            with excise.using(tiny_pipe, wish):
                await asyncio.sleep(0)
                assert attachment.active == bool(wish)
                return await asyncio.to_thread(draw, own_pipeline(tiny_pipe))

        async def both() -> list[Tensor]:
            return await asyncio.gather(request({"gun": 1.0}), request({}))

        first, second = asyncio.run(both())
    assert torch.equal(first, erased) and torch.equal(second, bare)


def test_a_request_names_exactly_what_acts(tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser, plain: Tensor) -> None:
    with gun_eraser.attach(tiny_pipe, name="gun") as gun, weights.attach(tiny_pipe, name="cat"):
        with excise.using(tiny_pipe, "gun"):
            assert excise.get_active_erasers(tiny_pipe) == ["gun"]
            with excise.using(tiny_pipe, {"cat": 0.5}):
                assert excise.get_active_erasers(tiny_pipe) == ["cat"]
            assert excise.get_active_erasers(tiny_pipe) == ["gun"]
        with excise.using(tiny_pipe, {}):
            assert torch.equal(draw(tiny_pipe), plain)
            assert torch.equal(draw(own_pipeline(tiny_pipe)), plain)
        with excise.using(tiny_pipe, {"gun": 0.5}):
            assert gun.strength == 0.5
            half = excise.encode(tiny_pipe, GUN)
        assert gun.strength == 1.0
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=half[0], guidance_scale=1.0)
        for wish, kind in (({"knife": 1.0}, NotFound), ({"gun": -1.0}, InvalidSetting), ({"gun": "1"}, InvalidSetting)):
            with pytest.raises(kind), excise.using(tiny_pipe, wish):
                pass


def test_a_request_whose_eraser_is_unloaded_raises(tiny_pipe: Any, gun_eraser: Eraser, weights: Eraser) -> None:
    with weights.attach(tiny_pipe, name="cat"):
        gun_eraser.attach(tiny_pipe, name="gun")
        with excise.using(tiny_pipe, {"gun": 1.0}):
            draw(tiny_pipe)
            excise.unload_eraser(tiny_pipe, "gun")
            with pytest.raises(EraserDidNotFire, match="was unloaded"):
                draw(tiny_pipe)
        draw(tiny_pipe)


@pytest.fixture
def stronger(gun_eraser: Eraser, tmp_path: Path) -> Path:
    """The folder of another eraser of the same concept."""
    other = replace(gun_eraser, name="stronger", edits=(replace(gun_eraser.edits[0], lam=2.5),))
    other.save_pretrained(tmp_path / "stronger")
    return tmp_path / "stronger"


def test_an_eraser_is_replaced_without_a_gap(tiny_pipe: Any, gun_eraser: Eraser, stronger: Path, plain: Tensor) -> None:
    gun_eraser.attach(tiny_pipe, strength=0.5, name="gun")
    old = draw(tiny_pipe)
    image = draw(tiny_pipe, **at_first_step(lambda: excise.replace_eraser(tiny_pipe, "gun", stronger)))
    assert torch.equal(image, old)
    new = draw(tiny_pipe)
    assert not torch.equal(new, old) and not torch.equal(new, plain)
    (status,) = excise.list_erasers(tiny_pipe).values()
    assert (status["name"], status["strength"], status["active"]) == ("gun", 0.5, True)
    assert status["digest"] == Eraser.load(stronger).digest
    excise.unload_eraser(tiny_pipe)
    assert torch.equal(draw(tiny_pipe), plain)


def test_a_refused_replacement_leaves_the_old_eraser(tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path) -> None:
    dud = replace(gun_eraser, name="dud", edits=(replace(gun_eraser.edits[0], lam=1e-9),), canary_shift=0.5)
    dud.save_pretrained(tmp_path / "dud")
    with gun_eraser.attach(tiny_pipe, name="gun"):
        erased = draw(tiny_pipe)
        with pytest.raises(EraserDidNotFire):
            excise.replace_eraser(tiny_pipe, "gun", tmp_path / "dud")
        with pytest.raises(NotFound):
            excise.replace_eraser(tiny_pipe, "knife", tmp_path / "dud")
        assert list(excise.list_erasers(tiny_pipe)) == ["gun"]
        assert torch.equal(draw(tiny_pipe), erased)


def test_no_image_comes_through_while_an_eraser_is_replaced(
    tiny_pipe: Any, gun_eraser: Eraser, stronger: Path, tmp_path: Path, plain: Tensor
) -> None:
    gun_eraser.save_pretrained(tmp_path / "gun")
    gun_eraser.attach(tiny_pipe, name="gun")
    expected = [draw(tiny_pipe)]
    excise.replace_eraser(tiny_pipe, "gun", stronger)
    expected.append(draw(tiny_pipe))
    wrong, done = list[object](), threading.Event()

    def work(pipe: Any) -> None:
        while not done.is_set():
            try:
                made = draw(pipe)
            except Exception as error:
                wrong.append(error)
                return
            if not any(torch.equal(made, known) for known in expected):
                wrong.append("plain" if torch.equal(made, plain) else "a mixture")

    threads = [threading.Thread(target=work, args=(own_pipeline(tiny_pipe),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for n in range(6):
            excise.replace_eraser(tiny_pipe, "gun", tmp_path / "gun" if n % 2 == 0 else stronger)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    excise.unload_eraser(tiny_pipe)
    assert torch.equal(draw(tiny_pipe), plain)
