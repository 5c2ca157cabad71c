"""Structurally balanced concept/deconcept pairs from templates.

Eq. 6 keeps a neuron that never fires on the deconcept side. Against "a cat", "a gun and a cat" therefore also singles
out the neuron of "and": seen in a trial, where it came first for gun, knife and umbrella alike. Here every concept
prompt has a twin which differs in the mention alone ("a dog and a cat"), so each form, join, place, style and partner
of the concept side stands on the deconcept side too. Every fifth pair repeats a concept prompt against the paper's
"mention removed" ("a cat").
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from excise.concepts import words
from excise.concepts.concept import Concept, Kind, Pair, mentioned
from excise.errors import ExciseError

_STRUCTURES = ("single", "first", "second", "single", "second", "first", "single", "first", "second", "single")
_T = TypeVar("_T")


def from_templates(
    name: str, mentions: Sequence[str], n: int = 100, seed: int = 0, kind: Kind = "object", controls: int = 60
) -> Concept:
    """A concept with `n` pairs (the paper's number is 100) and `controls` prompts in the same wordings without it.

    The mentions are used in turn, as nouns (`kind="object"`), as styles or as adjectives of people ("attribute").
    The same arguments give the same pairs on every machine.
    Raises ExciseError for empty mentions, n < 1, or where so many different pairs cannot be made.
    """
    concept = Concept(name, tuple(mentions), kind=kind)
    if n < 1 or controls < 0:
        raise ExciseError(f"cannot make {n} pairs and {controls} controls; ask for at least one pair")
    writer = _Writer(concept, random.Random(f"{seed} {kind} {' | '.join(mentions)}"))
    pairs: list[Pair] = []
    sides: set[str] = set()
    for _ in range(100 * n):
        if len(pairs) >= n:
            break
        scene = writer.scene(len(sides))
        text = scene.say()
        twin, without = writer.twin(scene).say(), writer.removed(scene).say()
        if text in sides or twin == text:
            continue
        sides.add(text)
        pairs.append(Pair(text, twin, scene.form))
        if len(sides) % 4 == 0:
            pairs.append(Pair(text, without, scene.form))
    else:
        raise ExciseError(f"templates give only {len(pairs)} different pairs for '{name}'; ask for fewer than {n}")
    taken = sides | {p.deconcept for p in pairs}
    return replace(concept, pairs=tuple(pairs[:n]), controls=tuple(writer.controls(controls, taken)))


class _Deck:
    """Draws from a list in shuffled rounds, so that each option comes about equally often."""

    def __init__(self, rng: random.Random, options: Sequence[str], what: str) -> None:
        if not options:
            raise ExciseError(f"no {what} is left that does not hold a mention of the concept; use narrower mentions")
        self.options = list(options)
        self._rng, self._cards, self._what = rng, list[str](), what

    def draw(self, suits: Callable[[str], bool] = lambda _: True) -> str:
        for _ in range(2):
            for i, card in enumerate(self._cards):
                if suits(card):
                    return self._cards.pop(i)
            self._cards += self._rng.sample(self.options, len(self.options))
        raise ExciseError(f"no {self._what} fits the mentions of the concept; use narrower mentions")


@dataclass(frozen=True)
class _Scene:
    """One prompt before it is written out: the same scene with one word changed is its twin."""

    form: str
    things: tuple[str, ...]  # nouns as they are said, style adjective apart
    join: str = "{a}, {b}"
    style: str = ""
    style_phrase: str = "{s} style"
    place: str = ""
    subject: int = 0  # which of the things holds the concept
    attributes: tuple[tuple[str, str], ...] = ()  # (before, behind) for each thing

    def say(self) -> str:
        adjective = self.style if "{style}" not in self.form else ""
        around = self.attributes or (("", ""),) * len(self.things)
        named = [
            with_article(" ".join(filter(None, (adjective, before, thing)))) + (f" {behind}" if behind else "")
            if thing not in words.EMPTY
            else thing + (f" in {adjective} style" if adjective else "")
            for thing, (before, behind) in zip(self.things, around, strict=True)
        ]
        it = named[0] if len(named) == 1 else self.join.format(a=named[0], b=named[1])
        phrase = self.style_phrase.format(s=self.style) if self.style else ""
        text = self.form.replace("{it}", it).replace("{style}", phrase).replace("{place}", self.place)
        return " ".join(text.replace(" ,", ",").split()).strip(", ")


def with_article(phrase: str) -> str:
    """The phrase with its indefinite article: 'an apple'; a name ('Paris') goes without."""
    if phrase.split()[-1][:1].isupper():
        return phrase
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def alike(mention: str) -> tuple[str, ...]:
    """Nouns that stand in a sentence as the mention does: same article (or a name), one word or several."""
    if mention.split()[-1][:1].isupper():
        return words.NAMES
    nouns = (*words.OBJECTS, *words.VOWEL_NOUNS, *words.TWO_WORD_NOUNS, *words.VOWEL_TWO_WORD_NOUNS)
    return tuple(n for n in nouns if _make(n) == _make(mention))


def _make(noun: str) -> tuple[bool, bool]:
    return noun[0].lower() in "aeiou", " " in noun


def _put(items: tuple[_T, ...], at: int, new: _T) -> tuple[_T, ...]:
    return (*items[:at], new, *items[at + 1 :])


class _Writer:
    """Draws scenes with the concept in them, and changes them."""

    def __init__(self, concept: Concept, rng: random.Random) -> None:
        self.kind, self._mentions = concept.kind, concept.mentions

        def deck(options: Sequence[str], what: str) -> _Deck:
            return _Deck(rng, [o for o in options if not mentioned(o, concept.mentions)], what)

        self._said = _Deck(rng, concept.mentions, "mention")
        self._plain = deck([f for f in words.FORMS if "{style}" not in f], "form")
        self._styled = deck([f for f in words.FORMS if "{style}" in f], "form")
        self._joins, self._phrases = deck(words.JOINS, "join"), deck(words.STYLE_PHRASES, "style phrase")
        self._places = deck(words.PLACES, "place")
        self._empty = deck(words.EMPTY, "empty scene")
        # Short mentions are often among the nouns: the deck leaves them out, with all that contain them.
        self._nouns = deck(words.PEOPLE if concept.kind == "attribute" else words.OBJECTS, "noun")
        self._styles = deck(words.STYLES, "style")
        # Decks rather than a coin each, so that short draws have all combinations too.
        self._looks = _Deck(rng, ("", "", "adjective", "phrase"), "look")
        self._where = _Deck(rng, ("yes", "no"), "coin")
        self._close = _Deck(rng, ("yes", "yes", "yes", "no"), "coin")
        pools = {m: self._pool(m) for m in concept.mentions}
        self._others = {m: deck(pool, "other word") for m, pool in pools.items()}

    def _pool(self, mention: str) -> tuple[str, ...]:
        """What may stand in the mention's stead."""
        if self.kind == "object":
            return alike(mention)
        if self.kind == "attribute" and mention in words.ATTRIBUTE_PHRASES:
            return words.ATTRIBUTE_PHRASES[mention][1]
        if self.kind == "attribute":
            return tuple(w for w in words.ADJECTIVES if _make(w)[0] == _make(mention)[0])
        if mention[:1].isupper():
            return words.NAMED_STYLES
        styles = (*words.STYLES, *words.MORE_STYLES, *words.TWO_WORD_STYLES)
        return tuple(w for w in styles if _make(w) == _make(mention))

    def scene(self, number: int) -> _Scene:
        """A scene with the concept in it; the first two are the shortest and the longest wording there is."""
        structure = _STRUCTURES[number % len(_STRUCTURES)]
        mention = self._said.draw()
        form, style = "{it} {place}", mention if self.kind == "style" else ""
        place = ""
        if number > 0:
            look = "phrase" if number == 1 else self._looks.draw(lambda x: bool(x) or not style)
            style = style or (self._styles.draw() if look else "")
            place = self._places.draw() if self._where.draw() == "yes" or number == 1 else ""
            form = (self._styled if look == "phrase" else self._plain).draw()
            form = max(self._styled.options, key=len) if number == 1 else form
        partner = self._nouns.draw()
        concept = mention if self.kind == "object" else self._nouns.draw(lambda w: w != partner)
        things = {"single": (concept,), "first": (concept, partner), "second": (partner, concept)}[structure]
        subject = 1 if structure == "second" else 0
        bare = ("", "")
        attributes = tuple(self._attribute(mention, mention) if i == subject else bare for i in range(len(things)))
        return _Scene(
            form,
            things,
            join=self._joins.draw(),
            style=style,
            style_phrase=self._phrases.draw(),
            place=place,
            subject=subject,
            attributes=attributes if self.kind == "attribute" else (),
        )

    def _attribute(self, mention: str, word: str) -> tuple[str, str]:
        """(before, behind) the noun: the word as the mention is used."""
        if mention not in words.ATTRIBUTE_PHRASES:
            return word, ""
        return "", words.ATTRIBUTE_PHRASES[mention][0].format(m=word)

    def _mention_in(self, scene: _Scene) -> str:
        if self.kind == "style":
            return scene.style
        if self.kind == "object":
            return scene.things[scene.subject]
        around = set(scene.attributes)
        return next(m for m in self._mentions if self._attribute(m, m) in around)

    def twin(self, scene: _Scene) -> _Scene:
        """The scene with another word in the mention's stead."""
        mention = self._mention_in(scene)
        other = self._others[mention]
        if self.kind == "style":
            return replace(scene, style=other.draw())
        if self.kind == "attribute":
            attribute = self._attribute(mention, other.draw())
            return replace(scene, attributes=_put(scene.attributes, scene.subject, attribute))
        # Several words are always met by several, lest the longest prompts reach positions that no twin reaches.
        deck = other if " " in mention or self._close.draw() == "yes" else self._nouns
        word = deck.draw(lambda w: w not in scene.things)
        return replace(scene, things=_put(scene.things, scene.subject, word))

    def removed(self, scene: _Scene) -> _Scene:
        """The scene without the mention: the partner alone, or an empty scene; the style or attribute just goes."""
        if self.kind == "style":
            form = self._plain.draw() if "{style}" in scene.form else scene.form
            return replace(scene, style="", form=form)
        if self.kind == "attribute":
            return replace(scene, attributes=_put(scene.attributes, scene.subject, ("", "")))
        rest = tuple(t for i, t in enumerate(scene.things) if i != scene.subject)
        return replace(scene, things=rest or (self._empty.draw(),), subject=0)

    def controls(self, n: int, taken: set[str]) -> Iterator[str]:
        """Prompts without the concept, in the same wordings, that are no pair's deconcept side."""
        given = set(taken)
        for number in range(1, 100 * n + 1):
            if len(given) - len(taken) >= n:
                return
            scene = self.twin(self.scene(number))
            if number % 12 == 0:
                scene = self.removed(replace(scene, things=scene.things[:1])) if self.kind == "object" else scene
            text = scene.say()
            if text not in given:
                given.add(text)
                yield text
