"""Pipelines of the same components with an eraser each: every one of them is asked, whichever pipeline is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire, ExciseError
from excise.sites import Site, default_site, to_cover
from tests import tiny
from tests.conftest import make_word_sae
from tests.planted import NEURON, planted

GUN, CAT = "a gun on grass", "a cat on grass"


def draw(pipe: Any, prompt: Any = GUN, **options: Any) -> Tensor:
    how = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "latent", **options}
    made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images
    return made


@pytest.fixture(autouse=True)
def clip_skip(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' clip_skip needs CLIP's layers at their path in transformers < 5.6."""
    if not hasattr(tiny_pipe.text_encoder, "text_model"):
        monkeypatch.setattr(type(tiny_pipe.text_encoder), "text_model", property(lambda own: own), raising=False)


@pytest.fixture
def sibling(tiny_pipe: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pipe(tiny_pipe)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def early(tiny_pipe: Any) -> Eraser:
    """Another eraser, at the first layer: a pipeline that reads only as far as the second still reads what it edits."""
    site = Site("text_encoder", "encoder.layers.0", 64)
    edit = SAEEdit.from_sae(make_word_sae(tiny_pipe, site), site, [7], gate="relu", lam=0.1)
    return Eraser((edit,), "early", "something else", ("else",), made_for(tiny_pipe), canary=(CAT,))


@pytest.mark.parametrize("called", ["the eraser's own", "its sibling"])
def test_clip_skip_under_an_eraser_that_it_does_not_pass_by(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, early: Eraser, called: str
) -> None:
    pipe, other = (tiny_pipe, sibling) if called == "the eraser's own" else (sibling, tiny_pipe)
    with early.attach(pipe):
        draw(pipe, clip_skip=1)
        gun = gun_eraser.attach(other)
        for each in (pipe, other):
            with pytest.raises(ExciseError, match=r"clip_skip=1 reads .* before .*layers.2, where eraser 'gun-test'"):
                draw(each, clip_skip=1)
            draw(each)
        assert gun.status()["bypasses"] == 0
        gun.detach()
        draw(pipe, clip_skip=1)
    draw(pipe, clip_skip=1)


def test_clip_skip_once_the_other_pipelines_eraser_is_off_again(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, early: Eraser
) -> None:
    """Then nothing guards the pipeline, but the eraser of its encoder is still on."""
    gun, other = gun_eraser.attach(tiny_pipe), early.attach(sibling)
    other.detach()
    for encode in (
        sibling.encode_prompt,
        lambda *given, **how: excise.encode(sibling, sibling.encode_prompt, *given, **how),
    ):
        with pytest.raises(ExciseError, match="clip_skip=1 reads the text encoder before"), torch.no_grad():
            encode(GUN, "cpu", 1, False, clip_skip=1)
    with pytest.raises(ExciseError, match="clip_skip=1 reads the text encoder before"):
        draw(sibling, clip_skip=1)
    gun.detach()
    draw(sibling, clip_skip=1)


def test_clip_skip_where_the_prompts_are_encoded_for_a_second_stage(
    tiny_pipe: Any, gun_eraser: Eraser, early: Eraser
) -> None:
    from diffusers import StableDiffusionPipeline

    parts = tiny_pipe.components
    first = StableDiffusionPipeline(**{**parts, "unet": None, "vae": None}, requires_safety_checker=False)
    with gun_eraser.attach(tiny_pipe), early.attach(first), torch.no_grad():
        own = first.encode_prompt(GUN, "cpu", 1, False)[0]
        draw(tiny_pipe, None, prompt_embeds=own, guidance_scale=1.0)
        with pytest.raises(ExciseError, match="where eraser 'gun-test' acts"):
            first.encode_prompt(GUN, "cpu", 1, False, clip_skip=1)


def test_each_is_asked_by_what_it_was_told_to_do_about_bypasses(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, early: Eraser
) -> None:
    """An eraser that lets bypasses pass does not answer for another one."""
    with gun_eraser.attach(tiny_pipe), early.attach(sibling, on_bypass="allow"):
        draw(sibling)
        tiny_pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        with pytest.raises(EraserDidNotFire, match="past eraser 'gun-test'"):
            draw(sibling)


def test_each_counts_a_prompt_once(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, early: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as gun, early.attach(sibling) as other:
        for pipe in (tiny_pipe, sibling):
            draw(pipe, [CAT, GUN])
        assert gun.status()["prompts_encoded"] == other.status()["prompts_encoded"] == 4


def test_a_negative_prompt_that_one_eraser_spares_and_another_edits(
    tiny_pipe: Any, sibling: Any, early: Eraser
) -> None:
    """With clip_skip the guard accepts states. Spared ones do not count as a prompt there either."""
    site = early.edits[0].site
    gun = SAEEdit.from_sae(make_word_sae(tiny_pipe, site), site, [5], gate="relu")
    spares = replace(early, edits=(gun,), name="gun", canary=(GUN,))
    same = replace(early, edits=(replace(early.edits[0], uncond="same"),))
    plain = draw(tiny_pipe, CAT, negative_prompt=GUN, clip_skip=1)
    for one, other in ((tiny_pipe, sibling), (tiny_pipe, tiny_pipe)):
        with spares.attach(one), same.attach(other), torch.no_grad():
            own, negative = other.encode_prompt(CAT, "cpu", 1, True, GUN, clip_skip=1)
            draw(other, None, prompt_embeds=own, negative_prompt_embeds=negative)
            with pytest.raises(EraserDidNotFire):
                draw(other, None, prompt_embeds=negative, guidance_scale=1.0)
    with spares.attach(tiny_pipe):
        assert torch.equal(draw(tiny_pipe, CAT, negative_prompt=GUN, clip_skip=1), plain)


def test_compels_embeddings_are_drawn_by_either_pipeline(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, early: Eraser
) -> None:
    compel = pytest.importorskip("compel")
    weighting = compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder)
    with gun_eraser.attach(tiny_pipe) as gun, early.attach(sibling) as other, torch.no_grad():
        for pipe in (tiny_pipe, sibling):
            own = excise.encode(pipe, weighting, "a (gun)1.4 on grass")
            negative = excise.encode(pipe, weighting, "a (gun)1.2", negative=True)
            for drawing in (tiny_pipe, sibling):
                draw(drawing, None, prompt_embeds=own, negative_prompt_embeds=negative)
                with pytest.raises(EraserDidNotFire):
                    draw(drawing, None, prompt_embeds=negative, guidance_scale=1.0)
        assert gun.status()["prompts_encoded"] == other.status()["prompts_encoded"] > 0


@pytest.fixture(scope="module")
def sd3() -> tuple[Any, tuple[SAEEdit, ...]]:
    if (reason := tiny.missing("sd3")) is not None:
        pytest.skip(reason)
    pipe, concept = tiny.build("sd3"), from_templates("gun", ("gun",), 6)
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    return pipe, tuple(SAEEdit.from_sae(planted(pipe, site, concept), site, [NEURON], gate="relu") for site in sites)


@pytest.mark.parametrize(("made", "way"), [("without it", "put in"), ("with it", "sibling")])
def test_an_encoder_that_only_the_other_eraser_edits(sd3: tuple[Any, tuple[SAEEdit, ...]], made: str, way: str) -> None:
    """SD3's T5, which was absent when the one eraser was made and attached, and which the other one edits."""
    whole, edits = sd3
    small = type(whole)(**{**whole.components, "text_encoder_3": None, "tokenizer_3": None})
    small.set_progress_bar_config(disable=True)
    of = (whole, edits) if made == "with it" else (small, edits[:2])
    eraser = Eraser(of[1], "gun", "gun", ("gun",), made_for(of[0]), canary=(GUN,))
    weaker = tuple(replace(edit, lam=0.5 * edit.lam) for edit in edits)
    other = Eraser(weaker, "other", "gun", ("gun",), made_for(whole), canary=(GUN,))
    pipe = whole if way == "sibling" else small
    with eraser.attach(small):
        tiny.call("sd3", small, GUN)
        pipe.text_encoder_3, pipe.tokenizer_3 = whole.text_encoder_3, whole.tokenizer_3
        with (
            other.attach(pipe),
            pytest.raises(
                ExciseError, match=r"eraser 'gun'.*has another text_encoder_3|text_encoder_3, which eraser 'gun'"
            ),
        ):
            tiny.call("sd3", pipe, GUN)
