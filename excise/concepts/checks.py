"""Checks of a concept's pairs, before they are used to find neurons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from excise.concepts.concept import Concept, Pair, mentioned, without_mentions

FEW = 20
LEAST_PAIRS = 5
"""Pairs that the paper prints for a concept. With fewer, no wording can be held out, and no eraser trusted."""
_WORD = re.compile(r"\w+|,")


def check(concept: Concept) -> list[str]:
    """Return the problems of a concept's pairs and controls, one line each.

    Pairs are imbalanced if a word (or comma) outside the mentions is in at least a tenth of the concept sides, and in
    less than half as many deconcept sides: eq. 6 would take its neuron for the concept's.
    """
    pairs, mentions = concept.pairs, concept.mentions
    problems = []
    if len(pairs) < FEW:
        problems.append(f"only {len(pairs)} pairs: at least {FEW} are needed, the paper has 100")
    problems += _each(
        "the deconcept side of", [p.deconcept for p in pairs if mentioned(p.deconcept, mentions)], "holds a mention"
    )
    problems += _each(
        "the concept side of", [p.concept for p in pairs if not mentioned(p.concept, mentions)], "holds no mention"
    )
    problems += _each("the control", [c for c in concept.controls if mentioned(c, mentions)], "holds a mention")
    counts = Counter((p.concept, p.deconcept) for p in pairs)
    problems += _each("the pair of", [c for (c, _), n in counts.items() if n > 1], "occurs more than once")
    return problems + _imbalance(concept)


def _each(what: str, prompts: Sequence[str], wrong: str) -> list[str]:
    if not prompts:
        return []
    more = f" (and {len(prompts) - 1} more)" if len(prompts) > 1 else ""
    return [f"{what} '{prompts[0]}'{more} {wrong}"]


def one_sided(pairs: Sequence[Pair], mentions: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return the imbalanced words and commas outside the mentions, with their counts on both sides, commonest first.

    They are in at least a tenth of the concept sides, and in less than half as many deconcept sides.
    """
    with_it = Counter(w for p in pairs for w in words_outside(p.concept, mentions))
    without = Counter(w for p in pairs for w in words_outside(p.deconcept, ()))
    least = max(2, len(pairs) / 10)
    by_count = sorted(with_it.items(), key=lambda item: (-item[1], item[0]))
    return {word: (n, without[word]) for word, n in by_count if n >= least and without[word] < n / 2}


def shortened(pairs: Sequence[Pair]) -> list[int]:
    """Return the indices of pairs with fewer words on the deconcept side."""
    return [i for i, p in enumerate(pairs) if len(p.deconcept.split()) < len(p.concept.split())]


@lru_cache(maxsize=4096)
def words_outside(text: str, mentions: tuple[str, ...]) -> frozenset[str]:
    """Return the words and commas of a text in lower case, without mentions."""
    return frozenset(_WORD.findall((without_mentions(text, mentions) if mentions else text).lower()))


def _imbalance(concept: Concept) -> list[str]:
    if not concept.pairs:
        return []
    problems = [
        f"'{word}' is in {n} concept sides but {without} deconcept sides: its neuron may be taken for the concept's"
        for word, (n, without) in one_sided(concept.pairs, concept.mentions).items()
    ]
    if (shorter := len(shortened(concept.pairs))) > len(concept.pairs) / 2:
        problems.append(
            f"the deconcept side is shorter in {shorter} of {len(concept.pairs)} pairs: "
            "replace the mention with another word"
        )
    return problems
