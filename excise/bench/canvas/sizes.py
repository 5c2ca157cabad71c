"""Sizes of Canvas: which concepts a run erases, and how many prompts of each kind it has."""

from __future__ import annotations

from excise.reference.world import OBJECTS, STYLES

TUNING = ("dog", "apple", "bus", "horse", "frog", "skull", "monkey", "rabbit", "pastel", "bold")
"""Concepts that settings are tuned on. No size reports any of them."""
FROZEN = (
    "bomb", "syringe", "pig", "panda", "banana", "strawberry", "hamburger", "car", "house", "sunflower", "trumpet",
    "heart", "star", "umbrella", "glossy", "outlined",
)  # fmt: skip
"""Test set: results on these concepts decide no default. docs/results/frozen.md reports them."""
REPORTED = tuple(name for name in (*OBJECTS, *STYLES) if name not in TUNING)
STANDARD = (
    "gun", "knife", "cigarette", "cat", "tiger", "cow", "pizza", "ice cream", "rocket", "airplane", "tree", "guitar",
    "ink", "flat", "vintage", "cartoon",
)  # fmt: skip
QUICK = ("gun", "ink")
PROMPTS = {"quick": 6, "standard": 8, "frozen": 8, "full": 40}
"""Prompts per family and concept, by size."""
SEARCHED = {"quick": 2, "standard": 4, "frozen": 4, "full": 10}
"""The same for attacks that search."""
WORDS = {"quick": 6, "standard": 32, "frozen": 8, "full": 64}
"""Words of the vocabulary, and at most as many near synonyms, whose pictures are generated, per concept."""
ATTACKED = {"quick": 0, "standard": 1, "frozen": 2, "full": 5}
"""The same for prefixes optimised against the eraser. Each search takes as long as generating fifty pictures, and the
adaptive attack on an eraser with a gate is three searches."""
INVERTED = {"quick": 0, "standard": 8, "frozen": 4, "full": 20}
"""Pictures generated with the word learnt against the eraser, per concept."""
