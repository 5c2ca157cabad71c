"""Bypasses of an eraser, one test each. Each is refused, at attach time or before anything is rendered."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import excise
from excise.concepts import Concept, from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sites import Site, default_site, to_cover
from tests import tiny
from tests.planted import planted

GUN = "a gun on grass"


def draw(pipe: Any, prompt: Any = GUN, **options: Any) -> Any:
    how = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images


def states(pipe: Any, prompt: str = GUN) -> Tensor:
    with torch.no_grad():
        made: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


@pytest.fixture
def sibling(tiny_pipe: Any) -> Any:
    """Another pipeline of the same components, without an attached eraser."""
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def refused(tiny_pipe: Any, gun_eraser: Eraser) -> Callable[..., None]:
    """`refused(change, match)`: after `change(pipe)` under the eraser a picture is refused."""

    def check(
        change: Callable[[Any], Any], match: str, kind: type[Exception] = EraserDidNotFire, **options: Any
    ) -> None:
        with gun_eraser.attach(tiny_pipe):
            draw(tiny_pipe)
            change(tiny_pipe)
            with pytest.raises(kind, match=match):
                draw(tiny_pipe, **options)

    return check


def test_prompt_embeddings_from_elsewhere(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="prompt_embeds were not encoded under"):
        draw(tiny_pipe, None, prompt_embeds=foreign, negative_prompt_embeds=foreign)


def test_prompt_embeddings_from_elsewhere_through_a_pipeline_of_the_same_components(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser
) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
        draw(sibling, None, prompt_embeds=foreign, negative_prompt_embeds=foreign)


def test_the_denoiser_called_by_hand(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire), torch.no_grad():
        tiny_pipe.unet(torch.zeros(1, 4, 8, 8), 10, encoder_hidden_states=foreign)


def test_embeddings_written_to_after_they_were_encoded(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        own = states(tiny_pipe)
        own.mul_(1.1)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=own, negative_prompt_embeds=own)


def test_embeddings_encoded_before_the_eraser_was_enabled(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        attachment.enabled = False
        plain = states(tiny_pipe)
        attachment.enabled = True
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=plain, negative_prompt_embeds=plain)


def test_embeddings_of_the_unconditional_branch_given_as_a_prompt(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """The unconditional prompt is not edited by default, so its states must not be accepted as a prompt's."""
    with gun_eraser.attach(tiny_pipe):
        with torch.no_grad():
            negative = tiny_pipe.encode_prompt("a cat", "cpu", 1, True, GUN)[1]
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=negative, negative_prompt_embeds=negative)


def test_the_unconditional_branchs_embeddings_through_a_pipeline_of_the_same_components(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser
) -> None:
    """They are accepted in a batch with a prompt, and refused as the prompt of a picture."""
    with gun_eraser.attach(tiny_pipe):
        draw(tiny_pipe, "a cat", negative_prompt=GUN)
        with torch.no_grad():
            own, negative = tiny_pipe.encode_prompt("a cat", "cpu", 1, True, GUN)
        draw(sibling, None, prompt_embeds=own, negative_prompt_embeds=negative)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            draw(sibling, None, prompt_embeds=negative, guidance_scale=1.0)


def test_negative_embeddings_from_elsewhere(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    """Nor do they become known by having been given once."""
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe):
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, "a cat", negative_prompt_embeds=foreign)
        with pytest.raises(EraserDidNotFire):
            draw(sibling, None, prompt_embeds=foreign, guidance_scale=1.0)


def _data(own: Tensor, foreign: Tensor) -> None:
    own.data.copy_(foreign)


def _numpy(own: Tensor, foreign: Tensor) -> None:
    own.numpy()[:] = foreign.numpy()


