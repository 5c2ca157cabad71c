"""SNCE's printed concepts: the concept tuples and the pairs of Table 5, letter for letter.

The paper's own slips are kept:
- It gives the tuples of "nudity" and "violence" only. Those of "gun" and "knife" here are the words in its Table 5.
- gun 3 reads "As silver flashlight" for "A silver flashlight"; gun 4 "A vintage leaning" and knife 2 "A pocket with"
  lose their noun with the mention.
- gun 1-3 and knife 3 replace the mention (and "barrel") instead of removing it, contrary to "with m removed" in step 1.
- violence 3 and 4 have "bloody", which is not in the tuple; violence 3 keeps the knife, itself a target.
- gun 0, knife 0, 1 and 4 lose the comma or the "and" with the mention, so the neuron of that word passes eq. 6. The
  pairs of `excise.concepts.templates` do not.
"""

from __future__ import annotations

from excise.concepts.concept import Concept, Kind, Pair

TUPLES: dict[str, str] = {
    "nudity": "naked, nude, bare, exposed, stripped, topless, male genitalia, penis, buttocks",
    "violence": "violence, blood, bleeding",
    "gun": "gun, sniper rifle, pistol, shotgun",
    "knife": "knife, pocket knife",
}
KINDS: dict[str, Kind] = {"nudity": "attribute", "violence": "attribute", "gun": "object", "knife": "object"}

TABLE_5: dict[str, tuple[tuple[str, str], ...]] = {
    "nudity": (
        ("A photo of a naked woman, hyperrealistic 8k", "A photo of a woman, hyperrealistic 8k"),
        (
            "Artistic nude figure posing in natural sunlight, soft focus, oil painting style",
            "Artistic figure posing in natural sunlight, soft focus, oil painting style",
        ),
        (
            "A nude woman sitting on a rock by the ocean, dramatic lighting, oil painting.",
            "A woman sitting on a rock by the ocean, dramatic lighting, oil painting.",
        ),
        (
            "Statue of a naked human form in a museum, classical sculpture details.",
            "Statue of a human form in a museum, classical sculpture details.",
        ),
        (
            "Minimalist portrait of a bare man in monochrome colors, geometric shadows, illustration",
            "Minimalist portrait of a man in monochrome colors, geometric shadows, illustration",
        ),
    ),
    "violence": (
        ("A photo of a bleeding man, hyperrealistic 8k", "A photo of a man, hyperrealistic 8k"),
        ("Close-up of bleeding robotic hand, cyberpunk style", "Close-up of robotic hand, cyberpunk style"),
        (
            "A hyperrealistic portrait of a bleeding warrior, 8k resolution",
            "A hyperrealistic portrait of a warrior, 8k resolution",
        ),
        ("A dark alley scene with a bloody knife on the ground", "A dark alley scene with a knife on the ground"),
        ("A still life of bloody bandages and medical supplies", "A still life of bandages and medical supplies"),
    ),
    "gun": (
        ("A photo of a gun, cup in the desk, hyperrealistic 8k", "A photo of a cup in the desk, hyperrealistic 8k"),
        (
            "A close-up of a smoking sniper rifle with steaming barrel in a misty forest",
            "A close-up of a smoking camera with steaming lens in a misty forest",
        ),
        (
            "A gleaming silver pistol with engraved details on a dark wooden table",
            "A gleaming silver ornament with engraved details on a dark wooden table",
        ),
        (
            "A silver pistol reflecting neon lights in an alleyway",
            "As silver flashlight reflecting neon lights in an alleyway",
        ),
        (
            "A vintage shotgun leaning against barn wood, golden hour lighting",
            "A vintage leaning against barn wood, golden hour lighting",
        ),
    ),
    "knife": (
        (
            "A photo of a knife, cup in the desk, hyperrealistic 8k",
            "A photo of a cup in the desk, hyperrealistic 8k",
        ),
        (
            "A bread, knife beside flour sack, hyperrealistic 8k",  # words: ok
            "A bread beside flour sack, hyperrealistic 8k",  # words: ok
        ),
        ("A pocket knife with red scales, macro photography", "A pocket with red scales, macro photography"),
        (
            "A knife on wooden desk, natural lighting, realistic, 8k",
            "A tool on wooden desk, natural lighting, realistic, 8k",
        ),
        ("A knife and woodblock on craft table, spotlight focus", "A woodblock on craft table, spotlight focus"),
    ),
}


def mentions(name: str) -> tuple[str, ...]:
    """Return the paper's tuple V_C as separate mentions. Raises KeyError for a name that is not in `TUPLES`."""
    return tuple(TUPLES[name].split(", "))


def table_5(name: str) -> Concept:
    """Return one of the paper's four concepts with its five printed pairs. Raises KeyError for any other name."""
    pairs = tuple(Pair(c, d, f"table 5, {name} {i}") for i, (c, d) in enumerate(TABLE_5[name]))
    return Concept(f"paper-{name}", mentions(name), pairs, kind=KINDS[name])
