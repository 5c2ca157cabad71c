"""Explain and score any number of neurons at once, resuming from the cache after an interruption."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from excise.chat import Backend, Cache, Cost, Failure, Outcome, Question, ask_all
from excise.errors import ExciseError
from excise.explain.explainer import explanation_question, parse_explanation
from excise.explain.scores import Counts, Encoder, Exam, detection, embedding_auroc, fuzzing
from excise.explain.simulation import LONGEST, Level, Simulated, Simulation, saving
from excise.neurons.contexts import Context, Contexts

SCORERS = ("detection", "fuzzing", "embedding", "segments", "tokens")
"""Scores of an explanation. "embedding" asks no language model; "segments" and "tokens" are simulations."""


@dataclass(frozen=True)
class ExplainConfig:
    """How neurons are explained and scored."""

    shown: int = 20
    """Number of strongest contexts shown for an explanation."""
    held_out: int = 20
    """Number of other contexts to score on in which the neuron fires, over its whole range; as many silent ones."""
    scorers: tuple[str, ...] = ("detection", "fuzzing")
    """Any of `SCORERS`."""
    batch: int = 5
    """Contexts per question."""
    share: float = 0.3
    """Tokens with at least this share of a context's largest code are marked."""
    longest: int = LONGEST
    """Maximum tokens of a segment."""
    explanation_tokens: int = 128
    """Maximum tokens of an explanation's answer."""
    answer_tokens: int = 64
    """Maximum tokens of another answer, 8 more per part for a simulation. Raise both for a model that thinks aloud."""
    jobs: int = 4
    """Questions in parallel."""
    seed: int = 0
    """Seed for sampling and shuffling contexts and marks."""

    def __post_init__(self) -> None:
        if unknown := set(self.scorers) - set(SCORERS):
            raise ExciseError(f"there is no score {min(unknown)!r}; choose from {', '.join(SCORERS)}")
        counts = (self.shown, self.held_out, self.batch, self.longest, self.explanation_tokens, self.answer_tokens)
        if min(counts) < 1 or self.jobs < 1:
            raise ExciseError("numbers of contexts, tokens and jobs must be 1 or more")
        if not 0 <= self.share <= 1:
            raise ExciseError(f"the share of the largest code that is marked is from 0 to 1, not {self.share:g}")


@dataclass(frozen=True)
class Explanation:
    """Explanation of a neuron, with its scores.

    Attributes:
        text: None if there is no explanation; `why` then gives the reason.
        scores: Counts of "detection" and "fuzzing", the AUROC of "embedding", Simulated of "segments" and "tokens".
        unreadable: Number of answers that do not have the requested form; questions without an answer are
            `cost.unanswered`.
    """

    neuron: int
    text: str | None
    why: str = ""
    scores: dict[str, Counts | Simulated | float | None] = field(default_factory=dict)
    unreadable: int = 0
    cost: Cost = field(default_factory=Cost)

    @property
    def failures(self) -> int:
        """Number of questions without a usable answer."""
        return self.unreadable + self.cost.unanswered

    @property
    def saving(self) -> float | None:
        """Share of tokens that simulating segments saves over simulating tokens; None unless both were done."""
        tokens, segments = self.scores.get("tokens"), self.scores.get("segments")
        if not isinstance(tokens, Simulated) or not isinstance(segments, Simulated):
            return None
        if tokens.cost.unanswered or segments.cost.unanswered:
            return None
        return saving(tokens.cost, segments.cost)

    def to_json(self) -> dict[str, Any]:
        scores = {n: s.to_json() if isinstance(s, Counts | Simulated) else s for n, s in self.scores.items()}
        return {
            "neuron": self.neuron,
            "text": self.text,
            "why": self.why,
            "scores": scores,
            "unreadable": self.unreadable,
            "failures": self.failures,
            "cost": asdict(self.cost),
            "saving": self.saving,
        }


def explain(
    contexts: Contexts,
    neuron: int,
    backend: Backend,
    cache: Cache | None = None,
    config: ExplainConfig | None = None,
    *,
    encoder: Encoder | None = None,
) -> Explanation:
    """Explain and score one neuron; see `explain_all`."""
    return explain_all(contexts, [neuron], backend, cache, config, encoder=encoder)[0]