@pytest.mark.parametrize("write", [_data, _numpy])
def test_embeddings_written_to_between_two_steps(
    tiny_pipe: Any, gun_eraser: Eraser, write: Callable[[Tensor, Tensor], None]
) -> None:
    """Neither way leaves a trace in the tensor."""
    foreign = states(tiny_pipe)

    def step_end(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        write(tensors["prompt_embeds"], foreign)
        return {}

    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
        draw(
            tiny_pipe,
            "a cat",
            num_inference_steps=3,
            guidance_scale=1.0,
            callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_an_eraser_switched_on_while_a_prompt_is_in_the_encoder(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        attachment.enabled = False
        switch = tiny_pipe.text_encoder.register_forward_hook(lambda *run: setattr(attachment, "enabled", True))
        plain = states(tiny_pipe)
        switch.remove()
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=plain, negative_prompt_embeds=plain)


def test_an_offloading_renewed_after_the_eraser_was_attached(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    """accelerate restores the `forward` that it found, as diffusers has it do after every picture."""
    import accelerate
    from accelerate.hooks import remove_hook_from_module

    def renew() -> None:
        for part in (tiny_pipe.text_encoder, tiny_pipe.unet):
            remove_hook_from_module(part, recurse=True)
            accelerate.cpu_offload_with_hook(part, torch.device("cpu"))

    foreign = states(tiny_pipe)
    renew()
    with gun_eraser.attach(tiny_pipe):
        renew()
        draw(tiny_pipe)
        draw(sibling)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            draw(sibling, None, prompt_embeds=foreign, negative_prompt_embeds=foreign)


def test_another_text_encoder(refused: Any, build_pipe: Any) -> None:
    refused(lambda pipe: setattr(pipe, "text_encoder", build_pipe(1).text_encoder), "was replaced", ExciseError)


def test_another_layer(refused: Any) -> None:
    def change(pipe: Any) -> None:
        layers = tiny.body(pipe.text_encoder).encoder.layers
        layers[2] = copy.copy(layers[1])

    refused(change, "was replaced", ExciseError)


def test_weights_written_to(refused: Any) -> None:
    def change(pipe: Any) -> None:
        with torch.no_grad():
            tiny.body(pipe.text_encoder).encoder.layers[0].mlp.fc1.weight.add_(1e-3)

    refused(change, "the text encoder changed")


def test_weights_written_to_behind_the_version_counter(refused: Any) -> None:
    def change(pipe: Any) -> None:
        tiny.body(pipe.text_encoder).encoder.layers[2].mlp.fc2.weight.data.mul_(1.01)

    refused(change, "the text encoder changed")


def test_weights_written_to_and_seen_through_another_pipeline(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        draw(sibling)
        tiny.body(tiny_pipe.text_encoder).encoder.layers[0].mlp.fc1.weight.data.mul_(1.01)
        with pytest.raises(EraserDidNotFire, match="the text encoder changed"):
            draw(sibling)


def test_a_lora_loaded_later(tiny_pipe: Any, gun_eraser: Eraser, gun_edit: SAEEdit) -> None:
    """The advice in the message works too."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    with gun_eraser.attach(tiny_pipe):
        drawn = draw(tiny_pipe)
        tiny_pipe.text_encoder.add_adapter(config)
        with pytest.raises(EraserDidNotFire, match=r"the text encoder changed.*unload_lora_weights.*or fit an eraser"):
            draw(tiny_pipe)
        tiny_pipe.unload_lora_weights()
        assert torch.equal(draw(tiny_pipe), drawn)
    tiny_pipe.text_encoder.add_adapter(config)
    with pytest.raises(ExciseError, match="weights differ"):  # so that attaching it again does not help
        gun_eraser.attach(tiny_pipe)
    with Eraser((gun_edit,), "with LoRA", "gun", ("gun",), made_for(tiny_pipe), canary=(GUN,)).attach(tiny_pipe):
        draw(tiny_pipe)


@pytest.mark.parametrize("how", ["scaled", "switched"])
def test_a_lora_that_was_there_set_otherwise(tiny_pipe: Any, gun_edit: SAEEdit, how: str) -> None:
    """One that the eraser was made with: its weights stay as they are. What the refusals say to do works."""
    peft = pytest.importorskip("peft")
    layers = {"layers_pattern": "layers", "layers_to_transform": [0], "target_modules": ["fc2"]}
    tiny_pipe.text_encoder.add_adapter(peft.LoraConfig(init_lora_weights=False, r=4, **layers))
    eraser = Eraser((gun_edit,), "with LoRA", "gun", ("gun",), made_for(tiny_pipe), canary=(GUN,))
    with eraser.attach(tiny_pipe):
        draw(tiny_pipe)
        if how == "scaled":
            with pytest.raises(EraserDidNotFire, match=r"was scaled for this prompt only.*generate without it, or set"):
                draw(tiny_pipe, cross_attention_kwargs={"scale": 3.0})
            draw(tiny_pipe)
            for module in tiny_pipe.text_encoder.modules():  # as pipe.set_adapters does
                if hasattr(module, "set_scale"):
                    module.set_scale("default", 3.0)
        else:
            tiny_pipe.text_encoder.disable_adapters()
        with pytest.raises(EraserDidNotFire, match=r"switched or scaled after.*or attach the eraser again"):
            draw(tiny_pipe)
        if how == "switched":
            tiny_pipe.text_encoder.enable_adapters()
            draw(tiny_pipe)
            tiny_pipe.text_encoder.disable_adapters()
    with eraser.attach(tiny_pipe):
        draw(tiny_pipe)


def test_a_textual_inversion_loaded_later(tiny_pipe: Any, refused: Any) -> None:
    tiny_pipe.tokenizer = copy.deepcopy(tiny_pipe.tokenizer)  # the tests share one
    word = {"<gun-like>": torch.randn(64)}
    refused(
        lambda pipe: pipe.load_textual_inversion(word, token="<gun-like>"),
        r"the text encoder changed.*unload_textual_inversion",
    )


def test_a_textual_inversion_that_was_there(tiny_pipe: Any, gun_eraser: Eraser, gun_edit: SAEEdit) -> None:
    """What the refusals say to do works, before and after attaching."""
    tiny_pipe.tokenizer = copy.deepcopy(tiny_pipe.tokenizer)
    word = {"<relic>": torch.randn(64)}
    tiny_pipe.load_textual_inversion(word, token="<relic>")
    with pytest.raises(ExciseError, match=r"tokenizer differs\); unload a textual inversion \(pipe.unload_textual_inv"):
        gun_eraser.attach(tiny_pipe)
    with Eraser((gun_edit,), "with it", "gun", ("gun",), made_for(tiny_pipe), canary=(GUN,)).attach(tiny_pipe):
        draw(tiny_pipe)
    tiny_pipe.unload_textual_inversion()
    with gun_eraser.attach(tiny_pipe):
        drawn = draw(tiny_pipe)
        tiny_pipe.load_textual_inversion(word, token="<relic>")
        with pytest.raises(EraserDidNotFire, match="the text encoder changed"):
            draw(tiny_pipe)
        tiny_pipe.unload_textual_inversion()
        assert torch.equal(draw(tiny_pipe), drawn)


def test_a_word_added_to_the_tokenizer(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    own = copy.deepcopy(tiny_pipe.tokenizer)
    tiny_pipe.tokenizer = own
    with gun_eraser.attach(tiny_pipe):
        own.add_tokens(["sks"])
        with pytest.raises(EraserDidNotFire, match="the text encoder changed"):
            draw(tiny_pipe)


def test_another_tokenizer(refused: Any) -> None:
    def change(pipe: Any) -> None:
        pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
        pipe.tokenizer.add_tokens(["sks"])

    refused(change, "the text encoder changed")


def test_a_denoiser_that_nobody_watches(refused: Any, build_pipe: Any) -> None:
    refused(lambda pipe: setattr(pipe, "unet", build_pipe(1).unet), "the denoiser was replaced")


def test_an_ip_adapter(refused: Any) -> None:
    refused(lambda pipe: pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj"), "an IP-Adapter feeds")


def test_a_hook_torn_off(refused: Any) -> None:
    def change(pipe: Any) -> None:
        del tiny.body(pipe.text_encoder).encoder.layers[2].forward

    refused(change, "saw no text-encoder run")


def test_encode_prompt_overwritten(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe):
        tiny_pipe.encode_prompt = lambda *args, **kwargs: (foreign, foreign)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            draw(tiny_pipe)


def test_a_remote_text_encoder(tiny_pipe: Any, build_pipe: Any, gun_eraser: Eraser) -> None:
    """`forward` asks another process: here another encoder of the same weights, which no edit is in."""
    remote = build_pipe().text_encoder
    with gun_eraser.attach(tiny_pipe):
        tiny_pipe.text_encoder.forward = remote.forward
        with pytest.raises(EraserDidNotFire, match="the text encoder's code changed"):
            draw(tiny_pipe)


def test_no_text_encoder_but_embeddings(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe):
        tiny_pipe.text_encoder = None
        with pytest.raises(ExciseError, match="no text encoder"):
            draw(tiny_pipe, None, prompt_embeds=foreign, negative_prompt_embeds=foreign)


def test_a_negative_prompts_embeddings_as_a_prompt(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        negative = excise.encode(tiny_pipe, GUN, negative=True)[0]
        for pipe in (tiny_pipe, sibling):
            draw(pipe, "a cat", negative_prompt_embeds=negative)
            with pytest.raises(EraserDidNotFire):
                draw(pipe, None, prompt_embeds=negative, negative_prompt_embeds=negative)
            with pytest.raises(EraserDidNotFire):
                draw(pipe, None, prompt_embeds=negative, guidance_scale=1.0)


def test_a_negative_prompts_embeddings_in_the_prompts_place(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    """They are refused as a prompt also in a batch with a real prompt or zeros in another place."""
    with gun_eraser.attach(tiny_pipe):
        negative, own = excise.encode(tiny_pipe, GUN, negative=True)[0], states(tiny_pipe, "a cat")
        draw(sibling, None, prompt_embeds=own, negative_prompt_embeds=negative)
        draw(sibling, None, prompt_embeds=own, negative_prompt_embeds=torch.zeros_like(own))
        refused: list[dict[str, Any]] = [
            {"prompt_embeds": negative, "negative_prompt_embeds": own},
            {"prompt_embeds": negative, "negative_prompt_embeds": torch.zeros_like(own)},
            {"prompt_embeds": torch.cat([own, negative]), "guidance_scale": 1.0},
            {"prompt_embeds": torch.cat([negative, torch.zeros_like(own)]), "guidance_scale": 1.0},
        ]
        for given in refused:
            with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
                draw(sibling, None, **given)


def test_an_encoder_put_in_later() -> None:
    pipe, concept, saes = several("sd3")
    eraser = fit(pipe, concept, SNCEConfig(permutations=20), sae=saes)
    t5, tokenizer = pipe.text_encoder_3, pipe.tokenizer_3
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    with eraser.attach(pipe):
        tiny.call("sd3", pipe, GUN)
        pipe.text_encoder_3, pipe.tokenizer_3 = t5, tokenizer
        with pytest.raises(ExciseError, match="text_encoder_3 was added after"):
            tiny.call("sd3", pipe, GUN)


def test_clip_skip_to_before_the_site(refused: Any) -> None:
    refused(lambda pipe: None, "clip_skip=1 reads the text encoder before", ExciseError, clip_skip=1)


def test_a_negative_clip_skip(refused: Any) -> None:
    """It counts from the first layer."""
    refused(lambda pipe: None, "clip_skip=-2 counts from the first layer", ExciseError, clip_skip=-2)


def test_weights_on_words_put_on_elsewhere(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """States changed by a prompt weighting are unknown, unless they are made through `excise.encode`."""
    with gun_eraser.attach(tiny_pipe):
        heavier = states(tiny_pipe) * 1.3
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=heavier, negative_prompt_embeds=heavier)


def test_excise_encode_refuses_what_no_edited_encoder_made(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="saw no text-encoder run"):
        excise.encode(tiny_pipe, lambda: foreign)


def test_excise_encode_while_another_thread_encodes(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)

    def how() -> Tensor:
        other = threading.Thread(target=states, args=(tiny_pipe, "a cat"))
        other.start()
        other.join()
        return foreign

    with gun_eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="saw no text-encoder run"):
        excise.encode(tiny_pipe, how)


def test_excise_encode_makes_no_prompt_of_a_negative_one(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    """`how` returns the prompt's states and those of a negative prompt, from which nothing was erased."""
    ways: list[tuple[Any, ...]] = [
        (sibling.encode_prompt, "a cat", "cpu", 1, True, GUN),
        (lambda: tiny_pipe.encode_prompt("a cat", "cpu", 1, True, GUN),),
    ]
    for way in ways:
        with gun_eraser.attach(tiny_pipe), torch.no_grad():
            own, negative = excise.encode(tiny_pipe, *way)
            draw(tiny_pipe, None, prompt_embeds=own, negative_prompt_embeds=negative)
            for pipe in (tiny_pipe, sibling):
                with pytest.raises(EraserDidNotFire):
                    draw(pipe, None, prompt_embeds=negative, guidance_scale=1.0)


def test_excise_encode_with_an_eraser_that_edits_every_branch(
    tiny_pipe: Any, gun_eraser: Eraser, gun_edit: SAEEdit
) -> None:
    """One eraser spares the negative prompt, another one erases from it: both share one set of known vectors."""
    same = replace(gun_eraser, name="same", edits=(replace(gun_edit, uncond="same", lam=0.01),))
    with gun_eraser.attach(tiny_pipe), same.attach(tiny_pipe, strict=False), torch.no_grad():
        ids = tiny_pipe.tokenizer(GUN, padding="max_length", return_tensors="pt").input_ids
        negative = excise.encode(tiny_pipe, lambda: 1.1 * tiny_pipe.text_encoder(ids)[0], negative=True)
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=negative, guidance_scale=1.0)


@pytest.mark.parametrize("way", ["text", "by hand", "encode_prompt"])
def test_weights_written_to_and_seen_by_excise_encode(
    tiny_pipe: Any, sibling: Any, gun_eraser: Eraser, way: str
) -> None:
    """A negative prompt on an unguarded pipeline does not bypass the eraser either."""
    ids = tiny_pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    ways: dict[str, tuple[Any, ...]] = {
        "text": ("a cat",),
        "by hand": (lambda: sibling.text_encoder(ids)[0],),
        "encode_prompt": (sibling.encode_prompt, "a cat", "cpu", 1, False),
    }
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        excise.encode(sibling, *ways[way], negative=True)
        tiny.body(tiny_pipe.text_encoder).encoder.layers[0].mlp.fc1.weight.data.mul_(3)
        with pytest.raises(EraserDidNotFire, match="the text encoder changed"):
            excise.encode(sibling, *ways[way], negative=True)


def test_a_call_that_broke_off_between_the_branches(tiny_pipe: Any, sibling: Any, gun_eraser: Eraser) -> None:
    """The encoder's next run is not for a negative prompt."""
    encoder = tiny_pipe.text_encoder
    ids = tiny_pipe.tokenizer(GUN, padding="max_length", return_tensors="pt").input_ids

    def by_parts() -> Tensor:
        """The encoder's body by its parts: nothing of the encoder itself is called."""
        body = tiny.body(encoder)
        mask = torch.full((1, 1, 77, 77), float("-inf")).triu(1)
        made = body.encoder(inputs_embeds=body.embeddings(input_ids=ids), attention_mask=mask, is_causal=True)
        states: Tensor = body.final_layer_norm(made[0])
        return states

    with torch.no_grad():
        plain = by_parts()
        with gun_eraser.attach(tiny_pipe):
            with pytest.raises(TypeError, match="should be the same type"):
                sibling.encode_prompt("a cat", "cpu", 1, True, ["a", "b"])
            assert not torch.equal(excise.encode(tiny_pipe, by_parts), plain)


def test_a_canary_that_does_not_move(tiny_pipe: Any, gun_edit: SAEEdit) -> None:
    silent = replace(gun_edit, b_enc=torch.tensor([-1e6]))
    eraser = Eraser((silent,), "silent", "gun", (), made_for(tiny_pipe), canary=(GUN,))
    with pytest.raises(EraserDidNotFire, match="did not change what the denoiser reads"):
        eraser.attach(tiny_pipe)


def test_a_negative_strength(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with pytest.raises(ExciseError, match="would amplify"):
        gun_eraser.attach(tiny_pipe, strength=-1)
    with gun_eraser.attach(tiny_pipe) as attachment, pytest.raises(ExciseError, match="would amplify"):
        attachment.strength = -0.1


def test_another_models_text_encoder_at_attach(build_pipe: Any, gun_eraser: Eraser) -> None:
    with pytest.raises(ExciseError, match="made for another pipeline"):
        gun_eraser.attach(build_pipe(1))


def test_an_attachment_used_again_after_it_was_detached(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        pass
    with pytest.raises(ExciseError, match="was detached; attach it again"), attachment:
        pass


def test_a_misspelt_on_bypass(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment, pytest.raises(ExciseError, match="on_bypass cannot be 'Raise'"):
        attachment.on_bypass = "Raise"  # type: ignore[assignment]


def test_states_that_are_not_numbers(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe, on_bypass="allow"):
        with torch.no_grad():
            tiny_pipe.text_encoder.get_input_embeddings().weight[:, 0] = float("nan")
        with pytest.raises(ExciseError, match="not finite"):
            draw(tiny_pipe)


@pytest.mark.parametrize("way", [copy.deepcopy, pickle.dumps, lambda pipe: copy.deepcopy(pipe.text_encoder)])
def test_a_copy_of_the_pipeline(tiny_pipe: Any, gun_eraser: Eraser, way: Callable[[Any], Any]) -> None:
    with gun_eraser.attach(tiny_pipe), pytest.raises(ExciseError, match="cannot be copied or pickled; unload it first"):
        way(tiny_pipe)
    way(tiny_pipe)


def several(family: str) -> tuple[Any, Concept, dict[Site, Any]]:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe, full = tiny.build(family), from_templates("gun", ("gun",), 12)
    concept = replace(full, pairs=full.pairs[:6], controls=full.controls[:4])
    return pipe, concept, {s: planted(pipe, s, concept) for s in (default_site(pipe, c) for c in to_cover(pipe))}


def test_a_second_text_encoder_that_nobody_edits() -> None:
    pipe, concept, saes = several("sdxl")
    with pytest.raises(ExciseError, match=r"also reads text_encoder_2, which eraser .* does not edit"):
        fit(pipe, concept, SNCEConfig(permutations=20), sae=dict([next(iter(saes.items()))]))


def test_a_second_encoder_whose_edit_does_nothing() -> None:
    """Every part of what the denoiser reads must move on the canary, not only some parts."""
    pipe, concept, saes = several("sdxl")
    eraser = fit(pipe, concept, SNCEConfig(permutations=20), sae=saes)
    first, second = eraser.edits
    for edits in ((first, replace(second, W_dec=second.W_dec * 0)), (replace(first, W_dec=first.W_dec * 0), second)):
        with pytest.raises(EraserDidNotFire, match="columns"):
            replace(eraser, edits=edits).attach(pipe)


def test_an_early_tap_of_a_pipeline_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an entry in the registry it is the canary that finds the hidden states no edit has reached."""
    pipe, concept, _ = several("flux2-klein")
    site = replace(default_site(pipe), path=default_site(pipe).path.replace(".8", ".12"))
    saes = {site: planted(pipe, site, concept)}
    monkeypatch.setattr("excise.sites.families.FAMILIES", ())
    with pytest.raises(EraserDidNotFire, match="positions: shift 0"):
        fit(pipe, concept, SNCEConfig(permutations=20), sae=saes)


def test_an_early_tap_by_option() -> None:
    """FLUX.2 takes the layers it reads from its caller."""
    pipe, concept, saes = several("flux2-klein")
    with fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).attach(pipe):
        tiny.call("flux2-klein", pipe, GUN)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            tiny.call("flux2-klein", pipe, GUN, text_encoder_out_layers=(1, 2, 3))


def test_pooled_embeddings_from_elsewhere() -> None:
    pipe, concept, saes = several("sdxl")
    with torch.no_grad():
        made = pipe.encode_prompt(GUN, device="cpu", do_classifier_free_guidance=False)
    foreign_pooled = made[2]
    with fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).attach(pipe):
        with torch.no_grad():
            own = pipe.encode_prompt(GUN, device="cpu", do_classifier_free_guidance=False)
        given = {"prompt_embeds": own[0], "pooled_prompt_embeds": own[2]}
        tiny.call("sdxl", pipe, None, **given, guidance_scale=1.0)
        with pytest.raises(EraserDidNotFire, match="pooled_prompt_embeds were not encoded"):
            tiny.call("sdxl", pipe, None, **{**given, "pooled_prompt_embeds": foreign_pooled}, guidance_scale=1.0)


def test_a_negative_prompt_that_is_drawn() -> None:
    """Wan's denoiser runs once for each branch. Guidance below 0 generates the negative prompt, which is edited too."""
    pipe, concept, saes = several("wan")
    with torch.no_grad():
        plain = pipe.encode_prompt("a cat", negative_prompt=GUN, do_classifier_free_guidance=True)[1]
        with fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).attach(pipe):
            edited = pipe.encode_prompt("a cat", negative_prompt=GUN, do_classifier_free_guidance=True)[1]
    assert not torch.equal(edited, plain)


def test_the_second_denoiser_of_a_pipeline() -> None:
    pipe, concept, saes = several("wan")
    with torch.no_grad():
        foreign = pipe.encode_prompt(GUN, do_classifier_free_guidance=False)[0]
    pipe.transformer_2 = copy.deepcopy(pipe.transformer)
    with fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).attach(pipe), torch.no_grad():
        shape = (1, pipe.transformer_2.config.in_channels, 1, 4, 4)
        with pytest.raises(EraserDidNotFire, match="the denoiser was given text states"):
            pipe.transformer_2(torch.zeros(shape), torch.tensor([1]), encoder_hidden_states=foreign)


def test_a_module_under_the_eraser_is_an_ordinary_module_again(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        pass
    assert all("forward" not in vars(m) for m in tiny_pipe.text_encoder.modules() if isinstance(m, nn.Module))
