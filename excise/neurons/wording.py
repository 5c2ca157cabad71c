"""Which words a neuron answers: what sets it off in each prompt, and how many words that amounts to.

A word is one or more tokens; what sets a neuron off in a prompt is the word of the first token at which its code
reaches half of its largest there. In a causal encoder a neuron goes on firing behind its word, which this leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from excise.neurons.context import Context

ONSET = 0.5
"""What sets a neuron off is the first token with at least this share of its largest code in the prompt."""
TOP_WORDS = 10
"""How many of the words that a neuron answers most are asked whether they are one meaning."""

CONCEPT = "⟨concept⟩"
"""Stands for every mention among the words that set a neuron off."""
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "so", "yet", "if", "as", "than", "that", "of", "in", "on",
    "at", "by", "for", "from", "to", "into", "onto", "upon", "with", "without", "within", "over", "under",
    "above", "below", "beside", "besides", "between", "among", "behind", "before", "after", "against", "along",
    "around", "across", "through", "near", "next", "off", "up", "down", "out", "inside", "outside", "is", "are",
    "be", "was", "were", "there", "this", "these", "it", "its",
))  # fmt: skip
"""English articles, conjunctions, prepositions, and the plainest verbs and pronouns."""


@dataclass(frozen=True)
class Use:
    """A word and a neuron: in how many prompts it stands, in how many of these it sets the neuron off, and the mean
    over all of these of the largest code that it sets off (0 where it does not)."""

    word: str
    prompts: int
    fired: int
    response: float


def words(tokens: Sequence[str]) -> list[str]:
    """`[T]` the word that each token belongs to, in lower case; `tokens` are as `Context` has them.

    A mark of punctuation is a word of its own, and so is what is no text, such as an end of text.
    """
    groups: list[list[str]] = []
    for n, token in enumerate(tokens):
        apart = not _is_word(token) or (n > 0 and not _is_word(tokens[n - 1]))
        if not groups or apart or token[:1].isspace():
            groups.append([])
        groups[-1].append(token)
    return ["".join(group).strip().lower() for group in groups for _ in group]


def trigger(context: Context) -> str | None:
    """The word that sets the neuron off; None in a prompt where it is silent."""
    if context.peak <= 0:
        return None
    first = next(n for n, code in enumerate(context.codes) if code >= ONSET * context.peak)
    return words(context.tokens)[first]


def own_words(mentions: Iterable[str]) -> frozenset[str]:
    """Every word of the mentions, and with an s behind it, in lower case."""
    plain = {word for mention in mentions for word in mention.lower().split()}
    return frozenset(plain | {f"{word}{end}" for word in plain for end in ("s", "es")})


def occurrences(prompts: Iterable[Sequence[str]], own: frozenset[str] = frozenset()) -> Counter[str]:
    """In how many of the prompts, given as tokens, each word stands; those in `own` count as `CONCEPT`."""
    return Counter(
        word for tokens in prompts for word in {CONCEPT if w in own else w for w in words(tokens)} if word.strip()
    )


def uses(contexts: Iterable[Context], standing: Counter[str], own: frozenset[str] = frozenset()) -> list[Use]:
    """What sets a neuron off in the `contexts` in which it fires, by falling response, then by word.

    standing: `occurrences` over all prompts, those included in which it is silent. Words in `own` are one, `CONCEPT`;
    so is there what is no text, as it stands behind a mention.
    """
    peaks: dict[str, list[float]] = {}
    for context in contexts:
        word = trigger(context)
        if word is None:
            continue
        named = CONCEPT if word in own or (own and word.startswith("⟨")) else word
        peaks.setdefault(named, []).append(context.peak)
    found = []
    for word, codes in peaks.items():
        prompts = max(standing[word], len(codes))
        found.append(Use(word, prompts, len(codes), math.fsum(codes) / prompts))
    return sorted(found, key=lambda use: (-use.response, use.word))


def merged(parts: Iterable[Sequence[Use]], standing: Counter[str]) -> list[Use]:
    """The uses of several groups of prompts as one, `standing` being `occurrences` over all of them."""
    totals: dict[str, tuple[int, float]] = {}
    for use in (use for part in parts for use in part):
        fired, total = totals.get(use.word, (0, 0.0))
        totals[use.word] = fired + use.fired, total + use.response * use.prompts
    counts = {word: max(standing[word], fired) for word, (fired, _) in totals.items()}
    found = [Use(word, counts[word], fired, total / counts[word]) for word, (fired, total) in totals.items()]
    return sorted(found, key=lambda use: (-use.response, use.word))


def effective_words(found: Sequence[Use]) -> float:
    """(Σr)² / Σr² over the responses r of the `TOP_WORDS` words answered most: 1 where it answers one word alone, n
    where n alike; 0 where it answers none. Hill's number of order 2, so that many faint answers hardly count."""
    responses = sorted((use.response for use in found), reverse=True)[:TOP_WORDS]
    squares = math.fsum(r * r for r in responses)
    return math.fsum(responses) ** 2 / squares if squares else 0.0


def is_function_word(word: str) -> bool:
    """Whether it holds a sentence together: an article, conjunction, preposition or the like, or punctuation."""
    return word in FUNCTION_WORDS or (bool(word) and not _is_word(word) and not word.startswith("⟨"))


def _is_word(token: str) -> bool:
    """Whether it is of letters or figures, and text at all."""
    return not token.startswith("⟨") and any(letter.isalnum() for letter in token)
