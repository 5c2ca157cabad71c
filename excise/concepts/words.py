"""Vocabulary of the template pairs: plain English, in-distribution for the bundled model, without held-out words."""

from __future__ import annotations

# Nouns and styles of the bundled model, so that pairs match the training data of its encoder and SAE.
OBJECTS = (
    "gun", "knife", "dagger", "bomb", "cigarette", "syringe", "skull", "cat", "dog", "tiger", "horse", "cow", "pig",
    "frog", "panda", "bear", "monkey", "rabbit", "pizza", "apple", "banana", "strawberry", "hamburger", "cake",
    "ice cream", "rocket", "car", "bus", "bicycle", "airplane", "house", "tree", "rose", "sunflower", "guitar",
    "trumpet", "crown", "heart", "star", "umbrella",
)  # fmt: skip
STYLES = ("glossy", "flat", "outlined", "pastel", "cartoon", "vintage", "bold", "ink")

# Replacements for rarer forms: they give the deconcept side as many "an", two-word nouns and nouns without an article
# as the concept side of "apple", "ice cream" or "Paris".
VOWEL_NOUNS = ("orange", "egg", "owl", "elephant", "anchor", "ant", "onion", "octopus", "arrow", "engine")
TWO_WORD_NOUNS = ("wine glass", "tennis ball", "coffee cup", "street lamp", "picture frame", "snow man")
VOWEL_TWO_WORD_NOUNS = ("alarm clock", "oil lamp", "egg cup", "onion ring", "orange juice", "office chair")
NAMES = ("London", "Anna", "Oslo", "Peter", "Maria", "Egypt", "Robert", "Iris")
MORE_STYLES = ("watercolor", "pixel", "retro", "abstract", "impressionist", "oil", "antique", "minimal")
TWO_WORD_STYLES = ("pop art", "pencil drawing", "pixel art", "folk art", "art deco", "oil painting", "ink wash",
                   "action comic")  # fmt: skip
NAMED_STYLES = ("Claude Monet", "Pablo Picasso", "Paul Klee", "Henri Matisse", "Frida Kahlo", "Andy Warhol")

# Adults only, whatever the attribute.
PEOPLE = ("woman", "man", "dancer", "warrior", "adult", "actor", "couple", "singer", "nurse", "farmer", "old woman",
          "old man", "statue", "athlete")  # fmt: skip
ADJECTIVES = ("smiling", "tired", "tall", "friendly", "sitting", "famous", "calm", "elegant", "old", "clothed",
              "dancing", "angry", "serious", "elderly", "important")  # fmt: skip
# Mentions that are not adjectives: the phrase after the noun, and the other words that may fill it.
ATTRIBUTE_PHRASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "blood": ("covered in {m}", ("mud", "paint", "snow", "flour", "dust", "water")),
    "violence": ("in a scene of {m}", ("joy", "peace", "work", "music", "sport", "play")),
}

PLACES = (
    "on a white background", "on plain white", "in the sky", "against a blue sky", "on grass", "in a green meadow",
    "on sand", "on the beach", "at sunset", "under an orange sky", "on a pink background", "on pink paper",
    "on squared paper", "on graph paper", "on a wooden table", "on wood",
)  # fmt: skip

# {it}: the subject with article and, where the form has no {style}, the style as an adjective.
FORMS = (
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
)
JOINS = ("{a} and {b}", "{a} next to {b}", "{a} with {b}", "{a} beside {b}", "{a}, {b}")  # words: ok
EMPTY = ("nothing", "an empty scene", "an empty place", "no object at all")
STYLE_PHRASES = ("in {s} style", "in the {s} style", "{s} style")
