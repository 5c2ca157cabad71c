"""Structurally balanced concept/deconcept pairs from templates.

Eq. 6 keeps a neuron that never fires on the deconcept side. "A gun and a cat" against "a cat" therefore also selects
the neuron of "and": in a trial it came first for gun, knife and umbrella alike. Here every concept prompt has a twin
that differs only in the mention ("a dog and a cat"), so each form, join, place, style and partner of the concept side
is on the deconcept side too. Every fifth pair repeats a concept prompt with the paper's "mention removed" ("a cat").
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
    """Return a concept with pairs from templates, and controls in the same wordings without it.

    The same arguments give the same pairs on every machine.

    Args:
        mentions: The concept's words, used in turn.
        n: Number of pairs; the paper uses 100.
        kind: How to use the mentions: as nouns ("object"), as styles, or as adjectives of people ("attribute").
        controls: Number of control prompts.

    Raises ExciseError for empty mentions, n < 1, or if there are not enough different pairs.
    """
    concept = Concept(name, tuple(mentions), kind=kind)
    if n < 1 or controls < 0:
        raise ExciseError(f"cannot make {n} pairs and {controls} controls; ask for at least 1 pair and 0 controls")
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
    """Options drawn in shuffled rounds, so that each comes about equally often."""

    def __init__(self, rng: random.Random, options: Sequence[str], what: str) -> None:
        if not options:
            raise ExciseError(f"every {what} contains a mention of the concept; use narrower mentions")
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
    """Prompt before it is written out. The same scene with one word changed is its twin."""

    form: str
    things: tuple[str, ...]  # nouns, without the style adjective
    join: str = "{a}, {b}"
    style: str = ""
    style_phrase: str = "{s} style"
    place: str = ""
    subject: int = 0  # index of the thing with the concept
    attributes: tuple[tuple[str, str], ...] = ()  # texts before and after each thing

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


def is_name(phrase: str) -> bool:
    """Return whether a phrase is a name, such as "Paris"."""
    return phrase.split()[-1][:1].isupper()


def with_article(phrase: str) -> str:
    """Return the phrase with its indefinite article: 'an apple'. Names ('Paris') get none."""
    if is_name(phrase):
        return phrase
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def alike(mention: str) -> tuple[str, ...]:
    """Return nouns that fit a sentence as the mention does: same article (or a name), one word or several."""
    if is_name(mention):
        return words.NAMES
    nouns = (*words.OBJECTS, *words.VOWEL_NOUNS, *words.TWO_WORD_NOUNS, *words.VOWEL_TWO_WORD_NOUNS)
    return tuple(n for n in nouns if _make(n) == _make(mention))


def _make(noun: str) -> tuple[bool, bool]:
    return noun[0].lower() in "aeiou", " " in noun


def _put(items: tuple[_T, ...], at: int, new: _T) -> tuple[_T, ...]:
    return (*items[:at], new, *items[at + 1 :])


class _Writer:
    """Generator of random scenes with the concept, and of their changed versions."""

    def __init__(self, concept: Concept, rng: random.Random) -> None:
        self.kind, self._mentions = concept.kind, concept.mentions

        def deck(options: Sequence[str], what: str) -> _Deck:
            return _Deck(rng, [o for o in options if not mentioned(o, concept.mentions)], what)

        self._mention_deck = _Deck(rng, concept.mentions, "mention")
        self._plain = deck([f for f in words.FORMS if "{style}" not in f], "form")
        self._styled = deck([f for f in words.FORMS if "{style}" in f], "form")
        self._joins, self._phrases = deck(words.JOINS, "join"), deck(words.STYLE_PHRASES, "style phrase")
        self._places = deck(words.PLACES, "place")
        self._empty = deck(words.EMPTY, "empty scene")
        # Mentions are often among the nouns; `deck` leaves out those and every noun that contains one.
        self._nouns = deck(words.PEOPLE if concept.kind == "attribute" else words.OBJECTS, "noun")
        self._styles = deck(words.STYLES, "style")
        # Decks rather than coin flips, so that few draws have all combinations too.
        self._looks = _Deck(rng, ("", "", "adjective", "phrase"), "look")
        self._where = _Deck(rng, ("yes", "no"), "coin")
        self._close = _Deck(rng, ("yes", "yes", "yes", "no"), "coin")
        pools = {m: self._pool(m) for m in concept.mentions}
        self._others = {m: deck(pool, "other word") for m, pool in pools.items()}

    def _pool(self, mention: str) -> tuple[str, ...]:
        """Return the words that may replace the mention."""
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
        """Return a scene with the concept. The first two have the shortest and the longest wording."""
        structure = _STRUCTURES[number % len(_STRUCTURES)]
        mention = self._mention_deck.draw()
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
        """Return the texts before and after the noun, with the word used like the mention."""
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
        """Return the scene with the mention replaced by another word."""
        mention = self._mention_in(scene)
        other = self._others[mention]
        if self.kind == "style":
            return replace(scene, style=other.draw())
        if self.kind == "attribute":
            attribute = self._attribute(mention, other.draw())
            return replace(scene, attributes=_put(scene.attributes, scene.subject, attribute))
        # Several words are always replaced by several, or the longest prompts would reach positions no twin reaches.
        deck = other if " " in mention or self._close.draw() == "yes" else self._nouns
        word = deck.draw(lambda w: w not in scene.things)
        return replace(scene, things=_put(scene.things, scene.subject, word))

    def removed(self, scene: _Scene) -> _Scene:
        """Return the scene without the mention: the partner alone or an empty scene, or without style or attribute."""
        if self.kind == "style":
            form = self._plain.draw() if "{style}" in scene.form else scene.form
            return replace(scene, style="", form=form)
        if self.kind == "attribute":
            return replace(scene, attributes=_put(scene.attributes, scene.subject, ("", "")))
        rest = tuple(t for i, t in enumerate(scene.things) if i != scene.subject)
        return replace(scene, things=rest or (self._empty.draw(),), subject=0)

    def controls(self, n: int, taken: set[str]) -> Iterator[str]:
        """Yield prompts without the concept, in the same wordings, other than the pairs' deconcept sides."""
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
