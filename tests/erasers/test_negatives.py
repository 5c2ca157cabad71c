"""Negative prompts, in whatever way they reach an encoder: nothing is erased from them, and they are accepted only in a
batch with a prompt."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sites import default_site, to_cover
from tests import tiny
from tests.planted import NEURON, planted

GUN, CAT = "a gun on grass", "a cat on grass"


def draw(pipe: Any, prompt: Any = None, seed: int = 3, **options: Any) -> Tensor:
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **options}
    made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(seed), **how).images
    return made


@pytest.fixture
def plain(tiny_pipe: Any) -> Tensor:
    """A cat, away from a gun, without an eraser."""
    return draw(tiny_pipe, CAT, negative_prompt=GUN)


@pytest.fixture
def sibling(tiny_pipe: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pipe(tiny_pipe)
    made.set_progress_bar_config(disable=True)
    return made


def by_encoder(pipe: Any) -> Callable[[str], Tensor]:
    """A prompt weighting's way: the text encoder called by hand, with a weight on the whole."""

    def encode(text: str) -> Tensor:
        ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            states: Tensor = pipe.text_encoder(ids)[0]
        return states

    return encode


def test_as_text(tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor) -> None:
    with gun_eraser.attach(tiny_pipe):
        assert torch.equal(draw(tiny_pipe, CAT, negative_prompt=GUN), plain)


@pytest.mark.parametrize("way", ["text", "encode_prompt", "by hand", "compel"])
def test_through_excise_encode(tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor, way: str) -> None:
    how: Any = {"text": GUN, "by hand": by_encoder(tiny_pipe)}.get(way)
    with gun_eraser.attach(tiny_pipe) as attachment, torch.no_grad():
        if way == "compel":
            compel = pytest.importorskip("compel")
            how = compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder)
        if way == "encode_prompt":
            made = excise.encode(tiny_pipe, tiny_pipe.encode_prompt, GUN, "cpu", 1, False, negative=True)[0]
        elif way == "text":
            made = excise.encode(tiny_pipe, GUN, negative=True)[0]
        else:
            made = excise.encode(tiny_pipe, how, GUN, negative=True)
        assert torch.equal(draw(tiny_pipe, CAT, negative_prompt_embeds=made), plain)
        own = tiny_pipe.encode_prompt(CAT, "cpu", 1, False)[0]
        assert torch.equal(draw(tiny_pipe, prompt_embeds=own, negative_prompt_embeds=made), plain)
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, prompt_embeds=made, negative_prompt_embeds=made)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, prompt_embeds=made, guidance_scale=1.0)


def test_weights_on_a_negative_prompts_words(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    compel = pytest.importorskip("compel")
    weighting = compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder)
    with torch.no_grad():
        heavy = weighting("a (gun)1.4 on grass")
        plain = draw(tiny_pipe, CAT, negative_prompt_embeds=heavy)
        with gun_eraser.attach(tiny_pipe):
            made = excise.encode(tiny_pipe, weighting, "a (gun)1.4 on grass", negative=True)
            assert torch.equal(made, heavy)
            assert torch.equal(draw(tiny_pipe, CAT, negative_prompt_embeds=made), plain)
            with pytest.raises(EraserDidNotFire):
                draw(tiny_pipe, prompt_embeds=made, negative_prompt_embeds=made)


def test_through_compel_where_nobody_says_that_it_is_a_negative_prompt(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """It counts as a prompt: the concept is erased from it, with a warning. Weighted elsewhere, it is refused."""
    compel = pytest.importorskip("compel")
    weighting = compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder)
    weighted, plain = "a (gun)1.4 on grass", weighting(GUN)
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        for made in (weighting(GUN), excise.encode(tiny_pipe, weighting, GUN)):
            assert not torch.equal(made, plain)
        with pytest.warns(UserWarning, match="excise.encode\\(..., negative=True\\)"):
            draw(tiny_pipe, CAT, negative_prompt_embeds=excise.encode(tiny_pipe, weighting, weighted))
        draw(tiny_pipe, prompt_embeds=made, guidance_scale=1.0)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, CAT, negative_prompt_embeds=weighting("a (gun)1.3 on grass"))


def test_on_a_pipeline_of_the_same_components(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, plain: Tensor) -> None:
    both = draw(sibling, [CAT, "a rose"], negative_prompt=[GUN, "dull"])
    with gun_eraser.attach(tiny_pipe) as attachment:
        assert torch.equal(draw(sibling, CAT, negative_prompt=GUN), plain)
        assert torch.equal(draw(sibling, [CAT, "a rose"], negative_prompt=[GUN, "dull"]), both)
        with torch.no_grad():
            own, negative = sibling.encode_prompt(GUN, "cpu", 1, True, GUN)
            (_, alone) = sibling.encode_prompt(None, "cpu", 1, True, GUN, prompt_embeds=own)
        assert not torch.equal(own, negative), "the prompt itself is edited"
        assert torch.equal(alone, negative)
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            draw(sibling, prompt_embeds=negative, guidance_scale=1.0)


def test_a_pipeline_of_somebody_elses_has_its_order_guessed_at_by_nobody(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser
) -> None:
    """It may encode the negative prompt first: both are edited."""

    def encode_prompt(self: Any, prompt: str, do_classifier_free_guidance: bool, prompt_embeds: Any = None) -> Any:
        return by_encoder(self)(prompt), by_encoder(self)(prompt)

    with gun_eraser.attach(tiny_pipe):
        one, other = encode_prompt(sibling, GUN, True)
        assert torch.equal(one, other)
        assert torch.equal(one, tiny_pipe.encode_prompt(GUN, "cpu", 1, False)[0])


