from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.attacks.inversion import WORD, InversionConfig, embedded, invert
from excise.erasers import Eraser
from excise.errors import ExciseError

PROMPTS = [f"a {WORD} on grass", f"{WORD} in the ink style"]
CONFIG = InversionConfig(iterations=60, batch=4, lr=0.05)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def loss_of(pipe: Any, eraser: Eraser, vector: Tensor, pictures: Tensor) -> float:
    """The denoising loss written out for epsilon prediction, with the embedding written into the table itself."""
    generator = torch.Generator().manual_seed(99)
    clean = pictures.repeat(32, 1, 1, 1)
    noise, times = torch.randn(clean.shape, generator=generator), torch.randint(1000, (64,), generator=generator)
    share = pipe.scheduler.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    table = pipe.text_encoder.get_input_embeddings().weight
    (token,) = pipe.tokenizer(WORD, add_special_tokens=False).input_ids
    with torch.no_grad():
        kept = table[token].clone()
        table[token] = vector
        with eraser.attach(pipe, strict=False):
            states = pipe.encode_prompt(PROMPTS * 32, "cpu", 1, False)[0]
        table[token] = kept
        predicted = pipe.unet(share.sqrt() * clean + (1 - share).sqrt() * noise, times, states).sample
    return float(F.mse_loss(predicted, noise))


def test_learning_the_word_lowers_the_denoising_loss(tiny_pipe: Any, gun_eraser: Eraser, pictures: Tensor) -> None:
    with gun_eraser.attach(tiny_pipe):
        learnt = invert(tiny_pipe, "gun", PROMPTS, pictures, CONFIG)
        start = invert(tiny_pipe, "gun", PROMPTS, pictures, replace(CONFIG, iterations=1, lr=1e-12))
        (gun,) = tiny_pipe.tokenizer("gun", add_special_tokens=False).input_ids
        assert torch.allclose(start, tiny_pipe.text_encoder.get_input_embeddings().weight[gun], atol=1e-6)
        assert torch.equal(invert(tiny_pipe, "gun", PROMPTS, pictures, CONFIG), learnt)
    assert loss_of(tiny_pipe, gun_eraser, learnt, pictures) < loss_of(tiny_pipe, gun_eraser, start, pictures)


def test_the_word_has_the_vector_within_and_its_own_embedding_outside(tiny_pipe: Any) -> None:
    (gun,) = tiny_pipe.tokenizer("gun", add_special_tokens=False).input_ids
    vector = tiny_pipe.text_encoder.get_input_embeddings().weight[gun].detach()

    def states(prompt: str) -> Tensor:
        found: Tensor = tiny_pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        return found

    before = states(PROMPTS[0])
    with embedded(tiny_pipe, vector):
        assert torch.equal(states(PROMPTS[0]), states("a gun on grass"))
        assert torch.equal(states("a cat"), states("a cat"))
    assert torch.equal(states(PROMPTS[0]), before)
    assert not torch.equal(before, states("a gun on grass"))


def test_a_prompt_without_the_word_is_refused(tiny_pipe: Any, pictures: Tensor) -> None:
    with pytest.raises(ExciseError, match="must contain the word"):
        invert(tiny_pipe, "gun", ["a gun", "a cat"], pictures, CONFIG)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ExciseError, match="it must be a whole number, at least 1"):
        InversionConfig(iterations=0)
