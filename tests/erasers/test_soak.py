"""Honest use for as long as anybody likes: no prompt is refused, and what is remembered of prompts stays bounded."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

import excise
from excise.concepts import Concept, from_templates
from excise.erasers import Attachment, Eraser
from excise.erasers.hooks import known_vectors
from excise.errors import EraserDidNotFire
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sites import default_site, to_cover
from tests import tiny
from tests.planted import planted

GUN, CAT = "a gun on grass", "a cat on grass"
STARTS = "a", "the", "two", "an old", "a red", "a small", "no", "some"
PLACES = "grass", "sand", "snow", "a table", "the moon", "wood"


def prompts(n: int) -> list[str]:
    """`n` different harmless ones."""
    return [f"{STARTS[i % 8]} cat on {PLACES[i // 8 % 6]} number {i}" for i in range(n)]


@pytest.fixture(scope="module")
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:6], controls=full.controls[:4])


OF_EVERY_KIND = ("sd1", "sd3", "qwen-image", "z-image", "wan")
"""One encoder, three with pooled states, a picture's language model, a list of states, a T5. The others are slow."""


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in tiny.FAMILIES]
)
def family(request: Any) -> str:
    if (reason := tiny.missing(request.param)) is not None:
        pytest.skip(reason)
    return str(request.param)


def erased(family: str, concept: Concept) -> tuple[Any, Attachment]:
    pipe = tiny.build(family)
    saes = {s: planted(pipe, s, concept) for s in (default_site(pipe, c) for c in to_cover(pipe))}
    return pipe, fit(pipe, concept, SNCEConfig(permutations=20, examine=2), sae=saes).attach(pipe)


def remembered(attachment: Attachment) -> known_vectors.KnownVectors:
    assert attachment.denoiser_guard is not None
    return attachment.denoiser_guard.known_vectors


