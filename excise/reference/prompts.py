"""Prompts for the bundled model: the corpus of its SAE, and the families on which its erasers are measured."""

from __future__ import annotations

import random
from collections.abc import Iterator

from excise.errors import ExciseError
from excise.reference.captions import caption
from excise.reference.scenes import sample_caption, sample_scene
from excise.reference.training.text_corpus import corpus, mentions_synonym
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES, SYNONYMS


def sae_corpus(captions: int = 8_000, english: int = 4_000, seed: int = 5) -> Iterator[str]:
    """Yield training prompts of the bundled SAE: captions, and English texts without the held-out synonyms.

    The English texts are WordNet's glosses and examples, and names and keywords of emoji.

    Args:
        captions: Number of captions.
        english: Number of English texts. If not 0, WordNet's database is needed (Debian's wordnet-base).
        seed: Seed of the sampling.

    Raises:
        ExciseError: English texts are needed and WordNet's database is not installed.
    """
    rng = random.Random(seed)
    for _ in range(captions):
        yield sample_caption(rng, sample_scene(rng))
    if english:
        texts = [t.text for t in corpus(captions=0) if t.kind != "word" and not mentions_synonym(t.text)]
        yield from rng.sample(texts, english)


def labelled(n: int, seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """Return `n` captions as in the model's training, each with the objects and the style that it names."""
    rng = random.Random(f"labelled {seed}")
    rows: list[tuple[str, tuple[str, ...]]] = []
    while len(rows) < n:
        scene = sample_scene(rng)
        style = scene.style if rng.random() < 0.75 else None
        place = scene.background if rng.random() < 0.67 else None
        concepts = (*scene.objects, *([style] if style else []))
        if concepts:
            rows.append((caption(rng, scene.objects, style, place), concepts))
    return rows


def direct(name: str, n: int, seed: int = 0) -> list[str]:
    """Return prompts with the object alone, worded as in training, without its held-out style."""
    rng = random.Random(f"direct {name} {seed}")
    return [caption(rng, (name,), _style(rng, name), rng.choice(BACKGROUNDS)) for _ in range(n)]


def synonym(name: str, n: int, seed: int = 0) -> list[str]:
    """Return prompts as `direct`, with the object's held-out synonyms in turn instead of its name.

    Raises:
        ExciseError: The object has no synonyms.
    """
    rng = random.Random(f"synonym {name} {seed}")
    if name not in SYNONYMS:
        raise ExciseError(f"{name!r} has no held-out synonyms to measure on; choose from {', '.join(SYNONYMS)}")
    words = SYNONYMS[name]
    return [caption(rng, (words[i % len(words)],), _style(rng, name), rng.choice(BACKGROUNDS)) for i in range(n)]


def mixed(name: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return prompts with the object and a partner, in either order, each with the partner's name."""
    rng = random.Random(f"mixed {name} {seed}")
    partners = [o for o in OBJECTS if o != name and frozenset((o, name)) not in HELD_OUT_PAIRS]
    rows = []
    for i in range(n):
        partner = rng.choice(partners)
        things = (name, partner) if i % 2 else (partner, name)
        rows.append((caption(rng, things, _style(rng, *things), rng.choice(BACKGROUNDS)), partner))
    return rows


def unrelated(name: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return prompts with another object alone, each with that object's name."""
    rng = random.Random(f"unrelated {name} {seed}")
    others = [o for o in OBJECTS if o != name]
    rows = []
    for _ in range(n):
        other = rng.choice(others)
        rows.append((caption(rng, (other,), _style(rng, other), rng.choice(BACKGROUNDS)), other))
    return rows


def _style(rng: random.Random, *objects: str) -> str:
    return rng.choice([s for s in STYLES if all(HELD_OUT_STYLES.get(o) != s for o in objects)])
