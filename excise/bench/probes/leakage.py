"""Attribute leakage: does the object next to an erased one take on its colours?

SEE asks whether attributes of an erased thing move to other things of the prompt (Saha et al. 2025, "Side Effects of
Erasing Concepts from Diffusion Models", EMNLP Findings, arXiv 2508.15124). Only its abstract could be read, so prompts
and constants are ours. The bundled model's only words for attributes are styles, and a style is that of the whole
picture. What can move from one object to another is its colours: those of its drawing that neither the other object nor
the background has.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from itertools import islice, product
from typing import Any

import numpy as np

from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.families import numbered
from excise.bench.suite import Case
from excise.drawn import Pixels
from excise.reference.captions import caption
from excise.reference.scenes import PAIRED_SIZE, SIZE, backdrop, sprite
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES

NEAR = 32
"""Largest difference of a channel, of 255, between a pixel and a colour that it is taken for."""
APART = 48
"""A pixel shows neither the partner nor the background if a channel differs from both by more than this."""
DISTINCT = 0.5
"""Least share of the target's drawing that is `APART` from the partner's colours and the background's."""
LEAK = 0.3
"""Least share of the partner's half, background left out, that has the target's colours if they leaked."""
OWN = 0.15
"""Largest such share of an unerased picture that counts."""

Colours = np.ndarray[Any, np.dtype[np.int16]]


def written(concept: str, family: str, n: int) -> list[Case]:
    """Return up to `n` captions of an object and a partner of other colours, the left one first; none for a style.

    The target is on the left in the first case, on the right in the second, and so on.
    """
    if is_style(concept):
        return []
    rng = random.Random(f"leakage {concept}")
    every = [
        (partner, style, background)
        for partner, style, background in product(OBJECTS, STYLES, BACKGROUNDS)
        if partner != concept and frozenset((partner, concept)) not in HELD_OUT_PAIRS
        if style not in (HELD_OUT_STYLES.get(concept), HELD_OUT_STYLES.get(partner))
    ]
    rng.shuffle(every)
    chosen = (one for one in every if distinct(concept, *one) >= DISTINCT)
    rows = []
    for i, (partner, style, background) in enumerate(islice(chosen, n)):
        things = (partner, concept) if i % 2 else (concept, partner)
        text = caption(rng, things, style, background)
        rows.append(numbered(Case("", concept, family, text, 0, (partner,), style, background), family, i))
    return rows


@cache
def colours(thing: str, style: str) -> Colours:
    """Return the colours of an object's drawing as one of two, `[n, 3]`: its pixels that hide the background."""
    drawing = sprite(thing, style, PAIRED_SIZE)
    return np.asarray(drawing[drawing[..., 3] > 127][:, :3], np.int16)


@cache
def distinct(target: str, partner: str, style: str, background: str) -> float:
    """Return the share of the target's pixels that are `APART` from all colours of the partner and the background."""
    own, ground = colours(target, style), backdrop(background, style)[::4, ::4].reshape(-1, 3).astype(np.int16)
    return float(((apart(own, colours(partner, style)) > APART) & (apart(own, ground) > APART)).mean())


def apart(pixels: Colours, known: Colours) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return the distance `[n]` of pixels `[n, 3]` from the nearest of some colours `[m, 3]`: the largest difference of
    a channel, of 255."""
    by_channel = [np.abs(np.subtract.outer(pixels[:, n], known[:, n])) for n in range(3)]
    return np.asarray(np.maximum.reduce(by_channel).min(1))


def tinted(case: Case, picture: Pixels) -> float:
    """Return how much of the partner's half of a picture `[64, 64, 3]` has colours that only the target's drawing has.

    Returns:
        The share, 0 to 1, of the pixels that differ from the background; 0 if none does.
    """
    (partner,) = case.keeps
    half = slice(0, SIZE // 2) if partner_is_left(case) else slice(SIZE // 2, SIZE)
    pixels, ground = (
        one[:, half].reshape(-1, 3).astype(np.int16) for one in (picture, backdrop(case.background, case.style))
    )
    shown = pixels[np.abs(pixels - ground).max(-1) > APART]
    if not len(shown):
        return 0.0
    strange = apart(shown, colours(partner, case.style)) > APART
    return float((strange & (apart(shown, colours(case.concept, case.style)) <= NEAR)).mean())


def partner_is_left(case: Case) -> bool:
    """Return whether the caption names the partner first, which training pictures show on the left."""
    return bool(case.seed % 2)


def can_show(seen: Mapping[str, Any]) -> bool:
    """Return whether an unerased picture can show a leak later: both objects are there, the partner in its colours."""
    return bool(seen["target"] and all(seen["kept"]) and seen["tinted"] <= OWN)


def leaked(seen: Mapping[str, Any]) -> bool:
    """Return whether an erased picture shows a leak: what is in the partner's place has the target's colours.

    A picture that still shows the target is a failure of another kind, and so is another style or background. The
    partner need not be recognised: in the target's colours, both judges overlook nearly all.
    """
    return bool(not seen["target"] and seen["style"] and seen["background"] and seen["tinted"] >= LEAK)