def in_batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def test_a_large_batch_is_drawn(family: str, concept: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than all remembered prompts take."""
    pipe, attachment = erased(family, concept)
    monkeypatch.setattr(known_vectors, "REMEMBERED", 1024)
    tiny.call(family, pipe, prompts(12), num_inference_steps=1)
    assert attachment.status()["bypasses"] == 0


def test_no_prompt_is_refused_when_what_is_remembered_is_full(
    family: str, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for about two prompts: the one before last is forgotten, unless it is still held."""
    pipe, attachment = erased(family, concept)
    tiny.call(family, pipe, CAT, num_inference_steps=1)
    one = remembered(attachment).nbytes
    monkeypatch.setattr(known_vectors, "REMEMBERED", 2 * one)
    for prompt in prompts(12):
        tiny.call(family, pipe, prompt, num_inference_steps=1)
        assert remembered(attachment).nbytes <= 6 * one
    assert attachment.status()["bypasses"] == 0


@pytest.mark.slow
def test_five_thousand_prompts(family: str, concept: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    """In room for about eight batches."""
    pipe, attachment = erased(family, concept)
    first, *batches = in_batches(prompts(5000), 25)
    tiny.call(family, pipe, first, num_inference_steps=1)
    one = remembered(attachment).nbytes
    monkeypatch.setattr(known_vectors, "REMEMBERED", 8 * one)
    for batch in batches:
        tiny.call(family, pipe, batch, num_inference_steps=1)
    assert attachment.status()["bypasses"] == 0
    assert attachment.status()["prompts_encoded"] >= 5000
    assert 4 * one <= remembered(attachment).nbytes <= 12 * one


@pytest.mark.parametrize("held", [lambda t: t, lambda t: t[:, :5]], ids=["itself", "a view of it"])
def test_embeddings_that_are_kept_stay_good(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch, held: Callable[[Any], Any]
) -> None:
    """Also cast to the denoiser's dtype, repeated and joined after any number of other prompts, from other threads."""
    monkeypatch.setattr(known_vectors, "REMEMBERED", 4096)
    with gun_eraser.attach(tiny_pipe) as attachment, torch.no_grad():
        kept = [held(made) for made in tiny_pipe.encode_prompt(CAT, "cpu", 1, True, GUN)]
        gone = tiny_pipe.encode_prompt("a rose", "cpu", 1, False)[0].clone()
        gc.collect()
        for prompt in prompts(30):
            states = tiny_pipe.encode_prompt(prompt, "cpu", 1, False)[0]
            tiny_pipe.unet(torch.zeros(1, 4, 8, 8), 10, states)
        how = {"num_inference_steps": 1, "output_type": "latent", "num_images_per_prompt": 2}

        def draw(_: int) -> Any:
            return tiny_pipe(prompt_embeds=kept[0], negative_prompt_embeds=kept[1], **how)

        with ThreadPoolExecutor(1) as pool:
            list(pool.map(draw, range(2)))
        tiny_pipe.unet.to(torch.bfloat16)
        tiny_pipe.unet(torch.zeros(1, 4, 8, 8).bfloat16(), 10, kept[0].bfloat16())
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire):  # a copy whose original is gone is not held
            tiny_pipe.encode_prompt(None, "cpu", 1, False, prompt_embeds=gone)
        attachment.strength = 0.5
        with pytest.raises(EraserDidNotFire):
            draw(0)


def test_what_was_written_into_a_kept_embedding_is_not_kept_with_it(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tiny_pipe.encode_prompt(GUN, "cpu", 1, False)[0].detach()
    monkeypatch.setattr(known_vectors, "REMEMBERED", 4096)
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        kept = tiny_pipe.encode_prompt(CAT, "cpu", 1, False)[0]
        kept.copy_(foreign)
        for prompt in prompts(10):
            tiny_pipe.unet(torch.zeros(1, 4, 8, 8), 10, tiny_pipe.encode_prompt(prompt, "cpu", 1, False)[0])
        with pytest.raises(EraserDidNotFire):
            tiny_pipe(prompt_embeds=kept, num_inference_steps=1, guidance_scale=1.0)


def test_embeddings_made_by_excise_encode_stay_good(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_vectors, "REMEMBERED", 4096)
    how = {"num_inference_steps": 1, "output_type": "latent"}
    with gun_eraser.attach(tiny_pipe) as attachment, torch.no_grad():
        ids = tiny_pipe.tokenizer(CAT, padding="max_length", return_tensors="pt").input_ids
        mine = excise.encode(tiny_pipe, lambda: 1.3 * tiny_pipe.text_encoder(ids)[0])
        standing = excise.encode(tiny_pipe, "dull, grey", negative=True)[0]
        for prompt in prompts(20):
            tiny_pipe(prompt, negative_prompt_embeds=standing, **how)
        tiny_pipe(prompt_embeds=mine, negative_prompt_embeds=standing, **how)
        assert attachment.status()["bypasses"] == 0


def test_all_that_is_remembered_stays_bounded(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of prompts that say the concept, which are written down once more."""
    monkeypatch.setattr(known_vectors, "REMEMBERED", 1 << 16)
    with gun_eraser.attach(tiny_pipe) as attachment, torch.no_grad():
        negative = tiny_pipe.encode_prompt(CAT, "cpu", 1, False)[0]
        guard = attachment.denoiser_guard
        assert guard is not None
        for prompt in prompts(60):
            arguments = {"num_inference_steps": 1, "negative_prompt_embeds": negative, "output_type": "latent"}
            tiny_pipe(f"{prompt} with a gun", **arguments)
            one = 8 * 3 * 77  # may be put in before it is seen that there is no room
            assert guard.known_vectors.nbytes + guard.erased.nbytes <= 1.1 * known_vectors.REMEMBERED + 4 * one


def test_what_is_written_in_a_picture_is_drawn(concept: Concept) -> None:
    """HunyuanImage reads words in quotes with a separate encoder, which is not edited."""
    if (reason := tiny.missing("hunyuan-image")) is not None:
        pytest.skip(reason)
    pipe, attachment = erased("hunyuan-image", concept)
    tiny.call("hunyuan-image", pipe, 'a cat with "hello" on it')
    assert attachment.status()["bypasses"] == 0


def test_other_layers_are_drawn_when_they_are_asked_for(concept: Concept) -> None:
    if (reason := tiny.missing("flux2-klein")) is not None:
        pytest.skip(reason)
    pipe, attachment = erased("flux2-klein", concept)
    tiny.call("flux2-klein", pipe, CAT, text_encoder_out_layers=(10, 19, 28))
    assert attachment.status()["bypasses"] == 0
