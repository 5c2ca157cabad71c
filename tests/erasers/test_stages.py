"""Pipelines without text encoders: SD3 without its T5, and a second stage that generates from another's embeddings."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

import excise
from excise.concepts import from_templates
from excise.erasers import Eraser
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sites import default_site, to_cover
from tests import tiny
from tests.planted import planted

GUN, CAT = "a gun on grass", "a cat on grass"


@pytest.fixture(scope="module")
def made() -> tuple[Any, Eraser]:
    """SD3 with all its encoders, and an eraser for them."""
    if (reason := tiny.missing("sd3")) is not None:
        pytest.skip(reason)
    pipe, concept = tiny.build("sd3"), from_templates("gun", ("gun",), 12)
    saes = {s: planted(pipe, s, concept) for s in (default_site(pipe, c) for c in to_cover(pipe))}
    return pipe, replace(fit(pipe, concept, SNCEConfig(permutations=20), sae=saes), name="staged")


def variant(pipe: Any, *without: str, **options: Any) -> Any:
    """A pipeline of the same components but those."""
    kept = {name: None if name in without else part for name, part in pipe.components.items()}
    other = type(pipe)(**kept, **options)
    other.set_progress_bar_config(disable=True)
    return other


def encoded(pipe: Any, prompt: str, negative: str = "") -> dict[str, Any]:
    with torch.no_grad():
        found = pipe.encode_prompt(prompt, None, None, negative_prompt=negative, device="cpu")
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    return dict(zip(names, found, strict=True))


T5 = ("text_encoder_3", "tokenizer_3")
CLIPS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
NO_DENOISER = ("transformer", "vae")


def test_sd3_without_its_t5(made: tuple[Any, Eraser]) -> None:
    whole, eraser = made
    pipe = variant(whole, *T5)
    before = {prompt: tiny.call("sd3", pipe, prompt) for prompt in (GUN, CAT)}
    with eraser.attach(pipe) as attachment:
        status = attachment.status()
        assert status["absent"] == ["text_encoder_3"]
        assert [site.partition("/")[0] for site in status["sites"]] == ["text_encoder", "text_encoder_2"]
        assert status["canary_shift"] > 0
        assert not torch.equal(tiny.call("sd3", pipe, GUN), before[GUN])
        assert torch.equal(tiny.call("sd3", pipe, CAT), before[CAT])
        pipe.text_encoder_3, pipe.tokenizer_3 = whole.text_encoder_3, whole.tokenizer_3
        with pytest.raises(ExciseError, match=r"text_encoder_3 was added after .*; attach it again"):
            tiny.call("sd3", pipe, CAT)
    with eraser.attach(pipe) as attachment:
        assert attachment.status()["absent"] == []
        assert len(attachment.status()["sites"]) == 3
        tiny.call("sd3", pipe, GUN)
    with eraser.attach(variant(whole, *T5)), pytest.raises(EraserDidNotFire, match="the denoiser was given text"):
        tiny.call("sd3", whole, GUN)  # the same transformer, with a T5 that is not edited


def test_a_pipeline_that_never_had_the_encoder_is_another_one(made: tuple[Any, Eraser], tiny_pipe: Any) -> None:
    """A component is absent if the pipeline has a place for it and was built without it."""
    _, eraser = made
    with pytest.raises(ExciseError, match="has no text encoder 'text_encoder_2'"):
        eraser.attach(tiny_pipe)


def test_a_second_stage_draws_what_the_first_encoded(made: tuple[Any, Eraser]) -> None:
    whole, eraser = made
    first, second = variant(whole, *NO_DENOISER), variant(whole, *T5, *CLIPS)
    second.vae = whole.vae
    foreign = encoded(first, "a gun on sand")
    plain = tiny.call("sd3", second, None, **encoded(first, CAT, GUN), guidance_scale=3.0)
    with pytest.raises(ExciseError, match="first attach the eraser to the pipeline that encodes the prompts"):
        eraser.attach(second)
    encoding = eraser.attach(first)
    cat, gun = encoded(first, CAT, GUN), encoded(first, GUN)
    with eraser.attach(second) as drawing:
        status = drawing.status()
        assert (status["sites"], status["canary_shift"]) == ([], encoding.status()["canary_shift"])
        assert excise.get_active_erasers(second) == [eraser.name]
        assert torch.equal(tiny.call("sd3", second, None, **cat, guidance_scale=3.0), plain)
        tiny.call("sd3", second, None, **gun)
        with pytest.raises(EraserDidNotFire, match="prompt_embeds were not encoded under"):
            tiny.call("sd3", second, None, **foreign)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            tiny.call("sd3", whole, None, **foreign)
        negative = {"prompt_embeds": cat["negative_prompt_embeds"]}
        negative["pooled_prompt_embeds"] = cat["negative_pooled_prompt_embeds"]
        with pytest.raises(EraserDidNotFire):
            tiny.call("sd3", second, None, **negative, guidance_scale=1.0)
        # The encoders are deleted to make room for the denoiser. Their embeddings stay valid.
        encoding.detach()
        assert torch.equal(tiny.call("sd3", second, None, **cat, guidance_scale=3.0), plain)
        assert all("forward" not in vars(e) for e in (first.text_encoder, first.text_encoder_2, first.text_encoder_3))
        with pytest.raises(EraserDidNotFire):
            tiny.call("sd3", second, None, **encoded(first, GUN))
    assert "forward" not in vars(whole.transformer)
    tiny.call("sd3", second, None, **foreign)


def test_a_detached_first_stage_is_freed(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    first = variant(tiny_pipe, "unet", "vae", requires_safety_checker=False)
    second = variant(tiny_pipe, "text_encoder", "tokenizer", requires_safety_checker=False)
    first.text_encoder = copy.deepcopy(first.text_encoder)
    encoding = gun_eraser.attach(first)
    with gun_eraser.attach(second) as drawing:
        with torch.no_grad():
            embeds = first.encode_prompt(GUN, "cpu", 1, True)
        gone = weakref.ref(first.text_encoder), weakref.ref(first)
        encoding.detach()
        assert encoding.pipe is first and encoding.changes() == []
        del first, encoding
        gc.collect()
        assert [part() for part in gone] == [None, None]
        how = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "output_type": "latent"}
        second(num_inference_steps=1, **how)
        assert drawing.active and drawing.strength == 1 and drawing.encoded_by is not None
        assert "on StableDiffusionPipeline" in repr(drawing.encoded_by)
        with pytest.raises(ExciseError, match="no longer in memory"):
            drawing.encoded_by.pipe  # noqa: B018


def test_excise_encode_at_a_second_stage_takes_what_the_first_encodes(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """There is no encoder that could have been bypassed, so the first stage's has to run."""
    first = variant(tiny_pipe, "unet", "vae", requires_safety_checker=False)
    second = variant(tiny_pipe, "text_encoder", "tokenizer", requires_safety_checker=False)
    how = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1.0}
    ids = tiny_pipe.tokenizer(GUN, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        foreign = first.encode_prompt(GUN, "cpu", 1, False)[0]
        with gun_eraser.attach(first) as encoding, gun_eraser.attach(second):
            with pytest.raises(EraserDidNotFire, match="saw no text-encoder run"):
                excise.encode(second, lambda: foreign)
            with pytest.raises(EraserDidNotFire):
                second(prompt_embeds=foreign, **how)
            weighted = excise.encode(second, lambda: 1.2 * first.text_encoder(ids)[0])
            second(prompt_embeds=weighted, **how)
            encoding.detach()
            with pytest.raises(EraserDidNotFire, match="edits no text encoder"):
                excise.encode(second, lambda: foreign)


def test_excise_encode_without_the_t5_takes_no_t5s_states(made: tuple[Any, Eraser]) -> None:
    whole, eraser = made
    small = variant(whole, *T5)
    with eraser.attach(small):
        with pytest.raises(EraserDidNotFire, match="attached without text_encoder_3"):
            excise.encode(small, lambda: encoded(whole, GUN))
        cat = excise.encode(small, lambda: encoded(small, CAT))
        tiny.call("sd3", small, None, **cat)


def test_setting_the_first_stage_otherwise_makes_its_embeddings_stale(made: tuple[Any, Eraser]) -> None:
    whole, eraser = made
    first, second = variant(whole, *NO_DENOISER), variant(whole, *T5, *CLIPS)
    with eraser.attach(first) as encoding, eraser.attach(second):
        cat = encoded(first, CAT)
        tiny.call("sd3", second, None, **cat)
        encoding.strength = 0.5
        with pytest.raises(EraserDidNotFire):
            tiny.call("sd3", second, None, **cat)


def test_a_pipeline_of_the_same_components_has_the_same_erasers(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    with gun_eraser.attach(tiny_pipe) as attachment:
        sibling = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
        assert excise.list_erasers(sibling) == excise.list_erasers(tiny_pipe) == {"gun-test": attachment.status()}
        excise.disable_erasers(sibling)
        assert excise.get_active_erasers(tiny_pipe) == []
        excise.set_erasers(sibling, "gun-test", 0.5)
        assert attachment.strength == 0.5
        excise.unload_eraser(sibling, "gun-test")
        assert not attachment.attached
    assert excise.list_erasers(sibling) == excise.list_erasers(tiny_pipe) == {}


def test_two_erasers_of_one_encoder_have_two_names(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """Whichever of the pipelines they are attached to: each of those lists them by name."""
    from diffusers import StableDiffusionPipeline

    sibling = StableDiffusionPipeline.from_pipe(tiny_pipe)
    other = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=2.0),))
    with gun_eraser.attach(tiny_pipe):
        with pytest.raises(ExciseError, match="an eraser called 'gun-test' is attached already"):
            other.attach(sibling)
        with other.attach(sibling, name="other"):
            assert set(excise.list_erasers(tiny_pipe)) == {"gun-test", "other"}


