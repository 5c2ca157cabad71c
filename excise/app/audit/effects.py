"""What an attached eraser changes: of the concept's words, and of prompts that have nothing to do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from excise.app.audit.inputs import Origin, Word
from excise.app.audit.reading import prediction_changes, unconditional_changes
from excise.erasers import Eraser
from excise.erasers.guard.effects import Progress, text_changes
from excise.neurons.flags import Caught
from excise.pipeline import Pipeline

WORST = 20
"""Benign prompts shown, those that change most."""
DRAWN, DRAWN_SENTENCES = 24, 2
"""An edit of the denoiser is measured on so many benign prompts, and on each word in so many sentences."""
Measured = Literal["text states", "prediction"]


@dataclass(frozen=True)
class Changed:
    """A prompt, the relative L2 change of what is measured of it, and that by the concept's name's own change."""

    prompt: str
    change: float
    relative: float | None


@dataclass(frozen=True)
class Spoken(Caught):
    """A word for the concept as the eraser meets it, and its mean change."""

    origin: Origin
    change: float


@dataclass(frozen=True)
class Effects:
    """What the attached eraser changes: of the text states that the denoiser reads, or of its prediction.

    name: the word that all is compared with; name_change: its mean relative change. unconditional: whether the
    unconditional branch changes, None where that was not looked at.
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


def size(measured: Measured, spoken: Mapping[Word, Sequence[str]], benign: Sequence[str]) -> int:
    """How many prompts `measure` looks at."""
    said, free = _chosen(measured, spoken, benign)
    return sum(map(len, said.values())) + len(free)


def measure(
    pipe: Pipeline,
    eraser: Eraser,
    measured: Measured,
    spoken: Mapping[Word, Sequence[str]],
    benign: Sequence[str],
    progress: Progress = lambda done: None,
) -> Effects:
    """What the eraser, which is attached to `pipe`, changes of every word's sentences and of benign prompts.

    spoken: each word's sentences, as many for each; the first word is the concept's name.
    """
    said, free = _chosen(measured, spoken, benign)
    words, forms = list(said), list(said.values())
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
        Spoken(word.text, sum(change > 0 for change in row), each, share(mean, means[0]), word.origin, mean)
        for word, row, mean in zip(words, rows, means, strict=True)
    ]
    worst = sorted(zip(of_benign, free, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return Effects(
        measured=measured,
        name=words[0].text,
        name_change=means[0],
        sentences=tuple(forms[0]),
        words=tuple(sorted(found, key=lambda spoken: spoken.caught)),
        benign=len(free),
        touched=sum(change > 0 for change in of_benign),
        worst=tuple(Changed(text, change, share(change, means[0])) for change, text in worst[:WORST] if change > 0),
        unconditional=unconditional_changes(pipe, texts[0]) if measured == "text states" else None,
    )


def share(change: float, of: float) -> float | None:
    """change / of; None where that is nothing."""
    return change / of if of else None


def _chosen(
    measured: Measured, spoken: Mapping[Word, Sequence[str]], benign: Sequence[str]
) -> tuple[dict[Word, Sequence[str]], Sequence[str]]:
    if measured == "text states":
        return dict(spoken), benign
    return {word: forms[:DRAWN_SENTENCES] for word, forms in spoken.items()}, benign[:DRAWN]
