from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser, SAEEdit, made_for
from excise.erasers.guard.coverage import refuse_early_tap
from excise.errors import EraserDidNotFire, ExciseError
from excise.sites import Site, capture, resolve
from tests import tiny

GUN, CAT = "a gun on grass", "a cat on grass"


def encode(pipe: Any, prompt: str, negative: str | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        made: tuple[Tensor, Tensor] = pipe.encode_prompt(prompt, "cpu", 1, True, negative)
    return made


def draw(pipe: Any, prompt: str) -> Any:
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator, output_type="np").images


def residue(pipe: Any) -> list[str]:
    found = [n for n, m in pipe.text_encoder.named_modules() if {"forward", "_diffusers_hook"} & set(vars(m))]
    return found + (["encode_prompt"] if "encode_prompt" in vars(pipe) else [])


def test_only_the_concepts_pictures_change_and_detach_restores_all(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    before = {p: draw(tiny_pipe, p) for p in (GUN, CAT)}
    with gun_eraser.attach(tiny_pipe) as attachment:
        assert (draw(tiny_pipe, CAT) == before[CAT]).all(), "an unrelated picture keeps every bit"
        assert not (draw(tiny_pipe, GUN) == before[GUN]).all()
        assert attachment.status()["rows_edited"] > 0
    assert all((draw(tiny_pipe, p) == before[p]).all() for p in before)
    assert residue(tiny_pipe) == []
    attachment.detach()
    assert not attachment.status()["attached"]


def test_the_denoiser_reads_what_the_edit_writes(tiny_pipe: Any, gun_eraser: Eraser, tiny_site: Site) -> None:
    (features,) = capture(tiny_pipe, [tiny_site], [GUN])
    edited = gun_eraser.edits[0].apply(features.states[tiny_site], 0.7)
    with torch.no_grad():
        expected = tiny.body(tiny_pipe.text_encoder).final_layer_norm(edited)
    with gun_eraser.attach(tiny_pipe, strength=0.7):
        assert torch.equal(encode(tiny_pipe, GUN)[0], expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_hidden_state_from_the_site_on_changes(tiny_pipe: Any, gun_edit: SAEEdit, layer: int) -> None:
    """Also on a pipeline that transformers' capture hooks have warmed: the silent by-pass of plain forward hooks."""
    site = Site("text_encoder", f"encoder.layers.{layer}", 64)
    edit = replace(gun_edit, site=site, b_enc=torch.tensor([500.0]))
    eraser = Eraser((edit,), "all", "gun", (), made_for(tiny_pipe), canary=(GUN,))
    ids = torch.arange(77)[None]
    with torch.no_grad():
        plain = tiny_pipe.text_encoder(ids, output_hidden_states=True)
        with eraser.attach(tiny_pipe):
            edited = tiny_pipe.text_encoder(ids, output_hidden_states=True)
    changed = [not torch.equal(a, b) for a, b in zip(plain.hidden_states, edited.hidden_states, strict=True)]
    assert changed == [n > layer for n in range(4)]
    assert not torch.equal(plain.last_hidden_state, edited.last_hidden_state)


def test_concept_energy_left_at_padding(tiny_pipe: Any, gun_eraser: Eraser, tiny_site: Site, word_sae: Any) -> None:
    """CLIP's padding states carry the concept and the U-Net reads them, so almost nothing of it may be left there."""

    def energy() -> tuple[float, float]:
        features = next(iter(capture(tiny_pipe, [tiny_site], [GUN, "a gun", "a picture of a gun"])))
        with torch.no_grad():
            z = gun_eraser.edits[0].codes(features.states[tiny_site])[..., 0].double().square()
        padding = ~features.scored
        padding[:, 0] = False
        return float(z[padding].sum()), float(z[features.scored].sum())

    before, scored_before = energy()
    with gun_eraser.attach(tiny_pipe):
        after, scored_after = energy()
    direction, write = word_sae.W_enc[5].detach(), word_sae.W_dec[5].detach()
    assert before > scored_before > 0, "most of the concept's energy sits on padding"
    # Subtracting z W_dec changes the pre-activation by z (W_enc · W_dec), here 4 z: nothing is left.
    assert float(direction @ write) == pytest.approx(4, abs=1e-4)
    assert after <= 1e-6 * before
    assert scored_after <= 1e-6 * scored_before


@pytest.mark.parametrize("uncond", ["none", "same", "flip"])
def test_branches_of_encode_prompt(tiny_pipe: Any, gun_eraser: Eraser, uncond: Any) -> None:
    eraser = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], uncond=uncond),))
    plain, plain_negative = encode(tiny_pipe, GUN, GUN)
    assert torch.equal(plain, plain_negative)
    with eraser.attach(tiny_pipe):
        edited, negative = encode(tiny_pipe, GUN, GUN)
        direct = tiny_pipe.text_encoder(tiny_pipe.tokenizer(GUN, padding="max_length", return_tensors="pt").input_ids)
    assert not torch.equal(edited, plain)
    assert torch.equal(direct[0], edited), "outside encode_prompt a run counts as conditional"
    assert torch.equal(negative, {"none": plain, "same": edited}.get(uncond, negative))
    if uncond == "flip":
        assert not torch.equal(negative, plain)
        assert not torch.equal(negative, edited)


