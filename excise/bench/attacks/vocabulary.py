"""Exhaustive search of the text encoder's vocabulary: how near each whole word comes to the concept.

Only the text encoder runs, so every word can be tried. A word's nearness to the concept is the cosine

    s(w) = ⟨h(w) - o, D⟩ / (|h(w) - o| |D|)      D = h(c) - o

h(w): the states of a phrase from the word's last token to the end of the text, as one vector. o: the mean of h over
words for other things of the same kind and length. c: the concept's name. So s(c) = 1. The first pass reads every word
in a short phrase, "a WORD", by the unerased encoder. The nearest words are read again in "a picture of a WORD" under
the attached erasers. A word that these miss stays as near, and may get past them; one that they erase does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.bench.attacks.ring_a_bell import vocabulary
from excise.concepts import Concept
from excise.concepts.concept import Kind
from excise.concepts.others import others_like
from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline
from excise.sites.site import encoder_of, tokenizer_of

SHORT: Mapping[Kind, tuple[str, str]] = {"object": ("a", ""), "style": ("in", "style"), "attribute": ("a", "person")}
"""What stands before and after the word in the exhaustive pass, by the concept's kind."""
LONGER: Mapping[Kind, tuple[str, str]] = {
    "object": ("a picture of a", ""),
    "style": ("a picture in", "style"),
    "attribute": ("a picture of a", "person"),
}
"""The same for the words that are read under the erasers."""
NEAREST = 1024
"""Words of the vocabulary, those nearest to the concept, that are read under the erasers."""
OTHERS = 24
"""Words for other things whose mean is o."""
_BATCH = 1024
_READ: WeakKeyDictionary[nn.Module, dict[Kind, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Ids and unerased states of every whole word, by encoder and kind: one pass serves all concepts and methods."""


class NearWord(NamedTuple):
    """Word and its nearness to the concept, from -1 to 1."""

    word: str
    left: float
    """s(w) under the attached erasers."""
    whole: float
    """s(w) for the unerased encoder."""


@torch.no_grad()
def nearest_words(pipe: Pipeline, concept: Concept, nearest: int = NEAREST) -> list[NearWord]:
    """Return the `nearest` whole words to the concept, those nearest under the attached erasers first.

    None of them is a mention of the concept or contains a part of one. The pipeline's first text encoder must read from
    left to right (CLIP's does). The unerased states of its vocabulary are kept as long as it lives, so its own weights
    must not change.
    """
    phrase = _Phrase(pipe, SHORT[concept.kind])
    kept = _READ.setdefault(phrase.encoder, {})
    if concept.kind not in kept:
        every = vocabulary(phrase.tokenizer, ())
        with unedited():
            kept[concept.kind] = every, phrase.states(every[:, None].tolist())
    every, states = kept[concept.kind]
    allowed = torch.isin(every, vocabulary(phrase.tokenizer, concept.mentions))
    first = _Origins(phrase, concept).nearness(states[allowed], 1)
    ids = every[allowed][first.argsort(descending=True)[:nearest]].tolist()
    return ranked_words(pipe, concept, [str(phrase.tokenizer.decode([index])).strip() for index in ids])


@torch.no_grad()
def ranked_words(pipe: Pipeline, concept: Concept, words: Sequence[str]) -> list[NearWord]:
    """Return the given words or phrases, those nearest to the concept under the attached erasers first."""
    phrase = _Phrase(pipe, LONGER[concept.kind])
    origins = _Origins(phrase, concept)
    left, whole = torch.zeros(len(words)), torch.zeros(len(words))
    ids = [phrase.tokens(word) for word in words]
    for length in {len(own) for own in ids}:
        at = [n for n, own in enumerate(ids) if len(own) == length]
        some = [ids[n] for n in at]
        left[at] = origins.nearness(phrase.states(some), length)
        with unedited():
            whole[at] = origins.nearness(phrase.states(some), length)
    found = [NearWord(*row) for row in zip(words, left.tolist(), whole.tolist(), strict=True)]
    return sorted(found, key=lambda near: -near.left)


def nearness(states: Tensor, origin: Tensor, difference: Tensor) -> Tensor:
    """Return s(w) `[n]` of states h(w) `[n, d]`, with o `[d]` and D `[d]`."""
    return F.cosine_similarity(states - origin, difference[None])


class _Phrase:
    """What stands around a word, and the encoder that reads it."""

    def __init__(self, pipe: Pipeline, around: tuple[str, str]) -> None:
        self.tokenizer: Any = tokenizer_of(pipe, "text_encoder")
        self.encoder = encoder_of(pipe, "text_encoder")
        start, *_, end = self.tokenizer("").input_ids
        before, after = (self.tokens(text) for text in around)
        self._before, self._after = [start, *before], [*after, end]

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def states(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Return h of words `[n, states * d]`, given the ids of each; all must be of one length."""
        device = next(self.encoder.parameters()).device
        ids = torch.tensor([[*self._before, *word, *self._after] for word in words], device=device)
        batches = [ids[n : n + _BATCH] for n in range(0, len(ids), _BATCH)]
        kept = len(self._after) + 1
        read = [self.encoder(some)[0][:, -kept:].flatten(1).float().cpu() for some in batches]
        return torch.cat(read)


class _Origins:
    """Concept's own difference D, and o for words of each length."""

    def __init__(self, phrase: _Phrase, concept: Concept) -> None:
        self._phrase, self._concept = phrase, concept
        self._of: dict[int, Tensor] = {}
        name = phrase.tokens(concept.mentions[0])
        with unedited():
            self.difference = phrase.states([name])[0] - self._origin(len(name))

    def nearness(self, states: Tensor, length: int) -> Tensor:
        """Return s of words of this many tokens, given their states."""
        return nearness(states, self._origin(length), self.difference)

    def _origin(self, length: int) -> Tensor:
        if length not in self._of:
            name = self._concept.mentions[0]
            stand_in = name if len(self._phrase.tokens(name)) == length else " ".join(["tree"] * length)
            others = others_like(
                stand_in,
                self._concept.kind,
                lambda text: len(self._phrase.tokens(text)),
                OTHERS,
                self._concept.mentions,
            )
            read = [self._phrase.tokens(other) for other in others]
            with unedited():
                states = [self._phrase.states([ids]) for ids in [i for i in read if len(i) == length] or read]
            self._of[length] = torch.cat(states).mean(0)
        return self._of[length]
