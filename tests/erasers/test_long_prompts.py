"""Prompts longer than the encoder reads, through compel: the eraser acts in every chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import excise
from excise.erasers import Eraser
from excise.errors import EraserDidNotFire

FILL = "a cat on grass, " * 15
"""75 tokens, all that a chunk holds besides its first and last."""
GUN, CHUNK = "a gun on grass", 77
PROMPTS = {
    "first": (GUN + ", a cat on grass" * 15, {0}),
    "second": (FILL + GUN, {1}),
    "third": (FILL + FILL + GUN, {2}),
    "none": (FILL + "a cat on grass", set()),
}


@pytest.fixture
def weighting(tiny_pipe: Any) -> Any:
    compel = pytest.importorskip("compel")
    return compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder, truncate_long_prompts=False)


@pytest.mark.parametrize("where", PROMPTS)
def test_the_eraser_acts_in_every_chunk_with_the_concept_and_in_no_other(
    tiny_pipe: Any, gun_eraser: Eraser, weighting: Any, where: str
) -> None:
    prompt, chunks = PROMPTS[where]
    plain = weighting(prompt)
    assert plain.shape[1] % CHUNK == 0 and plain.shape[1] >= 2 * CHUNK
    with gun_eraser.attach(tiny_pipe):
        states, alone = (excise.encode(tiny_pipe, weighting, text) for text in (prompt, GUN))
        negative = excise.encode(tiny_pipe, weighting, "", negative=True)
        states, negative = weighting.pad_conditioning_tensors_to_same_length([states, negative])
        image = tiny_pipe(
            prompt_embeds=states, negative_prompt_embeds=negative, num_inference_steps=1, output_type="np"
        ).images[0]
    pairs = zip(states.split(CHUNK, 1), plain.split(CHUNK, 1), strict=True)
    changed = {n for n, (ours, theirs) in enumerate(pairs) if not torch.equal(ours, theirs)}
    assert changed == chunks
    if where in ("second", "third"):
        assert torch.equal(states[:, -CHUNK:], alone)
    assert image.shape == (16, 16, 3)


def test_a_long_prompt_encoded_without_the_eraser_is_refused(
    tiny_pipe: Any, gun_eraser: Eraser, weighting: Any
) -> None:
    foreign = weighting(PROMPTS["second"][0])
    with gun_eraser.attach(tiny_pipe):
        mixed = torch.cat([excise.encode(tiny_pipe, weighting, FILL)[:, :CHUNK], foreign[:, CHUNK : 2 * CHUNK]], 1)
        for states in (foreign, mixed):
            with pytest.raises(EraserDidNotFire):
                tiny_pipe(
                    prompt_embeds=states, negative_prompt_embeds=torch.zeros_like(states), num_inference_steps=1,
                    output_type="np",
                )  # fmt: skip
