"""The reference model's objects, styles and backgrounds, and what is held out from its training.

Each is named by its word in captions. Held out for benchmarks are some pairs of objects, some objects in one of the
styles, some wordings (see `captions`), and every synonym in `SYNONYMS`: no caption, mention, pair or SAE prompt
contains them.
"""

from __future__ import annotations

from itertools import combinations

OBJECTS = (
    "gun", "knife", "dagger", "bomb", "cigarette", "syringe", "skull", "cat", "dog", "tiger", "horse", "cow", "pig",
    "frog", "panda", "bear", "monkey", "rabbit", "pizza", "apple", "banana", "strawberry", "hamburger", "cake",
    "ice cream", "rocket", "car", "bus", "bicycle", "airplane", "house", "tree", "rose", "sunflower", "guitar",
    "trumpet", "crown", "heart", "star", "umbrella",
)  # fmt: skip
STYLES = ("glossy", "flat", "outlined", "pastel", "cartoon", "vintage", "bold", "ink")
BACKGROUNDS = ("white", "sky", "grass", "sand", "sunset", "pink", "squared", "wood")

# Common words for the objects that are held out from training: 109 pairs over 39 objects (panda has none).
SYNONYMS: dict[str, tuple[str, ...]] = {
    "gun": ("pistol", "revolver", "handgun", "firearm", "rifle", "shotgun"),
    "knife": ("cleaver", "blade", "penknife", "switchblade", "machete"),
    "dagger": ("sword", "stiletto"),
    "bomb": ("explosive", "grenade", "dynamite", "warhead"),
    "cigarette": ("cigar", "tobacco"),
    "syringe": ("hypodermic", "needle", "injection"),
    "skull": ("cranium", "skeleton"),
    "cat": ("kitten", "kitty", "feline", "tabby"),
    "dog": ("puppy", "hound", "canine", "pooch"),
    "tiger": ("tigress",),
    "horse": ("pony", "stallion", "mare"),
    "cow": ("cattle", "ox", "heifer", "bovine"),
    "pig": ("hog", "swine", "piglet", "boar"),
    "frog": ("toad", "bullfrog"),
    "bear": ("grizzly",),
    "monkey": ("ape", "chimpanzee", "baboon", "macaque"),
    "rabbit": ("bunny", "hare"),
    "pizza": ("pepperoni",),
    "apple": ("granny smith",),
    "banana": ("plantain",),
    "strawberry": ("berry",),
    "hamburger": ("burger", "cheeseburger", "beefburger"),
    "cake": ("cupcake", "pastry", "gateau"),
    "ice cream": ("gelato", "sundae", "sorbet", "frozen yogurt"),
    "rocket": ("spaceship", "missile", "spacecraft", "space shuttle"),
    "car": ("automobile", "sedan", "coupe", "hatchback", "taxi"),
    "bus": ("coach", "minibus", "double-decker"),
    "bicycle": ("bike", "cycling", "tricycle"),
    "airplane": ("plane", "jet", "aircraft", "airliner"),
    "house": ("home", "cottage", "bungalow", "villa", "mansion"),
    "tree": ("oak", "maple", "elm", "sapling"),
    "rose": ("rosebud",),
    "sunflower": ("helianthus",),
    "guitar": ("ukulele", "banjo", "lute"),
    "trumpet": ("cornet", "bugle", "trombone"),
    "crown": ("tiara", "diadem"),
    "heart": ("valentine",),
    "star": ("starlight",),
    "umbrella": ("parasol", "sunshade"),
}


def _every(n: int, of: int, offset: int = 0) -> bool:
    """Return True for one in `of` integers, spread by a multiplicative hash so that rows and columns are balanced."""
    return (n * 2654435761 + offset) % 4294967296 < 4294967296 // of


HELD_OUT_PAIRS = frozenset(frozenset(pair) for n, pair in enumerate(combinations(OBJECTS, 2)) if _every(n + 1, of=10))
"""Unordered pairs of objects (one in ten) that no training scene has."""

HELD_OUT_STYLES = {name: STYLES[(5 * i + 2) % len(STYLES)] for i, name in enumerate(OBJECTS) if i % 5 in (1, 3)}
"""The held-out style of an object, by object (16 of the 320 combinations)."""
