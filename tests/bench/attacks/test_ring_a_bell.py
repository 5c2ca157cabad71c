from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.bench.attacks.ring_a_bell import RingABellConfig, concept_direction, ring_a_bell, search, vocabulary
from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.errors import ExciseError

SMALL = RingABellConfig(length=4, population=16, generations=10)


def test_the_direction_is_the_mean_difference() -> None:
    with_concept, without = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    by_hand = sum(with_concept[n] - without[n] for n in range(3)) / 3
    torch.testing.assert_close(concept_direction(with_concept, without), by_hand)


def test_the_search_finds_a_prompt_that_it_can_find() -> None:
    """States are one-hot ids: the target is hit exactly by one sequence of three of eight words."""
    words, blank = torch.arange(2, 10), torch.tensor([0, 1, 1, 1, 1])

    def encode(ids: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(ids, 10).float()

    hidden = torch.tensor([7, 2, 5])
    target = encode(torch.cat([blank[:1], hidden, blank[4:]]))
    config = RingABellConfig(length=3, population=40, generations=60)
    found = search(encode, target, words, blank, config, torch.Generator().manual_seed(0))
    assert torch.equal(found, hidden)


def test_what_comes_back_is_nearer_and_does_not_name_the_concept(tiny_pipe: Any, gun: Concept) -> None:
    prompts = ["a cat on grass", "a dog"]
    found = ring_a_bell(tiny_pipe, gun, prompts, SMALL)
    assert found == ring_a_bell(tiny_pipe, gun, prompts, SMALL)
    assert found != ring_a_bell(tiny_pipe, gun, prompts, replace(SMALL, seed=9))
    for text in found:
        assert len(text.split()) == 4
        assert not mentioned(text, gun.mentions)
        ids = tiny_pipe.tokenizer(text).input_ids
        assert len(ids) == 6, "the text is the same tokens again"
    longer = ring_a_bell(tiny_pipe, gun, prompts[:1], replace(SMALL, generations=40))
    assert _distance(tiny_pipe, gun, prompts[0], longer[0]) < _distance(tiny_pipe, gun, prompts[0], found[0])


def test_an_attached_eraser_changes_nothing(tiny_pipe: Any, gun: Concept, gun_eraser: Eraser) -> None:
    plain = ring_a_bell(tiny_pipe, gun, ["a cat"], SMALL)
    with gun_eraser.attach(tiny_pipe):
        assert ring_a_bell(tiny_pipe, gun, ["a cat"], SMALL) == plain


def test_the_vocabulary_holds_no_part_of_a_mention(tiny_pipe: Any) -> None:
    tokens = tiny_pipe.tokenizer.convert_ids_to_tokens(vocabulary(tiny_pipe.tokenizer, ("ice cream", "gun")).tolist())
    assert len(tokens) > 1000
    assert not [t for t in tokens if any(part in t for part in ("ice", "cream", "gun"))]
    assert "cat</w>" in tokens


def test_impossible_budgets_are_refused(tiny_pipe: Any) -> None:
    for change in ({"length": 0}, {"population": 3}, {"generations": 0}, {"mutation": 2.0}):
        with pytest.raises(ExciseError, match=r"it must be a (whole )?number, at least"):
            replace(SMALL, **change)
    with pytest.raises(ExciseError, match="at least 2 more positions"):
        replace(SMALL, positions=5)
    with pytest.raises(ExciseError, match="no pairs"):
        ring_a_bell(tiny_pipe, Concept("gun", ("gun",)), ["a cat"], SMALL)


def _distance(pipe: Any, gun: Concept, prompt: str, found: str) -> float:
    def states(texts: list[str]) -> Tensor:
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(ids)[0][:, : SMALL.positions]

    direction = states([p.concept for p in gun.pairs]).sub(states([p.deconcept for p in gun.pairs])).mean(0)
    return float((states([found])[0] - states([prompt])[0] - SMALL.strength * direction).square().mean())
