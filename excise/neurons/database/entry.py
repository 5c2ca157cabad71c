"""Data of one neuron in the database, and of the corpus it was recorded on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from excise.errors import ExciseError
from excise.neurons.context import Context, is_special

NEAREST = 4
"""How many of the nearest tokens are searched, as on the page (search.js): others are too far."""


@dataclass(frozen=True)
class Provenance:
    """Which SAE a database describes, and how it was built."""

    sae: str
    """sha256 of the SAE's parameters (`excise.erasers.edits.sae_rows.sae_digest`); empty if the SAE is not at hand."""
    site: str
    """Site that it reads, such as `text_encoder/encoder.layers.8`."""
    m: int | None
    """Number of neurons, silent ones included; None if unknown."""
    corpus: str
    """Description of the prompts."""
    prompts: int
    prompts_sha256: str
    date: str
    """ISO 8601, in UTC."""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def describes_the_same(self, other: Provenance) -> bool:
        """Return whether the same SAE was read on the same prompts with the same settings, at any time or version."""
        names = ("sae", "site", "m", "prompts_sha256", "settings")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class Tag:
    """Concept that the neuron carries, with its identification score and held-out AUROC, if measured."""

    concept: str
    score: float | None = None
    auroc: float | None = None


@dataclass(frozen=True)
class Explanation:
    """What the neuron fires for, in words, with the author and the time (ISO 8601; empty if unknown)."""

    text: str
    by: str
    at: str


@dataclass(frozen=True)
class Measured:
    """Score of an explanation; None if undefined. `detail` is json: counts, seeds, costs."""

    value: float | None
    detail: Any = None


@dataclass(frozen=True)
class Entry:
    """One neuron. Values that were not measured are None or empty."""

    index: int
    density: float | None = None
    """Share of the corpus's scored tokens at which it fires."""
    peak: float | None = None
    """Its largest code."""
    histogram: tuple[int, ...] = ()
    """Counts of its codes in equal intervals from 0 to the peak."""
    contexts: tuple[Context, ...] = ()
    """The prompts in which it fires most, strongest first."""
    spread: tuple[Context, ...] = ()
    """Prompts sampled from the whole range of its peaks, strongest first."""
    nearest: tuple[tuple[str, float], ...] = ()
    """Tokens whose states are nearest to its decoder row, with their similarity."""
    near: tuple[tuple[int, float], ...] = ()
    """Neurons whose decoder rows are nearest, with their cosines."""
    tags: tuple[Tag, ...] = ()
    explanation: Explanation | None = None
    scores: Mapping[str, Measured] = field(default_factory=dict)
    patterns: tuple[Any, ...] = ()
    """Each is a text, or an object with a `text` and figures."""

    def top_tokens(self, n: int = 5) -> list[str]:
        """Return the tokens with its largest codes in the stored contexts, words before punctuation.

        Special tokens are listed only if it fires at nothing else. In a causal encoder a neuron also fires at what
        follows its word.
        """
        best: dict[str, float] = {}
        for context in (*self.contexts, *self.spread):
            for token, code in zip(context.tokens, context.codes, strict=True):
                word = token.strip()
                if code > 0 and word:
                    best[word] = max(code, best.get(word, 0.0))
        order = sorted(best, key=lambda word: (not any(map(str.isalnum, word)), -best[word], word))
        plain = [word for word in order if not is_special(word)]
        return (plain or order)[:n]

    def searched(self) -> dict[str, str]:
        """Return the searched texts, the most important first."""
        contexts = dict.fromkeys(context.text for context in (*self.contexts, *self.spread))
        tokens = dict.fromkeys((*self.top_tokens(8), *(token for token, _ in self.nearest[:NEAREST])))
        return {
            "explanation": self.explanation.text if self.explanation else "",
            "tags": "\n".join(tag.concept for tag in self.tags),
            "patterns": "\n".join(pattern_text(pattern) for pattern in self.patterns),
            "tokens": "\n".join(tokens),
            "contexts": "\n".join(contexts),
        }

    def row(self) -> dict[str, Any]:
        """Return everything as json."""
        explanation = self.explanation
        return {
            "neuron": self.index,
            "density": self.density,
            "peak": self.peak,
            "tags": [{"concept": t.concept, "score": t.score, "auroc": t.auroc} for t in self.tags],
            "explanation": explanation and {"text": explanation.text, "by": explanation.by, "at": explanation.at},
            "scores": {name: {"value": s.value, "detail": s.detail} for name, s in self.scores.items()},
            "patterns": list(self.patterns),
            "top_tokens": self.top_tokens(),
            "contexts": [_context(c) for c in self.contexts],
            "spread": [_context(c) for c in self.spread],
            "nearest": [{"token": token, "similarity": how} for token, how in self.nearest],
            "near": [{"neuron": index, "cosine": how} for index, how in self.near],
            "histogram": list(self.histogram),
        }


def pattern_text(pattern: Any) -> str:
    """Return a pattern's text."""
    return str(pattern.get("text", "")) if isinstance(pattern, Mapping) else str(pattern)


def to_json(value: Any, what: str) -> str:
    """Return one line of json. Raises ExciseError, naming `what`, for a value that json cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ExciseError(f"{what} cannot be stored as json: {error}") from error


def finite(value: float | None) -> float | None:
    """Return a figure as a float, None if undefined."""
    return None if value is None or not math.isfinite(value) else float(value)


def pack(contexts: Sequence[Context]) -> str:
    """Return contexts as json. `excise.neurons.database.stored` reads them."""
    return to_json([[c.tokens, c.codes] for c in contexts], "a context")


def _context(context: Context) -> dict[str, Any]:
    return {"text": context.text, "tokens": list(context.tokens), "codes": list(context.codes)}