def test_a_pipeline_with_another_denoiser_has_the_erasers_of_its_encoder(
    tiny_pipe: Any, build_pipe: Any, gun_eraser: Eraser
) -> None:
    other, stranger = build_pipe(1), build_pipe(2)
    other.text_encoder = tiny_pipe.text_encoder
    with gun_eraser.attach(tiny_pipe):
        assert list(excise.list_erasers(other)) == ["gun-test"]
        assert excise.list_erasers(stranger) == {}


def stages(pipe: Any) -> tuple[Any, Any]:
    """Two pipelines of the same components: one that only encodes, and one that only generates."""
    from diffusers import StableDiffusionPipeline

    parts = pipe.components
    first = StableDiffusionPipeline(**{**parts, "unet": None, "vae": None}, requires_safety_checker=False)
    second = StableDiffusionPipeline(
        **{**parts, "text_encoder": None, "tokenizer": None}, requires_safety_checker=False
    )
    second.set_progress_bar_config(disable=True)
    return first, second


def states(pipe: Any, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


def draw(pipe: Any, given: torch.Tensor) -> Any:
    how = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(prompt_embeds=given, generator=torch.Generator().manual_seed(3), **how).images


def test_what_another_eraser_alone_edited_is_not_drawn_under_this_one(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    first, second = stages(tiny_pipe)
    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=2.0),))
    encoding = gun_eraser.attach(first)
    with other.attach(first), gun_eraser.attach(second) as drawing:
        draw(second, states(first, GUN))
        encoding.detach()
        assert drawing.active
        with pytest.raises(EraserDidNotFire):
            draw(second, states(first, GUN + " now"))