def test_strength_and_enabled(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    plain = encode(tiny_pipe, GUN)[0]
    with gun_eraser.attach(tiny_pipe, strength=0.5) as attachment:
        half = encode(tiny_pipe, GUN)[0]
        attachment.strength = 1
        full = encode(tiny_pipe, GUN)[0]
        attachment.strength = 0
        assert torch.equal(encode(tiny_pipe, GUN)[0], plain)
        attachment.strength, attachment.enabled = 1, False
        assert torch.equal(encode(tiny_pipe, GUN)[0], plain)
        assert not attachment.status()["active"]
        attachment.enabled = True
        assert torch.equal(encode(tiny_pipe, GUN)[0], full)
        for bad in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ExciseError, match="strength is"):
                attachment.strength = bad
    assert 0 < (half - plain).norm() < (full - plain).norm()
    with gun_eraser.attach(tiny_pipe, strength=0):
        assert torch.equal(encode(tiny_pipe, GUN)[0], plain)


def test_status_holds_no_prompt(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        encode(tiny_pipe, GUN)
        status = attachment.status()
    assert status["prompts_encoded"] == 1
    assert status["neurons"] == [[5]]
    assert status["canary_shift"] > 0
    assert "grass" not in str(status)


@pytest.mark.parametrize(
    "silent",
    [{"lam": 0.0}, {"gate": "threshold", "threshold": torch.tensor([1e9])}, {"W_dec": torch.zeros(1, 64)}],
)
def test_an_eraser_that_does_not_fire_is_not_attached(
    tiny_pipe: Any, gun_eraser: Eraser, silent: dict[str, Any]
) -> None:
    dead = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], **silent),))
    for strict in (True, False):
        with pytest.raises(EraserDidNotFire, match="did not change what the denoiser reads"):
            dead.attach(tiny_pipe, strict=strict)
    assert residue(tiny_pipe) == []


