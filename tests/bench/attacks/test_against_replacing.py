"""White-box attacks on erasers that move states to another word's: on the bundled model, with the smallest budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import excise
from excise import reference
from excise.bench.attacks import ring_a_bell, vocabulary
from excise.bench.attacks.inversion import WORD, InversionConfig, embedded, invert
from excise.bench.attacks.prefix import PrefixConfig, prefix_attack
from excise.bench.canvas.suite import SEARCHED_WORDS, WHITE_BOX, Canvas
from excise.erasers import Eraser, SAEEdit, merge
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.gates import attacking
from excise.erasers.hooks.context import unedited
from excise.reference.world import OBJECTS
from excise.sae import load

PROMPT = "a dog on grass"
BUDGET = PrefixConfig(length=2, iterations=2, batch=2, lr=0.3)


@pytest.fixture(scope="module")
def moving(one_bundled_pipe: Any) -> dict[str, Eraser]:
    """An eraser of dog that moves to apple, and one merged with an eraser whose neuron stays silent."""
    own = excise.erase(one_bundled_pipe, Canvas().concept("dog"), replace_with="apple")
    (edit,) = own.edits
    assert isinstance(edit, ReplacingSAEEdit)
    levels = {"threshold": torch.tensor([1e6]), "typical": torch.tensor([1.0])}
    neuron = (edit.neurons[0] + 1) % 100
    quiet = SAEEdit.from_sae(load(reference.sae_folder()), edit.site, [neuron], gate="whole", lead=edit.lead, **levels)
    return {"alone": own, "merged": merge([own, replace(own, name="other", edits=(quiet,))])}


@pytest.fixture(params=["alone", "merged"])
def attacked(request: Any, one_bundled_pipe: Any, moving: dict[str, Eraser]) -> Iterator[Any]:
    """The pipeline, with one of these erasers attached."""
    with moving[request.param].attach(one_bundled_pipe):
        yield one_bundled_pipe


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def words_of(pipe: Any) -> Tensor:
    """One in 64 words, which take a 64th of the time."""
    return ring_a_bell.vocabulary(pipe.tokenizer, ("dog",))[::64]


def loss_of(pipe: Any, text: str, picture: Tensor, config: PrefixConfig) -> float:
    """The attack's loss written out for velocity prediction, from its seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.batch, 16, 8, 8, generator=generator)
    times = torch.randint(1000, (config.batch,), generator=generator)
    share = pipe.scheduler.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    noised = share.sqrt() * picture + (1 - share).sqrt() * noise

    def predicted(prompt: str) -> Tensor:
        made: Tensor = pipe.unet(noised, times, pipe.encode_prompt([prompt] * config.batch, "cpu", 1, False)[0]).sample
        return made

    with torch.no_grad():
        goal = share.sqrt() * noise - (1 - share).sqrt() * picture
        if config.match == "model":
            with unedited():
                goal = predicted(PROMPT)
        return float(F.mse_loss(predicted(text), goal))


@pytest.mark.parametrize("match", ["picture", "model"])
def test_a_prefix_is_searched_and_its_loss_is_that_of_the_moved_states(
    attacked: Any, picture: Tensor, match: Any
) -> None:
    config, words = replace(BUDGET, match=match), words_of(attacked)
    text, loss = prefix_attack(attacked, PROMPT, picture, words, config)
    assert text.endswith(f" {PROMPT}")
    assert loss == pytest.approx(loss_of(attacked, text, picture, config), rel=1e-3)
    assert prefix_attack(attacked, PROMPT, picture, words, config) == (text, loss)


def test_a_closed_gate_hides_the_move_from_all_but_the_replaced_gradients(attacked: Any) -> None:
    """Of a word that does not open the gate, states are the model's own to the bit, whatever gradient is asked for."""
    table, gradients = attacked.text_encoder.get_input_embeddings().weight.detach(), {}

    def states(prompt: str, how: Any) -> tuple[Tensor, float]:
        with attacking(how) as gates:
            made: Tensor = attacked.encode_prompt(prompt, "cpu", 1, False)[0]
        return made, float(gates.excess[0].detach())

    tokens = {word: attacked.tokenizer(word, add_special_tokens=False).input_ids for word in OBJECTS}
    single = [word for word, ids in tokens.items() if len(ids) == 1]
    word = next(word for word in single if -1 < states(f"a {word} on grass", "exact")[1] < 0)
    plain, _ = states(f"a {word} on grass", "exact")
    way = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
    for how in ("exact", "straight-through", "soft"):
        vector = table[tokens[word][0]].clone().requires_grad_()
        with embedded(attacked, vector):
            found, excess = states(f"a {WORD} on grass", how)
        assert torch.equal(found, plain) and -1 < excess < 0
        (gradients[how],) = torch.autograd.grad((found * way).sum(), vector)
    with unedited(), embedded(attacked, vector):
        model_states = attacked.encode_prompt(f"a {WORD} on grass", "cpu", 1, False)[0]
    (own,) = torch.autograd.grad((model_states * way).sum(), vector)
    torch.testing.assert_close(gradients["exact"], own)
    assert float((gradients["straight-through"] - own).norm()) > 0.01 * float(own.norm())
    assert bool(torch.isfinite(gradients["soft"]).all())


def test_a_word_is_learnt_through_the_move(attacked: Any, picture: Tensor) -> None:
    config = InversionConfig(iterations=2, batch=2, lr=0.05)
    learnt = invert(attacked, "dog", [f"a {WORD} on grass"], picture, config)
    start = invert(attacked, "dog", [f"a {WORD} on grass"], picture, replace(config, iterations=1, lr=1e-12))
    assert bool(torch.isfinite(learnt).all()) and not torch.equal(learnt, start)
    with torch.no_grad(), embedded(attacked, start):
        as_dog = attacked.encode_prompt(f"a {WORD} on grass", "cpu", 1, False)[0]
    assert torch.allclose(as_dog, attacked.encode_prompt(PROMPT, "cpu", 1, False)[0], atol=1e-5), "the word opens it"


def test_every_white_box_search_of_canvas_runs(
    one_bundled_pipe: Any, moving: dict[str, Eraser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "vocabulary", lambda *given: ring_a_bell.vocabulary(*given)[::64])
    budget = {"iterations": 1, "batch": 1}
    canvas = Canvas.from_json({"steps": 1, "batch": 1, "words": 1, "prefix": budget, "inversion": budget})
    with moving["alone"].attach(one_bundled_pipe):  # an adaptive search gives no case where no gate runs
        found = canvas.attack(one_bundled_pipe, "dog", "standard")
        assert {case.family for case in found} == {*WHITE_BOX, *SEARCHED_WORDS, "inversion"}
        drawn = canvas.draw(one_bundled_pipe, [case for case in found if case.family == "inversion"][:1])
    assert not any(drawn.faults)
