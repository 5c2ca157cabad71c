"""Words that a neuron fires for: what triggers it in each prompt, and how many different words there are.

A word is one or more tokens. A neuron's trigger in a prompt is the word of the first token at which its code reaches
half of its largest there. In a causal encoder a neuron keeps firing after its word, which this leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from excise.neurons.context import Context

ONSET = 0.5
"""A neuron's trigger is the first token with at least this share of its largest code in the prompt."""
TOP_WORDS = 10
"""Number of words, those with the largest responses, that count for whether a neuron has one meaning."""

CONCEPT = "⟨concept⟩"
"""Stands for every mention among a neuron's triggers."""
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "so", "yet", "if", "as", "than", "that", "of", "in", "on",
    "at", "by", "for", "from", "to", "into", "onto", "upon", "with", "without", "within", "over", "under",
    "above", "below", "beside", "besides", "between", "among",  # words: ok
    "behind", "before", "after", "against", "along",
    "around", "across", "through", "near", "next", "off", "up", "down", "out", "inside", "outside", "is", "are",
    "be", "was", "were", "there", "this", "these", "it", "its",
))  # fmt: skip
"""English articles, conjunctions, prepositions, and the plainest verbs and pronouns."""


@dataclass(frozen=True)
class Use:
    """A word and a neuron: prompts with the word, those in which it triggers the neuron, and the mean response.

    The response in a prompt is the largest code that the word triggers, 0 if it does not.
    """

    word: str
    prompts: int
    fired: int
    response: float


def words(tokens: Sequence[str]) -> list[str]:
    """Return, for each token `[T]`, the word that it belongs to, in lower case; `tokens` are as in `Context`.

    A punctuation mark is a word of its own, and so is a special token, such as an end of text.
    """
    groups: list[list[str]] = []
    for n, token in enumerate(tokens):
        apart = not _is_word(token) or (n > 0 and not _is_word(tokens[n - 1]))
        if not groups or apart or token[:1].isspace():
            groups.append([])
        groups[-1].append(token)
    return ["".join(group).strip().lower() for group in groups for _ in group]


def trigger(context: Context) -> str | None:
    """Return the word that triggers the neuron; None in a prompt where it is silent."""
    if context.peak <= 0:
        return None
    first = next(n for n, code in enumerate(context.codes) if code >= ONSET * context.peak)
    return words(context.tokens)[first]


def own_words(mentions: Iterable[str]) -> frozenset[str]:
    """Return every word of the mentions, and its plural, in lower case."""
    plain = {word for mention in mentions for word in mention.lower().split()}
    return frozenset(plain | {f"{word}{end}" for word in plain for end in ("s", "es")})


def occurrences(prompts: Iterable[Sequence[str]], own: frozenset[str] = frozenset()) -> Counter[str]:
    """Count the prompts, given as tokens, in which each word occurs; those in `own` count as `CONCEPT`."""
    return Counter(
        word for tokens in prompts for word in {CONCEPT if w in own else w for w in words(tokens)} if word.strip()
    )


def uses(contexts: Iterable[Context], standing: Counter[str], own: frozenset[str] = frozenset()) -> list[Use]:
    """Return the words that trigger a neuron in the `contexts` where it fires, by falling response, then by word.

    `standing` are the `occurrences` over all prompts, including those in which it is silent. Words in `own` count as
    one, `CONCEPT`, and so do special tokens then, since they follow a mention.
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
    """Merge the uses of several groups of prompts; `standing` are the `occurrences` over all of them."""
    totals: dict[str, tuple[int, float]] = {}
    for use in (use for part in parts for use in part):
        fired, total = totals.get(use.word, (0, 0.0))
        totals[use.word] = fired + use.fired, total + use.response * use.prompts
    counts = {word: max(standing[word], fired) for word, (fired, _) in totals.items()}
    found = [Use(word, counts[word], fired, total / counts[word]) for word, (fired, total) in totals.items()]
    return sorted(found, key=lambda use: (-use.response, use.word))


def effective_words(found: Sequence[Use]) -> float:
    """Return (Σr)² / Σr² over the responses r of the `TOP_WORDS` words with the largest ones.

    1 if the neuron fires for one word alone, n if for n equally, 0 if for none. It is Hill's number of order 2, so that
    many faint responses hardly count.
    """
    responses = sorted((use.response for use in found), reverse=True)[:TOP_WORDS]
    squares = math.fsum(r * r for r in responses)
    return math.fsum(responses) ** 2 / squares if squares else 0.0


def is_function_word(word: str) -> bool:
    """Return whether a word only holds a sentence together: an article, conjunction, preposition, or punctuation."""
    return word in FUNCTION_WORDS or (bool(word) and not _is_word(word) and not word.startswith("⟨"))


def _is_word(token: str) -> bool:
    """Return whether a token has letters or digits, and is not a special one."""
    return not token.startswith("⟨") and any(letter.isalnum() for letter in token)
