"""The further families of Canvas: what they write, and that a default run is without them."""

from __future__ import annotations

import random
import unicodedata

import pytest

from excise import reference
from excise.bench.canvas.disguises import (
    DISGUISES,
    EMOJI,
    FURTHER,
    INVISIBLE,
    WORDNET,
    homoglyph,
    leetspeak,
    split,
    zero_width,
)
from excise.bench.canvas.families import EVERY, FAMILIES, cases
from excise.bench.canvas.suite import Canvas
from excise.concepts.concept import mentioned
from excise.pipeline import as_diffusers
from excise.reference.training.text_corpus import WORDNET as DATABASE
from excise.reference.training.text_corpus import has_wordnet
from excise.reference.world import OBJECTS, STYLES, SYNONYMS

CONCEPTS = (*OBJECTS, *STYLES)
NAMES = {family.name for family in FURTHER}


def written(concept: str, family: str, n: int = 12) -> list[str]:
    return [case.prompt for case in Canvas(only=(family,), prompts=n).cases(concept, "quick")]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_further_family_hides_the_name_or_keeps_it(concept: str) -> None:
    for family in NAMES:
        for prompt in written(concept, family):
            assert bool(mentioned(prompt, (concept,))) == (family in ("flood", "late", "three-objects")), prompt
    missing = {family for family in NAMES if not written(concept, family)}
    assert missing == ({"emoji"} if concept in STYLES else set()) | (set() if concept in WORDNET else {"wordnet"})


def test_a_default_run_is_without_them() -> None:
    assert not NAMES & {case.family for case in Canvas().cases("gun", "standard")}
    assert (*FAMILIES, *FURTHER) == EVERY and Canvas().families == EVERY
    assert {case.family for case in cases("gun", 2, FURTHER)} == NAMES


def test_digits_stand_for_letters() -> None:
    rng = random.Random(0)
    assert [leetspeak("tiger", i, rng) for i in range(4)] == ["t1g3r", "7i9er", "7193r", "t1g3r"]
    assert leetspeak("ink", 1, rng) == "1nk"  # there is no digit for n or k


def test_lookalikes_are_of_another_alphabet() -> None:
    rng = random.Random(0)
    for concept in CONCEPTS:
        every, one = homoglyph(concept, 0, rng), homoglyph(concept, 1, rng)
        assert len(every) == len(one) == len(concept)
        assert [a != b for a, b in zip(one, concept, strict=True)].count(True) == 1
        for a, b in zip(every, concept, strict=True):
            assert a == b or unicodedata.name(a) != f"LATIN SMALL LETTER {b.upper()}"
            assert a == b or not a.isascii()
    assert sum(c.isascii() for c in homoglyph("panda", 0, rng)) == 0


def test_characters_without_width_leave_the_letters() -> None:
    rng = random.Random(0)
    seen = set()
    for i in range(8):
        made = zero_width("gun", i, rng)
        marks = [c for c in made if c in INVISIBLE]
        assert "".join(c for c in made if c not in INVISIBLE) == "gun" and len(marks) == (1 if i % 2 else 2)
        assert all(unicodedata.category(c) == "Cf" for c in marks)
        seen |= set(marks)
    assert seen == set(INVISIBLE)


def test_a_word_is_split() -> None:
    rng = random.Random(0)
    assert [split("gun", i, rng) for i in (0, 2, 4, 6)] == ["g u n", "g-u-n", "g.u.n", "g_u_n"]
    assert {split("gun", 1, rng) for _ in range(20)} == {"g un", "gu n"}


def test_every_object_has_its_emoji() -> None:
    assert set(EMOJI) == set(OBJECTS)
    odd = {"gun": "PISTOL", "knife": "HOCHO", "cake": "BIRTHDAY CAKE", "ice cream": "SOFT ICE CREAM",
           "skull": "SKULL", "cigarette": "SMOKING SYMBOL", "pizza": "SLICE OF PIZZA", "apple": "RED APPLE",
           "car": "AUTOMOBILE", "house": "HOUSE BUILDING", "tree": "DECIDUOUS TREE", "star": "WHITE MEDIUM STAR",
           "heart": "HEAVY BLACK HEART", "dagger": "DAGGER KNIFE"}  # fmt: skip
    for concept, one in EMOJI.items():
        name = unicodedata.name(one)
        assert name == odd.get(concept, name) and (concept in odd or concept.upper() in name), name


@pytest.mark.usefixtures("one_bundled_pipe")
@pytest.mark.parametrize("concept", CONCEPTS)
def test_floods_fill_the_text_encoder_and_late_words_come_after_60_tokens(concept: str) -> None:
    tokenizer = as_diffusers(reference.load()).tokenizer

    def tokens(text: str) -> int:
        return len(tokenizer(text).input_ids) - 2

    for prompt in written(concept, "flood"):
        assert tokens(prompt) >= 75 and tokens(prompt.split(";")[0]) < 40
    for case in Canvas(only=("late",), prompts=12).cases(concept, "quick"):
        before, _, end = case.prompt.rpartition("; ")
        assert tokens(f"{before};") >= 60 and tokens(case.prompt) <= 75 and mentioned(end, (concept,))
        assert (case.style, case.background) == (concept if concept in STYLES else "", "")


def test_three_objects_are_named_and_kept() -> None:
    for concept in CONCEPTS:
        for case in Canvas(only=("three-objects",), prompts=6).cases(concept, "quick"):
            assert len(case.keeps) == (3 if concept in STYLES else 2) and concept not in case.keeps
            assert all(mentioned(case.prompt, (thing,)) for thing in case.keeps)
            assert mentioned(case.prompt, (case.style,))


@pytest.mark.skipif(not has_wordnet(), reason="wordnet-base is not installed")
def test_wordnet_has_these_words_below_the_concept() -> None:
    synsets: dict[str, tuple[set[str], list[str]]] = {}
    for line in (DATABASE / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):
            continue
        fields = line.partition(" | ")[0].split()
        words = int(fields[3], 16)
        lemmas = {word.replace("_", " ") for word in fields[4 : 4 + 2 * words : 2]}
        links = fields[5 + 2 * words :]
        below = [links[n + 1] for n in range(0, len(links) - 3, 4) if links[n] in ("~", "~i")]
        synsets[fields[0]] = (lemmas, below)

    def under(key: str) -> set[str]:
        lemmas, below = synsets[key]
        return lemmas.union(*map(under, below))

    for concept, words in WORDNET.items():
        known = set().union(*(under(key) for key, (lemmas, _) in synsets.items() if concept in lemmas))
        assert set(words) <= known, (concept, set(words) - known)
        assert not {word.lower() for word in words} & set(SYNONYMS.get(concept, ()))


def test_disguises_are_the_families_of_other_spellings() -> None:
    assert set(DISGUISES) == NAMES - {"flood", "late", "three-objects"}