def test_a_second_stage_is_set_where_its_prompts_are_encoded(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    first, second = stages(tiny_pipe)
    with gun_eraser.attach(first, strength=0.5) as encoding:
        with pytest.raises(ExciseError, match=r"at strength 0\.5; set the strength there"):
            gun_eraser.attach(second, strength=0.7)
        with gun_eraser.attach(second) as drawing:
            assert drawing.strength == drawing.status()["strength"] == 0.5
            encoding.enabled = False
            assert not drawing.enabled
            assert not drawing.status()["enabled"]
            assert excise.get_active_erasers(second) == []
            drawing.enabled, drawing.strength = True, 0.25
            assert (encoding.active, encoding.strength) == (True, 0.25)
            with pytest.raises(ExciseError, match="would amplify"):
                drawing.strength = -1


@pytest.mark.parametrize("between", [False, True], ids=["alone", "after another eraser"])
def test_a_first_stage_attached_again_encodes_for_the_second_again(
    tiny_pipe: Any, gun_eraser: Eraser, between: bool
) -> None:
    first, second = stages(tiny_pipe)
    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=2.0),))
    encoding = gun_eraser.attach(first)
    with gun_eraser.attach(second) as drawing:
        before = states(first, CAT)
        encoding.detach()
        plain = states(first, GUN)
        others = [other.attach(first)] if between else []
        encoding = gun_eraser.attach(first, strength=0.5)
        draw(second, states(first, GUN))
        assert drawing.status()["bypasses"] == 0
        assert drawing.strength == 0.5
        for stale in (before, plain):
            with pytest.raises(EraserDidNotFire):
                draw(second, stale)
        for attachment in (encoding, *others):
            attachment.detach()
        with pytest.raises(EraserDidNotFire):
            draw(second, plain)
    assert "forward" not in vars(second.unet)


def test_a_second_stage_draws_for_the_first_stage_attached_last(
    build_pipe: Any, tiny_pipe: Any, gun_eraser: Eraser
) -> None:
    """Whatever the order in which Python lists weakly held guards."""
    _, second = stages(tiny_pipe)
    firsts = [stages(build_pipe())[0] for _ in range(6)]
    there = [gun_eraser.attach(first) for first in firsts]
    with gun_eraser.attach(second) as drawing:
        assert drawing.encoded_by is there[-1]
    for attachment in there:
        attachment.detach()
