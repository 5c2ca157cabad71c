"""Scores of an explanation: detection, fuzzing (Paulo et al. 2024) and ranking by a sentence encoder."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from excise.chat import Failure, Outcome, Question
from excise.errors import ExciseError
from excise.explain.wording import END_NOTE, active, listed_answers, marked
from excise.neurons.contexts import Context, is_special
from excise.neurons.validation import auroc

Encoder = Callable[[Sequence[str]], Any]
"""Sentence encoder: texts to vectors `[N, d]`."""

DETECTION = """You judge whether a description fits prompts for pictures. For each numbered prompt answer 1 if \
something in it fits the description, and 0 if nothing does. Answer with one list such as [1, 0, 1], a number for each \
prompt in order, and nothing else."""
FUZZING = """You judge whether the right tokens are marked. In each numbered prompt some tokens stand between << and \
>>. Answer 1 if what is marked is what the description says, and 0 if it is not. Answer with one list such as \
[1, 0, 1], a number for each prompt in order, and nothing else."""


@dataclass(frozen=True)
class Counts:
    """Right and wrong answers about contexts.

    `failed` counts those without an answer, or with an unreadable one. The shares are of the others, and None if there
    are none of a kind.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    failed: int = 0

    @classmethod
    def of(cls, truth: Sequence[bool], answers: Sequence[bool | None]) -> Counts:
        """Count truths and answers; None is a missing answer."""
        pairs = list(zip(truth, answers, strict=True))
        return cls(
            tp=pairs.count((True, True)),
            fp=pairs.count((False, True)),
            tn=pairs.count((False, False)),
            fn=pairs.count((True, False)),
            failed=list(answers).count(None),
        )

    @property
    def tpr(self) -> float | None:
        """Recall: share of the contexts in which the neuron fires that are recognised."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def tnr(self) -> float | None:
        """Specificity: share of the contexts in which it is silent that are recognised."""
        return _share(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        return _share(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN)."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def balanced_accuracy(self) -> float | None:
        """(TPR + TNR) / 2, which other tools call accuracy."""
        return None if self.tpr is None or self.tnr is None else (self.tpr + self.tnr) / 2

    def to_json(self) -> dict[str, Any]:
        names = ("balanced_accuracy", "f1", "precision", "tpr", "tnr")
        return {**{name: getattr(self, name) for name in names}, **asdict(self)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Exam:
    """Yes-or-no questions about an explanation, with known answers.

    Attributes:
        shown: Contexts as text, `batch` per question.
        truth: The right answer for each.
    """

    system: str
    explanation: str
    shown: tuple[str, ...]
    truth: tuple[bool, ...]
    batch: int = 5
    max_tokens: int = 64

    @property
    def questions(self) -> list[Question]:
        """The questions to ask."""
        return [
            Question(self.system, "\n".join([f"Description: {self.explanation}", "", *numbered]), self.max_tokens)
            for numbered in self._batches()
        ]

    def _batches(self) -> list[list[str]]:
        starts = range(0, len(self.shown), self.batch)
        parts = [self.shown[start : start + self.batch] for start in starts]
        return [[f"Prompt {n}: {text}" for n, text in enumerate(part, 1)] for part in parts]

    def answers(self, outcomes: Sequence[Outcome]) -> list[bool | None]:
        """Return the answer for each context, None if its question failed or the answer is unreadable."""
        given: list[bool | None] = []
        for batch, outcome in zip(self._batches(), outcomes, strict=True):
            read = None if isinstance(outcome, Failure) else listed_answers(outcome.text, len(batch))
            given += [None] * len(batch) if read is None else read
        return given

    def unreadable(self, outcomes: Sequence[Outcome]) -> int:
        """Count the answers that do not have the requested form."""
        pairs = zip(self._batches(), outcomes, strict=True)
        return sum(not isinstance(o, Failure) and listed_answers(o.text, len(batch)) is None for batch, o in pairs)

    def judge(self, outcomes: Sequence[Outcome]) -> Counts:
        """Count right and wrong answers."""
        return Counts.of(self.truth, self.answers(outcomes))


def detection(
    explanation: str, firing: Sequence[Context], silent: Sequence[Context], *, seed: int = 0, **options: int
) -> Exam:
    """Ask whether the neuron fires in a context, for shuffled contexts in which it does and does not.

    `options` are an Exam's.
    """
    _check(options)
    cases = [(context.text, True) for context in firing] + [(context.text, False) for context in silent]
    return _exam(DETECTION, explanation, cases, seed, options)


def fuzzing(
    explanation: str,
    firing: Sequence[Context],
    silent: Sequence[Context],
    *,
    share: float = 0.3,
    seed: int = 0,
    **options: int,
) -> Exam:
    """Ask whether the right tokens are marked.

    Where the neuron fires, tokens with `share` of the largest code are marked. Silent contexts get n random marks,
    n = ⌈mean number of these⌉, or fewer if they have fewer tokens. `options` are an Exam's.
    """
    _check(options)
    draw = random.Random(seed)
    right = [(context, active(context, share)) for context in firing]
    n = math.ceil(sum(len(positions) for _, positions in right) / len(right)) if right else 1
    cases = [(marked(context, positions), True) for context, positions in right]
    for context in silent:
        places = [t for t, token in enumerate(context.tokens) if token.strip()]
        cases.append((marked(context, draw.sample(places, min(n, len(places)))), False))
    ends = any(is_special(token) for context in (*firing, *silent) for token in context.tokens if token)
    return _exam(f"{FUZZING} {END_NOTE}" if ends else FUZZING, explanation, cases, seed, options)


def _check(options: dict[str, int]) -> None:
    if options.get("batch", 1) < 1:
        raise ExciseError("batch must be 1 or more contexts per question")


def _exam(system: str, explanation: str, cases: list[tuple[str, bool]], seed: int, options: dict[str, int]) -> Exam:
    random.Random(seed).shuffle(cases)
    return Exam(system, explanation, tuple(text for text, _ in cases), tuple(right for _, right in cases), **options)


def embedding_auroc(
    explanation: str, firing: Sequence[Context], silent: Sequence[Context], encoder: Encoder
) -> float | None:
    """Return the AUROC with which cosines to the explanation rank firing contexts above silent ones.

    None if there are none of either kind.
    """
    if not firing or not silent:
        return None
    vectors = encoder([explanation, *(c.text for c in firing), *(c.text for c in silent)])
    unit = torch.nn.functional.normalize(torch.as_tensor(vectors).double(), dim=-1)
    cosines = unit[1:] @ unit[0]
    return float(auroc(cosines[: len(firing), None], cosines[len(firing) :, None]))