def explain_all(
    contexts: Contexts,
    neurons: Sequence[int],
    backend: Backend,
    cache: Cache | None = None,
    config: ExplainConfig | None = None,
    *,
    encoder: Encoder | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[Explanation]:
    """Explain and score neurons: first ask for all explanations, then for all scores.

    Failures are counted and affect nothing else. The same call with the same cache repeats only questions without a
    reply.

    Args:
        contexts: Codes of a corpus.
        neurons: Indices of the neurons.
        backend: The language model.
        cache: Cache of replies.
        config: Settings.
        encoder: Sentence encoder for the score "embedding".
        progress: Called with the number of questions done, of at most `questions_of`.

    Returns:
        The explanations, in the neurons' order.

    Raises:
        ExciseError: for an unknown neuron, a missing encoder, and as `ask_all` does.
    """
    config = config or ExplainConfig()
    if "embedding" in config.scorers and encoder is None:
        raise ExciseError("the score 'embedding' needs a sentence encoder; give one or leave it out")
    drawn = [_draw(contexts, neuron, config) for neuron in neurons]
    asked = [[explanation_question(d.shown, config.share, config.explanation_tokens)] if d.shown else [] for d in drawn]
    replies = _ask(asked, backend, cache, config, progress)
    texts = [_explained(outcomes) for outcomes in replies]
    tests = [_tests(text, d, config) if text else {} for (text, _), d in zip(texts, drawn, strict=True)]
    questions = [list(itertools.chain.from_iterable(t.questions for t in own.values())) for own in tests]
    answers = _ask(questions, backend, cache, config, progress)
    explained = []
    for d, (text, why), first, own, outcomes in zip(drawn, texts, replies, tests, answers, strict=True):
        scores: dict[str, Counts | Simulated | float | None] = {}
        unreadable = sum(not isinstance(outcome, Failure) for outcome in first) if text is None else 0
        rest = iter(outcomes)
        for name, test in own.items():
            part = list(itertools.islice(rest, len(test.questions)))
            scores[name] = test.judge(part)
            unreadable += test.unreadable(part)
        if text and encoder is not None and "embedding" in config.scorers:
            scores["embedding"] = embedding_auroc(text, d.firing, d.silent, encoder)
        explained.append(Explanation(d.neuron, text, why, scores, unreadable, Cost.of([*first, *outcomes])))
    return explained


def questions_of(contexts: Contexts, neurons: Sequence[int], config: ExplainConfig | None = None) -> int:
    """Return how many questions `explain_all` asks if every neuron gets an explanation."""
    config = config or ExplainConfig()
    drawn = [_draw(contexts, neuron, config) for neuron in neurons]
    tests = [test for d in drawn if d.shown for test in _tests("", d, config).values()]
    return sum(bool(d.shown) for d in drawn) + sum(len(test.questions) for test in tests)


@dataclass(frozen=True)
class _Drawn:
    """Contexts of a neuron: shown for an explanation, and held out to score it."""

    neuron: int
    shown: list[Context]
    firing: list[Context]
    silent: list[Context]


def _draw(contexts: Contexts, neuron: int, config: ExplainConfig) -> _Drawn:
    shown = contexts.top(neuron, config.shown)
    seen = {context.text for context in shown}
    firing = []
    # More than needed, since those that are shown, and those with the same text, are dropped.
    for context in contexts.spread(neuron, config.shown + config.held_out, config.seed + neuron):
        if context.text not in seen:
            seen.add(context.text)
            firing.append(context)
    if len(firing) > config.held_out:
        step = len(firing) / config.held_out
        firing = [firing[int(n * step)] for n in range(config.held_out)]
    silent = contexts.silent(neuron, config.held_out, config.seed + neuron)
    return _Drawn(neuron, shown, firing, silent)


def _explained(outcomes: Sequence[Outcome]) -> tuple[str | None, str]:
    """Return the explanation, or the reason why there is none."""
    if not outcomes:
        return None, "the neuron never fires on these prompts"
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        return None, outcome.reason
    text = parse_explanation(outcome.text)
    return text, "" if text else "the answer holds no explanation"


def _tests(text: str, drawn: _Drawn, config: ExplainConfig) -> dict[str, Exam | Simulation]:
    """Return the questions of each score that asks a language model, in the order of `SCORERS`."""
    seed, options = config.seed + drawn.neuron, {"batch": config.batch, "max_tokens": config.answer_tokens}
    tests: dict[str, Exam | Simulation] = {}
    if "detection" in config.scorers:
        tests["detection"] = detection(text, drawn.firing, drawn.silent, seed=seed, **options)
    if "fuzzing" in config.scorers:
        tests["fuzzing"] = fuzzing(text, drawn.firing, drawn.silent, share=config.share, seed=seed, **options)
    level: Level
    for level in reversed(get_args(Level)):
        if level in config.scorers:
            both = [*drawn.firing, *drawn.silent]
            random.Random(seed).shuffle(both)
            tests[level] = Simulation.of(level, text, both, config.longest, **options)
    return tests


def _ask(
    asked: Iterable[list[Question]],
    backend: Backend,
    cache: Cache | None,
    config: ExplainConfig,
    progress: Callable[[int], Any] | None,
) -> list[list[Outcome]]:
    """Ask all questions at once, and return the outcomes by neuron."""
    asked = list(asked)
    outcomes = iter(ask_all(backend, [q for own in asked for q in own], cache, config.jobs, progress))
    return [list(itertools.islice(outcomes, len(own))) for own in asked]
