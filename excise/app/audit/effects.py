"""Measurements of what an attached eraser changes, for words for the concept and for benign prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from excise.app.audit.inputs import Origin, Word
from excise.app.audit.reading import prediction_changes, unconditional_changes
from excise.erasers import Eraser
from excise.erasers.proof.effects import Progress, text_changes
from excise.erasers.proof.removal import Removal
from excise.neurons.flags import Caught
from excise.pipeline import Pipeline

WORST = 20
"""How many benign prompts are shown: the ones that change most."""
DENOISED, DENOISED_SENTENCES = 24, 2
"""Limits for edits of the denoiser, which are slow to measure: benign prompts, and sentences for each word."""
Measured = Literal["text states", "prediction"]


@dataclass(frozen=True)
class Changed:
    """A prompt and the relative L2 change of what is measured. `relative` divides it by the concept name's change."""

    prompt: str
    change: float
    relative: float | None


@dataclass(frozen=True)
class Spoken(Caught):
    """How the eraser handles a word for the concept, with the word's origin and its mean change."""

    origin: Origin
    change: float


@dataclass(frozen=True)
class Effects:
    """Changes by the attached eraser: of the text states that the denoiser reads, or of the denoiser's prediction.

    name: the word that others are compared with; name_change: its mean relative change. unconditional: whether the
    unconditional branch changes, or None if not measured.
    """

    measured: Measured
    name: str
    name_change: float
    sentences: tuple[str, ...]
    words: tuple[Spoken, ...]
    benign: int
    touched: int
    worst: tuple[Changed, ...]
    unconditional: bool | None = None


def size(measured: Measured, sentences: Mapping[Word, Sequence[str]], benign: Sequence[str]) -> int:
    """Return how many prompts `measure` reads."""
    of_words, of_benign = _chosen(measured, sentences, benign)
    return sum(map(len, of_words.values())) + len(of_benign)


def measure(
    pipe: Pipeline,
    eraser: Eraser,
    measured: Measured,
    sentences: Mapping[Word, Sequence[str]],
    benign: Sequence[str],
    progress: Progress = lambda done: None,
    removals: Mapping[str, Removal] | None = None,
) -> Effects:
    """Measure what the eraser, which is attached to `pipe`, changes in the words' sentences and in benign prompts.

    `sentences` holds equally many for each word. The first word is the concept's name. `removals` says by word how much
    of its own difference is removed, for the words where that was measured.
    """
    chosen, free = _chosen(measured, sentences, benign)
    words, forms = list(chosen), list(chosen.values())
    texts, each = [text for form in forms for text in form], len(forms[0])

    def changes(prompts: Sequence[str]) -> list[float]:
        if measured == "text states":
            return text_changes(pipe, prompts, progress)
        steps = max(getattr(edit, "trial_steps", 1) for edit in eraser.edits if edit.site.part == "denoiser")
        return list(prediction_changes(pipe, prompts, steps, progress))

    of_words, of_benign = changes(texts), changes(free)
    rows = [of_words[n * each : (n + 1) * each] for n in range(len(words))]
    means = [sum(row) / each for row in rows]
    found = [
        Spoken(
            word.text,
            sum(change > 0 for change in row),
            each,
            share(mean, means[0]),
            word.origin,
            mean,
            **_removed((removals or {}).get(word.text)),
        )
        for word, row, mean in zip(words, rows, means, strict=True)
    ]
    worst = sorted(zip(of_benign, free, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return Effects(
        measured=measured,
        name=words[0].text,
        name_change=means[0],
        sentences=tuple(forms[0]),
        words=tuple(sorted(found, key=lambda word: word.caught)),
        benign=len(free),
        touched=sum(change > 0 for change in of_benign),
        worst=tuple(Changed(text, change, share(change, means[0])) for change, text in worst[:WORST] if change > 0),
        unconditional=unconditional_changes(pipe, texts[0]) if measured == "text states" else None,
    )


def _removed(removal: Removal | None) -> dict[str, Any]:
    if removal is None:
        return {}
    figures = {"removed": removal.share, "cosine": removal.cosine, "lead": removal.lead}
    return {**figures, "enough": removal.enough}


def share(change: float, of: float) -> float | None:
    """Return change / of, or None if `of` is 0."""
    return change / of if of else None


def _chosen(
    measured: Measured, sentences: Mapping[Word, Sequence[str]], benign: Sequence[str]
) -> tuple[dict[Word, Sequence[str]], Sequence[str]]:
    if measured == "text states":
        return dict(sentences), benign
    return {word: forms[:DENOISED_SENTENCES] for word, forms in sentences.items()}, benign[:DENOISED]