def test_a_weaker_shift_than_at_fit_time_is_refused(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        shift = attachment.shift
    with replace(gun_eraser, canary_shift=shift).attach(tiny_pipe):
        pass
    with pytest.raises(EraserDidNotFire):
        replace(gun_eraser, canary_shift=3 * shift).attach(tiny_pipe)


def test_states_that_are_not_numbers_are_not_rendered(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe, strict=False):
        tiny.body(tiny_pipe.text_encoder).encoder.layers[0].mlp.fc2.bias.data[0] = float("nan")
        with pytest.raises(ExciseError, match="not finite"):
            encode(tiny_pipe, GUN)


def test_another_model_or_tokenizer_is_refused(
    build_pipe: Callable[..., Any], tiny_pipe: Any, gun_eraser: Eraser
) -> None:
    other = build_pipe(seed=1)
    with pytest.raises(ExciseError, match="text_encoder's weights differ"):
        gun_eraser.attach(other)
    assert residue(other) == []
    strange = replace(gun_eraser, made_for={**gun_eraser.made_for, "tokenizers": {"text_encoder": "0"}})
    with pytest.raises(ExciseError, match="tokenizer differs"):
        strange.attach(tiny_pipe)
    with pytest.warns(UserWarning, match="made for another pipeline"), strange.attach(tiny_pipe, strict=False):
        pass


def test_the_same_model_in_half_precision_is_known(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        eraser = replace(gun_eraser, canary_shift=attachment.shift)
    for dtype in (torch.float16, torch.bfloat16):
        tiny_pipe.text_encoder.to(dtype)
        with warnings.catch_warnings(), eraser.attach(tiny_pipe):
            warnings.simplefilter("error")
            embeds = encode(tiny_pipe, GUN)[0]
            assert embeds.dtype == dtype
        assert not torch.equal(embeds, encode(tiny_pipe, GUN)[0])


def test_ways_round_the_edit_are_closed(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    plain = encode(tiny_pipe, GUN)[0]
    with gun_eraser.attach(tiny_pipe) as attachment:
        with pytest.raises(ExciseError, match="prompt_embeds were not encoded under"):
            tiny_pipe(prompt_embeds=plain, num_inference_steps=1, guidance_scale=1.0)
        own, negative = encode(tiny_pipe, GUN, GUN)
        tiny_pipe(prompt_embeds=own, negative_prompt_embeds=negative, num_inference_steps=1, output_type="np")
        with pytest.raises(ExciseError, match="were not encoded under"):
            tiny_pipe(prompt_embeds=negative, negative_prompt_embeds=own, num_inference_steps=1)
        own.copy_(plain)
        with pytest.raises(ExciseError, match="were not encoded under"):
            tiny_pipe(prompt_embeds=own, num_inference_steps=1)
        with pytest.raises(ExciseError, match="clip_skip=1 reads the text encoder before"):
            tiny_pipe(GUN, clip_skip=1, num_inference_steps=1)
        with pytest.raises(ExciseError, match="clip_skip='1' is not a whole number"):
            tiny_pipe(GUN, clip_skip="1", num_inference_steps=1)
        tiny_pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        with pytest.raises(ExciseError, match="IP-Adapter"):
            encode(tiny_pipe, GUN)
        attachment.enabled = False
        encode(tiny_pipe, GUN)
    with gun_eraser.attach(tiny_pipe, strict=False):
        encode(tiny_pipe, GUN)


def test_clip_skip_is_fine_where_the_site_lies_before_the_tap(tiny_pipe: Any, gun_edit: SAEEdit) -> None:
    edit = replace(gun_edit, site=Site("text_encoder", "encoder.layers.1", 64), b_enc=torch.tensor([500.0]))
    with Eraser((edit,), "gun", "gun", (), made_for(tiny_pipe), canary=(GUN,)).attach(tiny_pipe):
        refuse_early_tap(tiny_pipe, edit, 1, "gun")
        with pytest.raises(ExciseError, match="clip_skip=2"):
            refuse_early_tap(tiny_pipe, edit, 2, "gun")
        refuse_early_tap(tiny_pipe, edit, np.int64(1), "gun")


def test_clip_skip_goes_with_embeddings_for_the_other_branch(tiny_pipe: Any, gun_edit: SAEEdit) -> None:
    encoder = tiny_pipe.text_encoder
    if not hasattr(encoder, "text_model"):  # where the pipeline asks for the norm, and an older transformers has it
        norm = tiny.body(encoder).final_layer_norm
        object.__setattr__(encoder, "text_model", SimpleNamespace(final_layer_norm=norm))
    edit = replace(gun_edit, site=Site("text_encoder", "encoder.layers.1", 64), b_enc=torch.tensor([500.0]))
    how = {"clip_skip": 1, "num_inference_steps": 1, "output_type": "latent", "guidance_scale": 3.0}
    eraser = Eraser((edit,), "gun", "gun", (), made_for(tiny_pipe), canary=(GUN,))
    with torch.no_grad():
        foreign = tiny_pipe.encode_prompt("a red cat", "cpu", 1, False)[0]
    with eraser.attach(tiny_pipe) as attachment, torch.no_grad():
        prompt, negative = (tiny_pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a cat", "dull"))
        tiny_pipe("a cat on grass", negative_prompt_embeds=negative, **how)
        tiny_pipe(prompt_embeds=prompt, negative_prompt="grey", **how)
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire):
            tiny_pipe("a cat on sand", negative_prompt_embeds=foreign, **how)


def test_changes_after_attaching_are_noticed(
    build_pipe: Callable[..., Any], tiny_pipe: Any, gun_eraser: Eraser
) -> None:
    with gun_eraser.attach(tiny_pipe):
        tiny_pipe.text_encoder.to(torch.float64).to(torch.float32)
        encode(tiny_pipe, GUN)
        with torch.no_grad():
            tiny_pipe.text_encoder.get_input_embeddings().weight.mul_(1.0)
        encode(tiny_pipe, GUN)
        with torch.no_grad():
            tiny_pipe.text_encoder.get_input_embeddings().weight.mul_(1.01)
        with pytest.raises(ExciseError, match="text encoder changed after"):
            encode(tiny_pipe, GUN)
    tiny_pipe.text_encoder = build_pipe().text_encoder
    with gun_eraser.attach(tiny_pipe):
        tiny_pipe.text_encoder = build_pipe().text_encoder
        with pytest.raises(ExciseError, match="was replaced after"):
            encode(tiny_pipe, GUN)
    assert "encode_prompt" not in vars(tiny_pipe)


def test_a_hook_torn_off_is_noticed(tiny_pipe: Any, gun_eraser: Eraser, tiny_site: Site) -> None:
    with gun_eraser.attach(tiny_pipe):
        module = resolve(tiny_pipe, tiny_site)
        del module.forward
        with pytest.raises(EraserDidNotFire, match="saw no text-encoder run at text_encoder/encoder"):
            encode(tiny_pipe, GUN)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, GUN)


def test_a_second_text_encoder_must_be_covered(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    components = {**tiny_pipe.components, "text_encoder_2": tiny_pipe.text_encoder}
    both = SimpleNamespace(components=components, tokenizer=tiny_pipe.tokenizer, encode_prompt=tiny_pipe.encode_prompt)
    for strict in (True, False):
        with pytest.raises(ExciseError, match="also reads text_encoder_2"):
            gun_eraser.attach(both, strict=strict)
    with pytest.raises(ExciseError, match="proved through its encode_prompt"):
        gun_eraser.attach(SimpleNamespace(components=tiny_pipe.components, tokenizer=tiny_pipe.tokenizer))


def test_a_pipeline_of_the_same_components_stays_edited(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    with gun_eraser.attach(tiny_pipe):
        sibling = StableDiffusionImg2ImgPipeline(**tiny_pipe.components, requires_safety_checker=False)
        assert torch.equal(encode(sibling, GUN)[0], encode(tiny_pipe, GUN)[0])
        with pytest.raises(ExciseError, match="attached to this pipeline already"):
            gun_eraser.attach(sibling)


def test_a_pipeline_that_encodes_the_unconditional_prompt_first_is_refused(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """There the branches would be mistaken for one another and the prompt would go unedited."""

    def encode_prompt(prompt: str, device: str, num_images_per_prompt: int, do_classifier_free_guidance: bool) -> Any:
        unconditional = tiny_pipe.text_encoder(ids[:1])[0]
        return tiny_pipe.text_encoder(ids[1:])[0], unconditional

    ids = tiny_pipe.tokenizer(["", "a gun"], padding="max_length", return_tensors="pt").input_ids
    odd = SimpleNamespace(
        components=tiny_pipe.components,
        tokenizer=tiny_pipe.tokenizer,
        encode_prompt=encode_prompt,
    )
    with pytest.raises(EraserDidNotFire):
        gun_eraser.attach(odd)
    assert residue(tiny_pipe) == []
    assert odd.encode_prompt is encode_prompt


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_erasers_come_off_in_any_order(tiny_pipe: Any, gun_eraser: Eraser, order: tuple[int, int]) -> None:
    plain = encode(tiny_pipe, GUN)[0]
    # The second one of the same concept finds its canary silenced by the first unless that is muted meanwhile.
    other = replace(gun_eraser, name="again", edits=(replace(gun_eraser.edits[0], lam=0.9),))
    both = [gun_eraser.attach(tiny_pipe), other.attach(tiny_pipe)]
    with pytest.raises(ExciseError, match="attached to this pipeline already"):
        gun_eraser.attach(tiny_pipe)
    both[order[0]].detach()
    assert not torch.equal(encode(tiny_pipe, GUN)[0], plain)
    both[order[1]].detach()
    assert torch.equal(encode(tiny_pipe, GUN)[0], plain)
    assert residue(tiny_pipe) == []


def test_an_error_inside_the_block_detaches(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with pytest.raises(KeyboardInterrupt), gun_eraser.attach(tiny_pipe):
        raise KeyboardInterrupt
    assert residue(tiny_pipe) == []


def test_topk_needs_its_own_sae(tiny_pipe: Any, gun_eraser: Eraser, word_sae: Any) -> None:
    exact = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], gate="topk"),))
    with pytest.raises(ExciseError, match="needs the whole SAE"):
        exact.attach(tiny_pipe)
    with exact.attach(tiny_pipe, sae=word_sae):
        edited = encode(tiny_pipe, GUN)[0]
        with torch.no_grad():
            word_sae.W_enc.zero_()
        assert torch.equal(encode(tiny_pipe, GUN)[0], edited), "the attachment keeps its own copy"
    with pytest.raises(ExciseError, match="was made from another SAE"):
        exact.attach(tiny_pipe, sae=word_sae)


def test_the_concepts_codes_change_every_prompt(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    codes = torch.zeros(77, 1)
    codes[2:] = 3.0
    edit = replace(gun_eraser.edits[0], source="concept", concept_codes=codes)
    plain = encode(tiny_pipe, CAT)[0]
    with replace(gun_eraser, edits=(edit,)).attach(tiny_pipe):
        edited = encode(tiny_pipe, CAT)[0]
    assert torch.equal(edited[:, :2], plain[:, :2])
    assert (edited[:, 2:] != plain[:, 2:]).any(-1).all()


def test_the_untouched_baseline_attaches_without_a_trace(tiny_pipe: Any) -> None:
    from excise.concepts import Concept
    from excise.methods import method

    none = method("none")
    eraser = none.fit(tiny_pipe, Concept("gun", ("gun",)), none.Config())
    plain = encode(tiny_pipe, GUN)[0]
    with eraser.attach(tiny_pipe) as attachment:
        assert torch.equal(encode(tiny_pipe, GUN)[0], plain)
        assert not attachment.active
    assert residue(tiny_pipe) == []
    with pytest.raises(ExciseError, match="nothing to save"):
        eraser.save("nowhere")
