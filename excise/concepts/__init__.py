"""Concepts to erase, as words and as pairs of prompts with and without the concept."""

from __future__ import annotations

from excise.concepts.checks import check
from excise.concepts.concept import Concept, Kind, Pair
from excise.concepts.formats import load_pairs, read_labelled, read_prompts, read_rows, save_pairs
from excise.concepts.library import builtin, names
from excise.concepts.templates import from_templates

__all__ = [
    "Concept",
    "Kind",
    "Pair",
    "builtin",
    "check",
    "from_templates",
    "load_pairs",
    "names",
    "read_labelled",
    "read_prompts",
    "read_rows",
    "save_pairs",
]
