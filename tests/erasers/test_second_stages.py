"""Second stages of diffusers' own classes: an upscaler, refiners and a prior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire, ExciseError
from excise.sites import default_site, to_cover
from tests import tiny
from tests.planted import NEURON, planted

GUN, CAT = "a gun on grass", "a cat on grass"
NAMES = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"


def drawn(pipe: Any, prompt: Any = None, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False, **options}
    with torch.no_grad():
        made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(3), **how)[0]
    return made


def like(unet: Any, **changed: Any) -> Any:
    """Another U-Net of that configuration, with these changes."""
    torch.manual_seed(1)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    return type(unet).from_config({**config, **changed}).eval()


def upscaler_of(pipe: Any) -> Any:
    """An upscaler without text encoders that draws from a pipeline's embeddings."""
    from diffusers import DDPMScheduler, StableDiffusionUpscalePipeline

    return StableDiffusionUpscalePipeline(
        vae=pipe.vae,
        text_encoder=None,
        tokenizer=None,
        unet=like(pipe.unet, in_channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(),
        scheduler=pipe.scheduler,
    )


def test_both_stages_are_replaced_and_stay_on(tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path) -> None:
    """The pipeline that encodes has the switch, so replacing the second stage's eraser must not take it back."""
    upscaler = upscaler_of(tiny_pipe)
    for name, lam in (("old", 2.0), ("new", 3.0)):
        (edit,) = gun_eraser.edits
        assert isinstance(edit, SAEEdit)
        replace(gun_eraser, name=name, edits=(replace(edit, lam=lam),)).save(tmp_path / name)
    for pipe in (tiny_pipe, upscaler):
        excise.load_eraser(pipe, tmp_path / "old", "gun")
    excise.disable_erasers(tiny_pipe)
    excise.replace_eraser(tiny_pipe, "gun", tmp_path / "new")
    assert excise.get_active_erasers(tiny_pipe) == []
    excise.enable_erasers(tiny_pipe)
    excise.replace_eraser(upscaler, "gun", tmp_path / "new")
    assert excise.get_active_erasers(tiny_pipe) == ["gun"]


def test_an_upscaler_that_only_draws(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    eraser = replace(gun_eraser, name="upscaled")  # another test's attachment would encode for `gun_eraser`
    upscaler = upscaler_of(tiny_pipe)
    sibling = type(upscaler)(**upscaler.components)
    small = {"image": torch.zeros(1, 3, 8, 8), "guidance_scale": 1.0}

    def states(prompt: str) -> Tensor:
        with torch.no_grad():
            made: Tensor = tiny_pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        return made

    foreign = states(GUN)
    gun, cat = (drawn(upscaler, prompt_embeds=states(prompt), **small) for prompt in (GUN, CAT))
    with pytest.raises(ExciseError, match="first attach the eraser to the pipeline that encodes the prompts"):
        eraser.attach(upscaler)
    with eraser.attach(tiny_pipe) as encoding:
        assert not torch.equal(drawn(upscaler, prompt_embeds=states(GUN), **small), gun)
        with eraser.attach(upscaler):
            assert torch.equal(drawn(upscaler, prompt_embeds=states(CAT), **small), cat)
            drawn(upscaler, prompt_embeds=states(GUN), **small)
            for pipe in (upscaler, sibling):
                with pytest.raises(EraserDidNotFire):
                    drawn(pipe, prompt_embeds=foreign, **small)
            encoding.detach()
            with pytest.raises(EraserDidNotFire):
                drawn(upscaler, prompt_embeds=states(GUN), **small)


@pytest.fixture(scope="module")
def sdxl() -> tuple[Any, Eraser]:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    pipe, concept = tiny.build("sdxl"), from_templates("gun", ("gun",), 6)
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    edits = tuple(SAEEdit.from_sae(planted(pipe, site, concept), site, [NEURON], gate="relu") for site in sites)
    return pipe, Eraser(edits, "refined", "gun", ("gun",), made_for(pipe), canary=(GUN,))


def refiner(base: Any, *without: str) -> Any:
    """SDXL's refiner: a U-Net of its own, which reads the second encoder alone."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    width = base.text_encoder_2.config.hidden_size
    pooled = base.unet.config.projection_class_embeddings_input_dim - 8
    changed = {"cross_attention_dim": width, "projection_class_embeddings_input_dim": pooled}
    unet = like(base.unet, **changed)
    parts = {**base.components, "unet": unet, **dict.fromkeys(("text_encoder", "tokenizer", *without))}
    return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)


def test_a_refiner_that_only_draws(sdxl: tuple[Any, Eraser]) -> None:
    base, eraser = sdxl
    shared, second = refiner(base), refiner(base, "text_encoder_2", "tokenizer_2")
    noisy = {"image": torch.zeros(1, 4, 8, 8), "strength": 1.0, "guidance_scale": 3.0}

    def encoded(prompt: str) -> dict[str, Any]:
        with torch.no_grad():
            return dict(zip(NAMES, shared.encode_prompt(prompt, device="cpu"), strict=True))

    foreign, cat = encoded(GUN), drawn(second, **encoded(CAT), **noisy)
    with pytest.raises(ExciseError, match="first attach the eraser to the pipeline that encodes the prompts"):
        eraser.attach(second)
    with eraser.attach(base), eraser.attach(second) as attachment:
        assert torch.equal(drawn(second, **encoded(CAT), **noisy), cat)
        drawn(second, **encoded(GUN), **noisy)
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire):
            drawn(second, **foreign, **noisy)


def test_a_refiner_that_shares_an_encoder(sdxl: tuple[Any, Eraser]) -> None:
    """Its prompts are edited. Its own U-Net is guarded only in the test above, which passes it the states."""
    base, eraser = sdxl
    shared = refiner(base)
    noisy = {"image": torch.zeros(1, 4, 8, 8), "strength": 1.0, "guidance_scale": 3.0}
    before = {prompt: drawn(shared, prompt, **noisy) for prompt in (GUN, CAT)}
    with eraser.attach(base):
        assert list(excise.list_erasers(shared)) == ["refined"]
        assert not torch.equal(drawn(shared, GUN, **noisy), before[GUN])
        assert torch.equal(drawn(shared, CAT, **noisy), before[CAT])
        with pytest.raises(ExciseError, match="attached to this pipeline already"):
            eraser.attach(shared)


def test_a_prior(sdxl: tuple[Any, Eraser]) -> None:
    """Stable Cascade's first stage, which makes a picture's states of a prompt."""
    from diffusers import DDPMWuerstchenScheduler, StableCascadePriorPipeline, StableCascadeUNet

    base, both = sdxl
    encoder = base.text_encoder_2
    prior = StableCascadeUNet(
        conditioning_dim=32,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=16,
        clip_text_in_channels=encoder.config.hidden_size,
        clip_text_pooled_in_channels=encoder.config.projection_dim,
    ).eval()
    pipe = StableCascadePriorPipeline(base.tokenizer_2, encoder, prior, DDPMWuerstchenScheduler())
    sibling = StableCascadePriorPipeline(**pipe.components)
    edit = both.edits[1]
    own = SAEEdit(**{**vars(edit), "site": type(edit.site)("text_encoder", edit.site.path, edit.site.width)})
    eraser = Eraser((own,), "gun", "gun", ("gun",), made_for(pipe), canary=(GUN,))
    names = "prompt_embeds", "prompt_embeds_pooled", "negative_prompt_embeds", "negative_prompt_embeds_pooled"
    small = {"height": 64, "width": 64, "guidance_scale": 3.0}

    def encoded(prompt: str) -> dict[str, Any]:
        with torch.no_grad():
            made = pipe.encode_prompt("cpu", 1, 1, True, prompt)
        return dict(zip(names, made, strict=True))

    foreign = encoded(GUN)
    before = {prompt: drawn(pipe, prompt, **small) for prompt in (GUN, CAT)}
    with eraser.attach(pipe) as attachment:
        for each in (pipe, sibling):
            assert not torch.equal(drawn(each, GUN, **small), before[GUN])
            assert torch.equal(drawn(each, CAT, **small), before[CAT])
            drawn(each, **encoded(GUN), **small)
        assert attachment.status()["bypasses"] == 0
        for each in (pipe, sibling):
            with pytest.raises(EraserDidNotFire):
                drawn(each, **foreign, **small)
