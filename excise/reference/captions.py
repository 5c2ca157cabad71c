"""Captions of scenes, in many wordings and lengths. Some wordings are held out from training.

A caption names every object of its scene, the left one first. It may leave out style and background.
"""

from __future__ import annotations

import random
from typing import Literal

Split = Literal["train", "held_out"]

PLACES: dict[str, dict[Split, tuple[str, ...]]] = {
    "white": {"train": ("on a white background", "on plain white"), "held_out": ("with nothing but white behind",)},
    "sky": {"train": ("in the sky", "against a blue sky"), "held_out": ("high up in the clear blue air",)},
    "grass": {"train": ("on grass", "in a green meadow"), "held_out": ("out on the lawn",)},
    "sand": {"train": ("on sand", "on the beach"), "held_out": ("lying in the sandy desert",)},
    "sunset": {"train": ("at sunset", "under an orange sky"), "held_out": ("in the glow of the evening sun",)},
    "pink": {"train": ("on a pink background", "on pink paper"), "held_out": ("before a rosy pink wall",)},
    "squared": {"train": ("on squared paper", "on graph paper"), "held_out": ("on a page of a maths notebook",)},
    "wood": {"train": ("on a wooden table", "on wood"), "held_out": ("on brown planks",)},
}

# {it} is the subject with its article, {style} the style as a phrase, {place} the background. In a form without
# {style}, the style is an adjective of the subject, if there is a style.
FORMS: dict[Split, tuple[str, ...]] = {
    "train": (
        "{it} {place}",
        "{it} {place}, {style}",
        "{it}, {style}, {place}",
        "{style}, {it} {place}",
        "a picture of {it} {place}",
        "a picture of {it} {place}, {style}",
        "a drawing of {it} {place}",
        "a drawing of {it}, {style}, {place}",
        "an emoji of {it} {place}",
        "an illustration of {it} {place}, {style}",
        "{place}, {it}",
        "{place} there is {it}",
        "there is {it} {place}",
        "a small picture showing {it} {place}, drawn {style}",
        "a square image with {it} {place}, simple and clear, {style}",
        "this is {it}, seen {place}, and nothing else, drawn {style} by a careful artist",
        "one can see {it} {place}",
        "clip art, {it} {place}, {style}",
    ),
    "held_out": (
        "please paint {it} for me {place}, {style}",
        "my favourite sticker: {it} {place}",
        "the artist sketched {it} {place} this morning, {style}",
        "{it} is what you see here, {place}",
        "an icon depicting {it} {place}, rendered {style}",
    ),
}
JOINS: dict[Split, tuple[str, ...]] = {
    "train": ("{a} and {b}", "{a} next to {b}", "{a} with {b}", "{a} beside {b}", "{a}, {b}"),  # words: ok
    "held_out": ("{a} together with {b}", "{a} to the left of {b}"),
}
EMPTY = ("nothing", "an empty scene", "an empty place", "no object at all")
STYLE_PHRASES = ("in {s} style", "in the {s} style", "{s} style")


def article(noun: str) -> str:
    """Return the noun phrase with its indefinite article: 'an apple'."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(
    rng: random.Random,
    objects: tuple[str, ...],
    style: str | None = None,
    place: str | None = None,
    split: Split = "train",
) -> str:
    """Return a caption for a scene of zero, one or two objects, with style and background if given.

    `objects` are the words to use, which may be synonyms. `split` selects the wordings of training, or the held-out
    ones for form, join and background phrase.
    """
    form = rng.choice([f for f in FORMS[split] if style is not None or "{style}" not in f])
    adjective = style is not None and "{style}" not in form
    named = [article(f"{style} {o}" if adjective else o) for o in objects]
    if not named:
        it = rng.choice(EMPTY) + (f" in {style} style" if adjective else "")
    elif len(named) == 1:
        it = named[0]
    else:
        it = rng.choice(JOINS[split]).format(a=named[0], b=named[1])
    text = form.format(
        it=it,
        style=rng.choice(STYLE_PHRASES).format(s=style),
        place=rng.choice(PLACES[place][split]) if place else "",
    )
    return " ".join(text.replace(" ,", ",").split()).strip(", ")