def test_nothing_is_kept_of_a_pipeline_that_nobody_guards(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    from diffusers import StableDiffusionPipeline

    with gun_eraser.attach(tiny_pipe):
        other = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
        with torch.no_grad():
            made = other.encode_prompt(CAT, "cpu", 1, True, "dull")[0]
        gone = weakref.ref(other), weakref.ref(made)
        del other, made
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_one_encoded_as_a_prompt_is_warned_of_once(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        harmless, edited = (tiny_pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (CAT, GUN))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw(tiny_pipe, CAT, negative_prompt_embeds=harmless)
        with pytest.warns(UserWarning, match="excise.encode\\(..., negative=True\\)"):
            draw(tiny_pipe, CAT, negative_prompt_embeds=edited)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw(tiny_pipe, CAT, negative_prompt_embeds=edited)


def test_a_second_negative_prompt_that_alone_says_the_concept() -> None:
    """SDXL's second encoder spares it, and the first has nothing to spare. A row concatenates both."""
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    pipe, concept = tiny.build("sdxl"), from_templates("gun", ("gun",), 12)
    saes = {s: planted(pipe, s, concept) for s in (default_site(pipe, c) for c in to_cover(pipe))}
    given = {"negative_prompt": "dull", "negative_prompt_2": GUN, "guidance_scale": 3.0}
    other = {"negative_prompt": GUN, "negative_prompt_2": "dull", "guidance_scale": 3.0}
    plain = [tiny.call("sdxl", pipe, CAT, **how) for how in (given, other)]
    sibling = type(pipe).from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    with fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).attach(pipe) as attachment:
        for own in (pipe, sibling):
            drawn = [tiny.call("sdxl", own, CAT, **how) for how in (given, other)]
            assert all(torch.equal(a, b) for a, b in zip(drawn, plain, strict=True))
        assert attachment.status()["bypasses"] == 0
        with torch.no_grad():
            made = pipe.encode_prompt(CAT, device="cpu", negative_prompt="dull", negative_prompt_2=GUN)
        with pytest.raises(EraserDidNotFire):
            tiny.call("sdxl", pipe, None, prompt_embeds=made[1], pooled_prompt_embeds=made[3], guidance_scale=1.0)


def test_where_it_cannot_be_told_from_a_prompt_it_is_edited_like_one() -> None:
    """Wan's denoiser runs once for each branch: guidance below 0 would generate a spared prompt."""
    if (reason := tiny.missing("wan")) is not None:
        pytest.skip(reason)
    pipe, concept = tiny.build("wan"), from_templates("gun", ("gun",), 12)
    site = default_site(pipe)
    with torch.no_grad():
        plain = pipe.encode_prompt(GUN, do_classifier_free_guidance=False)[0]
        with fit(pipe, concept, SNCEConfig(permutations=20), sae={site: planted(pipe, site, concept)}).attach(pipe):
            made = excise.encode(pipe, GUN, negative=True)[0]
            assert torch.equal(made, excise.encode(pipe, GUN)[0])
    assert not torch.equal(made, plain)


def test_where_the_denoiser_reads_the_prompt_before_it_it_is_edited_like_one() -> None:
    """SDXL's InstructPix2Pix reads the prompt and then the negative prompt twice, which is more than half the batch."""
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    from diffusers import StableDiffusionXLInstructPix2PixPipeline, UNet2DConditionModel

    text, concept = tiny.build("sdxl"), from_templates("gun", ("gun",), 6)
    sites = [default_site(text, component) for component in to_cover(text)]
    edits = tuple(SAEEdit.from_sae(planted(text, site, concept), site, [NEURON], gate="relu") for site in sites)
    config = {name: value for name, value in text.unet.config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel.from_config({**config, "in_channels": 8}).eval()
    parts = {name: part for name, part in text.components.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = StableDiffusionXLInstructPix2PixPipeline(**{**parts, "unet": unet}, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    eraser = Eraser(edits, "gun", "gun", ("gun",), made_for(pipe), canary=(GUN,))

    def edit(prompt: Any = CAT, **given: Any) -> Tensor:
        how = {"image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 1, "output_type": "latent", **given}
        with torch.no_grad():
            made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(3), guidance_scale=3.0, **how).images
        return made

    plain = [edit(negative_prompt=text) for text in ("dull", GUN)]
    with eraser.attach(pipe) as attachment:
        assert torch.equal(edit(negative_prompt="dull"), plain[0])
        assert not torch.equal(edit(negative_prompt=GUN), plain[1])
        edit([CAT, GUN], negative_prompt=[GUN, "dull"], image=torch.zeros(2, 3, 16, 16))
        made = [excise.encode(pipe, GUN, negative=negative) for negative in (True, False)]
        assert torch.equal(made[0][0], made[1][0])
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        with torch.no_grad():
            own = pipe.encode_prompt(CAT, device="cpu", negative_prompt=GUN)
        edit(None, **dict(zip(names, own, strict=True)))
        assert attachment.status()["bypasses"] == 0
        # States that the text-to-image pipeline of the same encoders spares are refused here.
        with torch.no_grad():
            spared = text.encode_prompt(CAT, device="cpu", negative_prompt=GUN)
        assert not torch.equal(spared[1], own[1])
        with pytest.raises(EraserDidNotFire):
            edit(None, **dict(zip(names, [own[0], spared[1], own[2], spared[3]], strict=True)))


def test_only_the_prompts_of_a_batch_that_say_the_concept_are_warned_of(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        both = tiny_pipe.encode_prompt(["a gun", "a rose"], "cpu", 1, False)[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*name what eraser")
            draw(tiny_pipe, CAT, negative_prompt_embeds=both[1:])
        with pytest.warns(UserWarning, match="name what eraser 'gun-test' erases"):
            draw(tiny_pipe, CAT, negative_prompt_embeds=both[:1])
