"""Corpus of the text encoder: WordNet's words, glosses and examples, names and keywords of emoji, captions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from excise.errors import ExciseError
from excise.files import read_text
from excise.reference import data
from excise.reference.captions import caption
from excise.reference.scenes import sample_caption, sample_scene
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES, SYNONYMS

WORDNET = Path("/usr/share/wordnet")
"""Folder of the database from Debian's package wordnet-base."""
PARTS = ("noun", "verb", "adj", "adv")
"""WordNet's parts of speech."""
CONCRETE = {"05", "06", "08", "13", "17", "18", "20"}
"""WordNet's files of visible things: animals, artefacts, body parts, food, objects, people, plants."""


@dataclass(frozen=True)
class Text:
    text: str
    kind: str
    """'gloss', 'example', 'word', 'emoji', 'scene' (a noun of a visible thing in a caption) or 'caption'."""


def mentions_synonym(text: str) -> bool:
    """Return whether the text contains a held-out synonym as a word, singular or plural."""
    return _SYNONYM.search(text.lower()) is not None


_SYNONYM = re.compile(r"\b(" + "|".join(re.escape(w) for ws in SYNONYMS.values() for w in ws) + r")(s|es)?\b")


def has_wordnet() -> bool:
    """Return whether WordNet's database is installed on this machine."""
    return (WORDNET / "data.noun").exists()


def glosses(folder: Path | None = None, parts: Sequence[str] = PARTS) -> Iterator[tuple[list[str], str]]:
    """Yield the fields and the gloss of every synset of some parts of speech, in the order of the files (wndb(5WN)).

    Raises:
        ExciseError: WordNet's database is not installed.
    """
    folder = folder or WORDNET
    if missing := [part for part in parts if not (folder / f"data.{part}").exists()]:
        raise ExciseError(f"no data.{missing[0]} of WordNet in {folder}; install Debian's package wordnet-base")
    for part in parts:
        for line in read_text(folder / f"data.{part}").splitlines():
            if not line.startswith("  "):  # the licence
                head, _, gloss = line.partition(" | ")
                yield head.split(), gloss


def synsets(folder: Path | None = None) -> Iterator[tuple[str, list[str], str, list[str]]]:
    """Yield lexicographer file, lemmas, definition and examples of every synset. Raises as `glosses`."""
    for fields, gloss in glosses(folder):
        count = int(fields[3], 16)
        lemmas = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2]]
        yield fields[1], lemmas, gloss.split('; "')[0].strip(), quoted(gloss, 8)


def quoted(gloss: str, least: int) -> list[str]:
    """Return the examples in a gloss, which stand in quotation marks, of at least so many characters."""
    return re.findall(rf'"([^"]{{{least},}})"', gloss)


def emoji_texts() -> Iterator[str]:
    """Yield every emoji's name, and its name with its keywords (npm's emojilib), without held-out synonyms."""
    for line in read_text(data.folder() / "emoji_words.txt").splitlines():
        if not mentions_synonym(line):
            yield line.partition(":")[0]
            yield line


def corpus(seed: int = 0, captions: int = 24_000) -> list[Text]:
    """Return every text that the encoder is distilled on, in a fixed order.

    WordNet is a dictionary, so it explains held-out synonyms such as "pistol", but none of them occurs in a caption.
    """
    rng = random.Random(seed)
    texts: dict[str, Text] = {}

    def add(text: str, kind: str) -> None:
        if 2 < len(text) < 160:
            texts.setdefault(text, Text(text, kind))

    for file, lemmas, definition, examples in synsets():
        concrete = file in CONCRETE
        if concrete or rng.random() < 0.25:
            add(definition, "gloss")
        for example in examples:
            if rng.random() < 0.4:
                add(example, "example")
        for lemma in lemmas:
            if concrete or rng.random() < 0.5:
                add(lemma, "word")
            if concrete and not mentions_synonym(lemma) and lemma.islower():
                if rng.random() < 0.25:
                    add(f"{lemma}, {definition}", "gloss")
                style = rng.choice(STYLES) if rng.random() < 0.5 else None
                place = rng.choice(BACKGROUNDS) if rng.random() < 0.6 else None
                things = (lemma,) if rng.random() < 0.7 else tuple(rng.sample((lemma, rng.choice(OBJECTS)), 2))
                add(caption(rng, things, style, place), "scene")
    for text in emoji_texts():
        add(text, "emoji")
    for _ in range(captions):
        add(sample_caption(rng, sample_scene(rng)), "caption")
    return list(texts.values())
