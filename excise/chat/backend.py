"""Question to a language model, its answer, and the backend that gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from excise.errors import ExciseError


class Unavailable(ExciseError):
    """Error that every question would meet at present: no server, a refused key, an unknown model."""


@dataclass(frozen=True)
class Question:
    """Question with a system prompt and a user's message. The answer has at most `max_tokens` tokens."""

    system: str
    user: str
    max_tokens: int = 256


@dataclass(frozen=True)
class Reply:
    """Answer, with its tokens as the backend counts them. A `cached` answer cost nothing this time."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


@dataclass(frozen=True)
class Failure:
    """Reason why a question has no answer."""

    reason: str


class Backend(Protocol):
    """Language model that answers questions. Implementations may be called from several threads."""

    @property
    def name(self) -> str:
        """Model and its settings: part of the cache key, and shown to users. Never contains a key or password."""
        ...

    def ask(self, question: Question) -> Reply:
        """Return the answer. Raises ExciseError if it fails, and `Unavailable` if all questions would."""
        ...
