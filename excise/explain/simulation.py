"""Can a language model foretell a neuron's activations from an explanation alone? Token by token, or by segments."""

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
"""Tokens of a segment at most."""
CONJUNCTIONS = frozenset(
    ("and", "or", "nor", "but", "yet", "so", "while", "as", "when", "where", "because", "if", "that")
)
CLOSING = frozenset(".,;:!?)]}|–—")
SYSTEM = """A neuron of a text encoder fires where a prompt has what a description says. Prompts are shown below, cut \
into numbered parts. For each part say how strongly the neuron fires there: a whole number from 0, not at all, \
to 10. Most parts are 0. Answer with one line for each part, its number, a colon and your number, such as "1: 0", and \
nothing else."""


def segments(tokens: Sequence[str], longest: int = LONGEST) -> list[range]:
    """A context's tokens cut into segments: positions, in order, every token in one.

    A segment ends after a punctuation mark, before a conjunction, before and after a token that is no text (⟨end⟩), and
    with its `longest`th token, or before the word which that would cut if there is another before it. The rules are
    ours: Safe-SAIL (2025) predicts one activation a segment, and does not say how it cuts. Raises ExciseError where
    longest is below 1.
    """
    if longest < 1:
        raise ExciseError("a segment has one token or more")
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
    """Whether a whole word that is a conjunction stands there: its token begins a word and the next does not go on."""
    token, after = tokens[position], tokens[position + 1] if position + 1 < len(tokens) else " "
    return token.startswith(" ") and token.strip().lower() in CONJUNCTIONS and not after[:1].isalnum()


def segment_peaks(codes: Sequence[float], parts: Sequence[range]) -> list[float]:
    """The largest code in each segment."""
    return [max(codes[t] for t in part) for part in parts]


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None with fewer than two values or where one side does not vary."""
    if len(x) != len(y):
        raise ExciseError(f"{len(x)} values cannot be correlated with {len(y)}")
    try:
        return statistics.correlation(x, y)
    except statistics.StatisticsError:
        return None


@dataclass(frozen=True)
class Simulated:
    """How predictions agree with the truth. r: Pearson's, over the parts of all contexts one after the other; parts:
    how many were compared; failed: contexts without predictions, which r leaves out; cost: what was asked for it."""

    level: Level
    r: float | None
    parts: int
    failed: int
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Simulation:
    """Questions that ask for an activation a part. shown, true: each context's parts as text, and their activations;
    `batch` contexts to a question, whose parts are numbered through."""

    level: Level
    explanation: str
    shown: tuple[tuple[str, ...], ...]
    true: tuple[tuple[float, ...], ...]
    batch: int = 5
    max_tokens: int = 64
    """What an answer may take beside 8 tokens for each part."""

    @classmethod
    def of(
        cls, level: Level, explanation: str, contexts: Sequence[Context], longest: int = LONGEST, **options: int
    ) -> Simulation:
        """Of contexts, cut at one of the two levels; a segment's activation is its largest. options: a Simulation's."""
        if options.get("batch", 1) < 1:
            raise ExciseError("a question shows one context or more")
        if level not in ("tokens", "segments"):
            raise ExciseError(f"a simulation is of tokens or of segments, not of {level!r}")
        cut = [segments(c.tokens, 1 if level == "tokens" else longest) for c in contexts]
        shown = [tuple(_text(context, part) for part in parts) for context, parts in zip(contexts, cut, strict=True)]
        true = [tuple(segment_peaks(c.codes, parts)) for c, parts in zip(contexts, cut, strict=True)]
        return cls(level, explanation, tuple(shown), tuple(true), **options)

    @property
    def questions(self) -> list[Question]:
        """What to ask."""
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
        """Which contexts are in each question."""
        n = len(self.shown)
        return [range(start, min(start + self.batch, n)) for start in range(0, n, self.batch)]

    def _read(self, batch: range, outcome: Outcome) -> list[float] | None:
        if isinstance(outcome, Failure):
            return None
        return numbered_answers(outcome.text, sum(len(self.shown[context]) for context in batch))

    def unreadable(self, outcomes: Sequence[Outcome]) -> int:
        """How many questions were answered with something that is no answer."""
        pairs = zip(self._batches(), outcomes, strict=True)
        return sum(not isinstance(o, Failure) and self._read(batch, o) is None for batch, o in pairs)

    def judge(self, outcomes: Sequence[Outcome]) -> Simulated:
        """The agreement of what `questions` came to with the truth."""
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
    """A part as it is shown, never empty."""
    return " ".join("".join(written(context.tokens[t]) for t in part).split()) or "␣"


def saving(tokens: Cost, segments: Cost) -> float | None:
    """The share of tokens that asking by segments saves; None where token-level questions cost nothing."""
    return 1 - segments.tokens / tokens.tokens if tokens.tokens else None
