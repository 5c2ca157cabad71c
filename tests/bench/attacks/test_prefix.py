from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.attacks.prefix import ADAPTIVE, PrefixConfig, adaptive_attack, prefix_attack
from excise.bench.attacks.ring_a_bell import vocabulary
from excise.concepts import from_templates
from excise.erasers import Eraser
from excise.erasers.gates import attacking
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import SLDConfig

PROMPT = "a gun on grass"
CONFIG = PrefixConfig(length=3, iterations=12, batch=4, lr=0.3)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def loss_of(pipe: Any, text: str, picture: Tensor, config: PrefixConfig, plain: Any = None) -> float:
    """The attack's loss written out for epsilon prediction, from its seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    clean = picture.repeat(config.batch, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(1000, (config.batch,), generator=generator)
    share = pipe.scheduler.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    noised = share.sqrt() * clean + (1 - share).sqrt() * noise
    with torch.no_grad():
        states = pipe.encode_prompt(text, "cpu", 1, False)[0]
        predicted = pipe.unet(noised, times, states.repeat(config.batch, 1, 1)).sample
        wanted = noise
        if plain is not None:
            with unedited():
                wanted = pipe.unet(noised, times, plain.repeat(config.batch, 1, 1)).sample
    return float(F.mse_loss(predicted, wanted))


def test_the_prefix_lowers_the_loss_it_reports(tiny_pipe: Any, gun_eraser: Eraser, picture: Tensor) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    with gun_eraser.attach(tiny_pipe):
        text, loss = prefix_attack(tiny_pipe, PROMPT, picture, words, CONFIG)
        assert text.endswith(f" {PROMPT}")
        assert len(text.split()) == 3 + 4
        assert loss == pytest.approx(loss_of(tiny_pipe, text, picture, CONFIG), rel=1e-4)
        _, first = prefix_attack(tiny_pipe, PROMPT, picture, words, replace(CONFIG, iterations=1))
        assert loss < first
        assert prefix_attack(tiny_pipe, PROMPT, picture, words, CONFIG) == (text, loss)


def test_p4d_approaches_what_the_unerased_model_predicts(tiny_pipe: Any, gun_eraser: Eraser, picture: Tensor) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    config = replace(CONFIG, match="model")
    plain = tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].detach()
    with gun_eraser.attach(tiny_pipe):
        text, loss = prefix_attack(tiny_pipe, PROMPT, picture, words, config)
        assert loss == pytest.approx(loss_of(tiny_pipe, text, picture, config, plain), rel=1e-4)


def test_a_hinge_closes_the_gate_that_the_plain_search_leaves_open(
    tiny_pipe: Any, gun_eraser: Eraser, picture: Tensor
) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    config = replace(CONFIG, match="model", gradient="hinge", weight=100.0)

    def excess(text: str) -> float:
        with attacking("exact") as gates:
            tiny_pipe.encode_prompt(text, "cpu", 1, False)
        return max(map(float, gates.excess))

    with gun_eraser.attach(tiny_pipe):
        before = excess(PROMPT)
        assert before > 0, "the word opens the gate"
        found = [excess(prefix_attack(tiny_pipe, PROMPT, picture, words, replace(config, seed=n))[0]) for n in range(2)]
        assert min(found) < before


def test_the_adaptive_attack_is_the_best_of_its_searches_and_needs_a_gate(
    tiny_pipe: Any, gun_eraser: Eraser, picture: Tensor
) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    config = replace(CONFIG, match="model", iterations=3)
    assert adaptive_attack(tiny_pipe, PROMPT, picture, words, config) is None
    with gun_eraser.attach(tiny_pipe):
        found = [prefix_attack(tiny_pipe, PROMPT, picture, words, replace(config, gradient=g)) for g in ADAPTIVE]
        assert adaptive_attack(tiny_pipe, PROMPT, picture, words, config) == min(found, key=lambda own: own[1])


def test_nothing_is_left_behind(tiny_pipe: Any, picture: Tensor) -> None:
    before = tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    prefix_attack(tiny_pipe, PROMPT, picture, vocabulary(tiny_pipe.tokenizer, ("gun",)), CONFIG)
    assert torch.equal(tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)[0], before)
    assert all(parameter.grad is None for parameter in tiny_pipe.unet.parameters())
    assert all(parameter.grad is None for parameter in tiny_pipe.text_encoder.parameters())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ExciseError, match="it is one of picture, model"):
        PrefixConfig(match="noise")  # type: ignore[arg-type]
    with pytest.raises(ExciseError, match="it must be a whole number, at least 1"):
        PrefixConfig(length=0)


def test_an_eraser_that_steers_guidance_is_given_both_halves(tiny_pipe: Any, picture: Tensor) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    eraser = method("sld").fit(tiny_pipe, from_templates("gun", ("gun",)), SLDConfig(level="max"))
    config = replace(CONFIG, iterations=3)
    with eraser.attach(tiny_pipe):
        text, loss = prefix_attack(tiny_pipe, PROMPT, picture, words, config)
    assert prefix_attack(tiny_pipe, PROMPT, picture, words, config) != (text, loss)
