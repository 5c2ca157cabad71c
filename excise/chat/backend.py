"""What is asked of a language model: one question, one answer, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from excise.errors import ExciseError


class Unavailable(ExciseError):
    """No question at all can be answered at present: nobody is there, the key is refused, the model is unknown."""


@dataclass(frozen=True)
class Question:
    """`system` says how to answer, `user` what is asked; at most `max_tokens` come back."""

    system: str
    user: str
    max_tokens: int = 256


@dataclass(frozen=True)
class Reply:
    """An answer, with the tokens it cost as the backend counts them; `cached` ones cost nothing this time."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


@dataclass(frozen=True)
class Failure:
    """A question without an answer, and why there is none."""

    reason: str


class Backend(Protocol):
    """A language model that answers. Implementations may be called from several threads."""

    @property
    def name(self) -> str:
        """What answers, and how: part of the cache's key, and told to readers. Never a key or a password."""
        ...

    def ask(self, question: Question) -> Reply:
        """The answer. Raises ExciseError where there is none, `Unavailable` where other questions have none either."""
        ...
