"""What is wrong with a concept's pairs, before neurons are looked for with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from excise.concepts.concept import Concept, mentioned, without_mentions

FEW = 20
_WORD = re.compile(r"\w+|,")


def check(concept: Concept) -> list[str]:
    """The problems of a concept's pairs and controls, one line each; an empty list when there are none.

    Structure counts as imbalanced where a word (or a comma) outside the mentions stands on a tenth of the concept sides
    or more and on less than half as many deconcept sides: eq. 6 would take its neuron for the concept's.
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
    problems += _each("the pair of", [c for (c, _), n in counts.items() if n > 1], "stands more than once")
    return problems + _imbalance(concept)


def _each(what: str, prompts: Sequence[str], wrong: str) -> list[str]:
    if not prompts:
        return []
    more = f" (and {len(prompts) - 1} more)" if len(prompts) > 1 else ""
    return [f"{what} '{prompts[0]}'{more} {wrong}"]


def _imbalance(concept: Concept) -> list[str]:
    pairs, mentions = concept.pairs, concept.mentions
    if not pairs:
        return []
    with_it = Counter(w for p in pairs for w in _words(without_mentions(p.concept, mentions)))
    without = Counter(w for p in pairs for w in _words(p.deconcept))
    least = max(2, len(pairs) / 10)
    problems = [
        f"'{word}' is in {n} concept sides but {without[word]} deconcept sides: its neuron may pass for the concept's"
        for word, n in with_it.most_common()
        if n >= least and without[word] < n / 2
    ]
    shorter = sum(len(p.deconcept.split()) < len(p.concept.split()) for p in pairs)
    if shorter > len(pairs) / 2:
        problems.append(
            f"the deconcept side is shorter in {shorter} of {len(pairs)} pairs: put another word in the mention's place"
        )
    return problems


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
