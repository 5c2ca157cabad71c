"""Many questions at once, and their cost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from excise.chat.backend import Backend, Failure, Question, Reply, Unavailable
from excise.chat.cache import Cache
from excise.errors import ExciseError, reason
from excise.interruption import interruptible

Outcome = Reply | Failure
"""Outcome of a question."""

_POLL = 0.1
"""Seconds between two checks for Ctrl-C."""


@dataclass(frozen=True)
class Cost:
    """Cost of questions."""

    questions: int = 0
    cached: int = 0
    """Questions answered from the cache."""
    unanswered: int = 0
    """Questions without an answer. Their tokens are not known."""
    tokens: int = 0
    """Tokens of all answered questions and their answers, cached ones included."""
    spent: int = 0
    """Tokens without those of cached answers."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Cost:
        """Sum the cost of outcomes."""
        return sum((_cost(outcome) for outcome in outcomes), cls())

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def _cost(outcome: Outcome) -> Cost:
    if isinstance(outcome, Failure):
        return Cost(1, unanswered=1)
    tokens = outcome.prompt_tokens + outcome.completion_tokens
    return Cost(1, cached=int(outcome.cached), tokens=tokens, spent=0 if outcome.cached else tokens)


def ask_all(
    backend: Backend,
    questions: Sequence[Question],
    cache: Cache | None = None,
    jobs: int = 4,
    progress: Callable[[int], Any] | None = None,
    patience: int = 5,
) -> list[Outcome]:
    """Ask questions, several at once, and return their outcomes in order. Equal questions are asked once.

    A question that fails does not stop the others. Replies enter the cache as they arrive, even if Ctrl-C stops the
    call, so the same call resumes where it stopped.

    Args:
        jobs: Number of questions to ask at once.
        progress: Called with the number of questions just settled.
        patience: Number of `Unavailable` errors in a row after which no more questions are asked. The rest then fail.

    Raises ExciseError if the cache cannot be written.
    """
    if jobs < 1 or patience < 1:
        raise ExciseError(f"jobs ({jobs}) and patience ({patience}) must be at least 1")
    places: dict[Question, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question, []).append(place)
    outcomes: dict[int, Outcome] = {}

    def settle(question: Question, outcome: Outcome) -> None:
        first, *others = places[question]
        outcomes[first] = outcome
        for place in others:
            outcomes[place] = replace(outcome, cached=True) if isinstance(outcome, Reply) else outcome
        if progress is not None:
            progress(len(places[question]))

    waiting = []
    for question in places:
        known = None if cache is None else cache.get(backend.name, question)
        if known is None:
            waiting.append(question)
        else:
            settle(question, known)
    with interruptible() as interrupted, _Asking(backend, waiting, jobs, patience) as asking:
        while (answered := asking.next(interrupted)) is not None:
            question, outcome = answered
            if isinstance(outcome, Reply):
                if cache is not None:
                    cache.put(backend.name, question, outcome)
                settle(question, outcome)
            else:
                settle(question, Failure(str(outcome)))
    for question in waiting:
        if places[question][0] not in outcomes:
            settle(question, Failure(f"not asked, after repeated failures: {asking.reason}"))
    return [outcomes[place] for place in range(len(questions))]


class _Asking:
    """Context manager of the threads that ask. They are daemons, so that one awaiting an answer does not block exit."""

    def __init__(self, backend: Backend, questions: Sequence[Question], jobs: int, patience: int) -> None:
        self._backend, self._left, self._patience = backend, len(questions), patience
        self.reason = ""
        """Why no more questions are asked: the last of `patience` failures in a row."""
        self._failed, self._counting = 0, threading.Lock()
        self._waiting: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[Question, Reply | ExciseError]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        for question in questions:
            self._waiting.put(question)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(jobs, len(questions)))]

    def __enter__(self) -> _Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Start no more questions. Those in progress are still awaited."""
        self._stopped.set()

    def next(self, interrupted: Callable[[], bool]) -> tuple[Question, Reply | ExciseError] | None:
        """Return the next outcome, or None after the last.

        After Ctrl-C, outcomes that have arrived come first, then KeyboardInterrupt is raised.
        """
        while self._left:
            alive = any(thread.is_alive() for thread in self._threads)
            stop = interrupted()
            try:
                question, outcome = self._answered.get(timeout=0 if stop else _POLL)
            except queue.Empty:
                if stop:
                    raise KeyboardInterrupt from None
                if not alive:
                    return None
                continue
            self._left -= 1
            return question, outcome
        return None

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                question = self._waiting.get_nowait()
            except queue.Empty:
                return
            outcome = self._ask(question)
            # Counted here, not where answers are read: a slow reader would let more questions go out meanwhile.
            with self._counting:
                self._failed = self._failed + 1 if isinstance(outcome, Unavailable) else 0
                if self._failed == self._patience:
                    self.reason = str(outcome)
                    self.stop()
            self._answered.put((question, outcome))

    def _ask(self, question: Question) -> Reply | ExciseError:
        """Return the reply, or the failure as one error, whatever a server's answer made the backend raise."""
        try:
            return self._backend.ask(question)
        except ExciseError as error:
            return error
        except Exception as error:
            return ExciseError(f"{type(error).__name__}: {reason(error)}")
