"""Accuracy of the reference model's pictures, for its model card.

Families of prompts: single objects and pairs as in training, held-out wordings, held-out pairs, objects in their
held-out style, and synonyms that no caption contains.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import StableDiffusionPipeline

from excise.reference.bundle import generate, judge
from excise.reference.captions import Split, caption
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES, SYNONYMS


@dataclass(frozen=True)
class Request:
    """A prompt and the content of a correct picture."""

    prompt: str
    objects: tuple[str, ...]
    style: str
    background: str


def requests(family: str, n: int, seed: int = 0) -> list[Request]:
    """Return `n` requests of a family: single, pair, wording, held_out_pair, held_out_style or synonym."""
    rng = random.Random(f"{family} {seed}")
    rows = []
    for i in range(n):
        split: Split = "held_out" if family == "wording" else "train"
        objects: tuple[str, ...] = (OBJECTS[i % len(OBJECTS)],)
        words = objects
        style = rng.choice([s for s in STYLES if HELD_OUT_STYLES.get(objects[0]) != s])
        if family in ("pair", "held_out_pair"):
            unseen = family == "held_out_pair"
            while True:
                objects = (objects[0], rng.choice(OBJECTS))
                if objects[0] != objects[1] and (frozenset(objects) in HELD_OUT_PAIRS) == unseen:
                    break
            style = rng.choice([s for s in STYLES if all(HELD_OUT_STYLES.get(o) != s for o in objects)])
            words = objects
        elif family == "held_out_style":
            name, style = sorted(HELD_OUT_STYLES.items())[i % len(HELD_OUT_STYLES)]
            objects = words = (name,)
        elif family == "synonym":
            pairs = [(w, o) for o, ws in SYNONYMS.items() for w in ws]
            word, name = pairs[i % len(pairs)]
            objects, words = (name,), (word,)
            style = rng.choice([s for s in STYLES if HELD_OUT_STYLES.get(name) != s])
        background = rng.choice(BACKGROUNDS)
        rows.append(Request(caption(rng, words, style, background, split), objects, style, background))
    return rows


FAMILIES = ("single", "pair", "wording", "held_out_pair", "held_out_style", "synonym")


def evaluate(
    pipe: StableDiffusionPipeline, n: int = 200, steps: int = 20, progress: Callable[[float], Any] | None = None
) -> dict[str, dict[str, list[bool]]]:
    """Generate and judge `n` pictures of each family, with seeds 0 to n - 1.

    Returns:
        By family, for each picture: whether all objects are recognised, any of them, the style, and the background.
    """
    bundled_judge = judge()
    outcomes = {}
    for family in FAMILIES:
        rows = requests(family, n)
        images = generate(pipe, [r.prompt for r in rows], range(n), steps=steps, progress=progress)
        verdicts = bundled_judge(images)
        hits = [[bool(verdicts.objects[i, OBJECTS.index(o)]) for o in r.objects] for i, r in enumerate(rows)]
        outcomes[family] = {
            "objects": [all(h) for h in hits],
            "any_object": [any(h) for h in hits],
            "style": [STYLES[s] == r.style for s, r in zip(verdicts.style, rows, strict=True)],
            "background": [BACKGROUNDS[b] == r.background for b, r in zip(verdicts.background, rows, strict=True)],
        }
    return outcomes
