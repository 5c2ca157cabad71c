from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.bench.attacks import vocabulary as searched
from excise.bench.attacks.vocabulary import nearest_words, nearness, ranked_words
from excise.concepts import Concept
from excise.concepts.others import others_like
from excise.erasers import Eraser


def test_nearness_is_the_cosine_to_the_concepts_own_difference() -> None:
    states, origin, difference = torch.randn(4, 6), torch.randn(6), torch.randn(6)
    for row, near in zip(states, nearness(states, origin, difference), strict=True):
        moved = [float(row[i] - origin[i]) for i in range(6)]
        along = sum(m * float(d) for m, d in zip(moved, difference, strict=True))
        lengths = math.dist(moved, [0] * 6) * math.dist(difference.tolist(), [0] * 6)
        assert float(near) == pytest.approx(along / lengths, abs=1e-5)
    assert float(nearness((origin + 3 * difference)[None], origin, difference)) == pytest.approx(1)


def test_every_word_is_read_as_its_phrase_is_by_hand(tiny_pipe: Any, gun: Concept) -> None:
    def by_hand(word: str, others: list[str], before: str = "a picture of a") -> float:
        def states(text: str) -> Tensor:
            ids = tiny_pipe.tokenizer(f"{before} {text}", return_tensors="pt").input_ids
            with torch.no_grad():
                return tiny_pipe.text_encoder(ids)[0][0, -2:].flatten()

        origin = torch.stack([states(other) for other in others]).mean(0)
        own = states("gun") - origin
        moved = states(word) - origin
        return float(moved @ own / (moved.norm() * own.norm()))

    others = others_like("gun", "object", lambda text: len(tiny_pipe.tokenizer(text).input_ids), 24, ("gun",))
    plain = nearest_words(tiny_pipe, gun, nearest=40)
    for near in (plain[0], plain[20], plain[-1]):
        assert near.left == pytest.approx(near.whole, abs=1e-5) == pytest.approx(by_hand(near.word, others), abs=1e-4)
    assert [near.left for near in plain] == sorted((near.left for near in plain), reverse=True)
    asked = ["cat", "house", plain[0].word, "ice cream cone"]
    ranked = {near.word: near.whole for near in ranked_words(tiny_pipe, gun, asked)}
    assert set(ranked) == set(asked)
    assert ranked[plain[0].word] == pytest.approx(plain[0].whole, abs=1e-5)
    assert ranked["cat"] == pytest.approx(by_hand("cat", others), abs=1e-4)
    # The first pass leaves no word of the vocabulary out.
    words = [t.removesuffix("</w>") for t in tiny_pipe.tokenizer.get_vocab() if t.endswith("</w>")][::600]
    whole = [w for w in words if w.isascii() and w.isalpha() and len(w) > 2 and "gun" not in w]
    assert len(whole) > 20
    found = {near.word for near in plain}
    least = min(by_hand(word, others, "a") for word in found)
    assert all(word in found or by_hand(word, others, "a") <= least + 1e-4 for word in whole)


def test_under_an_eraser_the_words_that_it_misses_lead(tiny_pipe: Any, gun: Concept, gun_eraser: Eraser) -> None:
    plain = nearest_words(tiny_pipe, gun, nearest=60)
    with gun_eraser.attach(tiny_pipe):
        erased = nearest_words(tiny_pipe, gun, nearest=60)
    assert {near.word for near in erased} == {near.word for near in plain}, "the first pass reads the unerased encoder"
    assert [near.left for near in erased] == sorted((near.left for near in erased), reverse=True)
    caught = [near for near in erased if near.left < near.whole - 1e-4]
    silent = [near for near in erased if near.left == pytest.approx(near.whole, abs=1e-6)]
    assert caught
    assert silent or len(caught) == 60
    assert nearest_words(tiny_pipe, gun, nearest=60) == plain, "detached, the encoder is as it was"


def test_no_word_is_a_mention_and_the_vocabulary_is_read_once(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = Concept("ice", ("ice",))
    found = nearest_words(tiny_pipe, concept, nearest=500)
    assert not [near.word for near in found if "ice" in near.word]
    read: list[int] = []
    states = searched._Phrase.states
    monkeypatch.setattr(searched._Phrase, "states", lambda self, words: read.append(len(words)) or states(self, words))
    nearest_words(tiny_pipe, Concept("cat", ("cat",)), nearest=50)
    assert max(read) == 50
