"""Simulation: predict a neuron's activations from its explanation by a language model, by token or by segment."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from excise.chat import Cost, Failure, Outcome, Question
from excise.errors import ExciseError
from excise.explain.wording import END_NOTE, numbered_answers, written
from excise.neurons.contexts import Context, is_special

Level = Literal["tokens", "segments"]

LONGEST = 8
"""Maximum tokens of a segment."""
CONJUNCTIONS = frozenset(
    ("and", "or", "nor", "but", "yet", "so", "while", "as", "when", "where", "because", "if", "that")
)
CLOSING = frozenset(".,;:!?)]}|–—")
SYSTEM = """A neuron of a text encoder fires where a prompt has what a description says. Prompts are shown below, cut \
into numbered parts. For each part say how strongly the neuron fires there: a whole number from 0, not at all, \
to 10. Most parts are 0. Answer with one line for each part, its number, a colon and your number, such as "1: 0", and \
nothing else."""


def segments(tokens: Sequence[str], longest: int = LONGEST) -> list[range]:
    """Cut a context's tokens into segments: ranges of positions, in order, covering every token.

    A segment ends after a punctuation mark, before a conjunction, before and after a special token (⟨end⟩), and with
    its `longest`th token, or before the word that this would cut, unless it is the segment's first. The rules are ours:
    Safe-SAIL (2025) predicts one activation per segment and does not describe its segmentation. Raises ExciseError if
    `longest` is below 1.
    """
    if longest < 1:
        raise ExciseError("longest must be 1 token or more")
    cuts = [0]
    for position in range(1, len(tokens)):
        token, before = tokens[position], tokens[position - 1]
        if is_special(token) or is_special(before) or _closes(before) or _is_conjunction(tokens, position):
            cuts.append(position)
        elif position - cuts[-1] == longest:
            words = [p for p in range(cuts[-1] + 1, position + 1) if tokens[p].startswith(" ")]
            cuts.append(words[-1] if words else position)
    return [range(a, b) for a, b in itertools.pairwise([*cuts, len(tokens)]) if b > a]


def _closes(token: str) -> bool:
    return bool(token.strip()) and CLOSING.issuperset(token.strip())


def _is_conjunction(tokens: Sequence[str], position: int) -> bool:
    """Return whether the word at `position` is a conjunction: its token starts a word, and the next continues none."""
    token, after = tokens[position], tokens[position + 1] if position + 1 < len(tokens) else " "
    return token.startswith(" ") and token.strip().lower() in CONJUNCTIONS and not after[:1].isalnum()


def segment_peaks(codes: Sequence[float], parts: Sequence[range]) -> list[float]:
    """Return the largest code in each segment."""
    return [max(codes[t] for t in part) for part in parts]


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Pearson's r; None with fewer than two values or if one side is constant."""
    if len(x) != len(y):
        raise ExciseError(f"{len(x)} values cannot be correlated with {len(y)}")
    try:
        return statistics.correlation(x, y)
    except statistics.StatisticsError:
        return None


@dataclass(frozen=True)
class Simulated:
    """Agreement of predictions with the truth.

    Attributes:
        r: Pearson's, over the concatenated parts of all contexts.
        parts: Number of parts compared.
        failed: Number of contexts without predictions, which r leaves out.
        cost: Cost of the questions.
    """

    level: Level
    r: float | None
    parts: int
    failed: int
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Simulation:
    """Questions that ask for the activation of every part of contexts.

    Attributes:
        shown: Each context's parts as text.
        true: Their activations.
        batch: Contexts per question; parts are numbered through all of them.
    """

    level: Level
    explanation: str
    shown: tuple[tuple[str, ...], ...]
    true: tuple[tuple[float, ...], ...]
    batch: int = 5
    max_tokens: int = 64
    """Maximum tokens of an answer, in addition to 8 for each part."""

    @classmethod
    def of(
        cls, level: Level, explanation: str, contexts: Sequence[Context], longest: int = LONGEST, **options: int
    ) -> Simulation:
        """Cut contexts at one of the levels; a segment's activation is its largest. `options` are a Simulation's."""
        if options.get("batch", 1) < 1:
            raise ExciseError("batch must be 1 or more contexts per question")
        if level not in ("tokens", "segments"):
            raise ExciseError(f"a simulation is of tokens or of segments, not of {level!r}")
        cut = [segments(c.tokens, 1 if level == "tokens" else longest) for c in contexts]
        shown = [tuple(_text(context, part) for part in parts) for context, parts in zip(contexts, cut, strict=True)]
        true = [tuple(segment_peaks(c.codes, parts)) for c, parts in zip(contexts, cut, strict=True)]
        return cls(level, explanation, tuple(shown), tuple(true), **options)

    @property
    def questions(self) -> list[Question]:
        """The questions to ask."""
        asked = []
        for batch in self._batches():
            number, lines = 0, [f"Description: {self.explanation}"]
            for context in batch:
                lines.append("\nPrompt:")
                for text in self.shown[context]:
                    number += 1
                    lines.append(f"{number}: {text}")
            ends = any(is_special(text) for context in batch for text in self.shown[context])
            system = f"{SYSTEM} {END_NOTE}" if ends else SYSTEM
            asked.append(Question(system, "\n".join(lines), self.max_tokens + 8 * number))
        return asked

    def _batches(self) -> list[range]:
        """Return the indices of the contexts in each question."""
        n = len(self.shown)
        return [range(start, min(start + self.batch, n)) for start in range(0, n, self.batch)]

    def _read(self, batch: range, outcome: Outcome) -> list[float] | None:
        if isinstance(outcome, Failure):
            return None
        return numbered_answers(outcome.text, sum(len(self.shown[context]) for context in batch))

    def unreadable(self, outcomes: Sequence[Outcome]) -> int:
        """Count the answers that do not have the requested form."""
        pairs = zip(self._batches(), outcomes, strict=True)
        return sum(not isinstance(o, Failure) and self._read(batch, o) is None for batch, o in pairs)

    def judge(self, outcomes: Sequence[Outcome]) -> Simulated:
        """Compare the answers with the truth."""
        true, predicted, failed = list[float](), list[float](), 0
        for batch, outcome in zip(self._batches(), outcomes, strict=True):
            read = self._read(batch, outcome)
            if read is None:
                failed += len(batch)
                continue
            predicted += read
            true += itertools.chain.from_iterable(self.true[context] for context in batch)
        return Simulated(self.level, pearson(true, predicted), len(true), failed, Cost.of(outcomes))


def _text(context: Context, part: range) -> str:
    """Return a part as it is shown, never empty."""
    return " ".join("".join(written(context.tokens[t]) for t in part).split()) or "␣"


def saving(tokens: Cost, segments: Cost) -> float | None:
    """Return the share of tokens that asking by segments saves; None if token-level questions cost nothing."""
    return 1 - segments.tokens / tokens.tokens if tokens.tokens else None
