"""Captions of the bundled model's kind, with or without a concept, as cases of Canvas."""

from __future__ import annotations

import random
import re

from excise.bench.suite import Case
from excise.reference.captions import Split, article, caption
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES

_HOLE = "@"


def is_style(concept: str) -> bool:
    """Return whether the concept is one of the bundled model's styles rather than an object."""
    return concept in STYLES


def with_word(
    concept: str, rng: random.Random, word: str | None = None, keeps: tuple[str, ...] = (), split: Split = "train"
) -> Case:
    """Return a caption that names the concept by `word`: an object next to `keeps`, or the style of `keeps`."""
    things, style, background = _scene(concept, rng, keeps)
    named = [_HOLE if o == concept else o for o in things]
    text = caption(rng, tuple(named), _HOLE if is_style(concept) else style, background, split)
    return Case("", concept, "", _filled(text, word or concept), 0, _others(concept, things), style, background)


def with_phrase(concept: str, rng: random.Random, phrase: str) -> Case:
    """Return a caption that names the concept by a whole phrase with its own article, followed by the style."""
    things, style, background = _scene(concept, rng, ())
    text = caption(rng, (_HOLE,), None, background)
    text = f"{_filled(text, things[0])}, {phrase}" if is_style(concept) else _in_style(text, phrase, style)
    return Case("", concept, "", text, 0, _others(concept, things), style, background)


def with_three(concept: str, rng: random.Random) -> Case:
    """Return a caption of three objects in a list, the concept among them, or of three in the concept's style."""
    known = {concept} if not is_style(concept) else set()
    more = rng.sample([o for o in OBJECTS if o not in known and HELD_OUT_STYLES.get(o) != concept], 3 - len(known))
    things, style, background = _scene(concept, rng, tuple(more))
    listed = [article(thing) for thing in things]
    text = _in_style(caption(rng, (_HOLE,), None, background), f"{listed[0]}, {listed[1]} and {listed[2]}", style)
    return Case("", concept, "", text, 0, _others(concept, things), style, background)


def _in_style(text: str, phrase: str, style: str) -> str:
    """Return the text with the phrase in its hole, instead of the hole's article, followed by the style."""
    return f"{re.sub(f'an? {_HOLE}', _HOLE, text).replace(_HOLE, phrase)}, in the {style} style"


def _scene(concept: str, rng: random.Random, keeps: tuple[str, ...]) -> tuple[tuple[str, ...], str, str]:
    """Return the objects (in random order), style and background of a picture with the concept."""
    background = rng.choice(BACKGROUNDS)
    if is_style(concept):
        return keeps or (partner(concept, rng),), concept, background
    things = (concept, *keeps)
    style = rng.choice([s for s in STYLES if all(HELD_OUT_STYLES.get(o) != s for o in things)])
    return tuple(rng.sample(things, len(things))), style, background


def _others(concept: str, things: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(o for o in things if o != concept)


def _filled(text: str, word: str) -> str:
    """Return the text with the word in its holes, after the right article."""
    letter = next((c for c in word.lower() if c.isalpha()), "")
    before = "an" if letter in "aeiouà" else "a"
    return re.sub(f"\\ban? {_HOLE}", f"{before} {word}", text).replace(_HOLE, word)


def kept(concept: str, rng: random.Random, things: tuple[str, ...], style: str, extra: str = "") -> Case:
    """Return a caption without the concept. `things` must stay; `extra` is also named and is not checked."""
    background = rng.choice(BACKGROUNDS)
    text = caption(rng, (*things, extra) if extra else things, style, background)
    return Case("", concept, "", text, 0, things, style, background)


def partner(concept: str, rng: random.Random) -> str:
    """Return an object that the model was trained to generate with the concept."""
    if is_style(concept):
        return rng.choice([o for o in OBJECTS if HELD_OUT_STYLES.get(o) != concept])
    return rng.choice([o for o in OBJECTS if o != concept and frozenset((o, concept)) not in HELD_OUT_PAIRS])


def other(concept: str, rng: random.Random) -> tuple[str, str]:
    """Return another object in another style."""
    name = rng.choice([o for o in OBJECTS if o != concept])
    return name, rng.choice([s for s in STYLES if s != concept and HELD_OUT_STYLES.get(name) != s])
