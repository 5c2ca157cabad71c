"""A prompt and one neuron's codes in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from excise.errors import ExciseError

_SPECIAL = re.compile(r"\s*⟨.*⟩\s*")


def is_special(token: str) -> bool:
    """Return whether a token is not part of the prompt's text, such as ⟨end⟩ (`excise.sites.tokens`)."""
    return not token or _SPECIAL.fullmatch(token) is not None


@dataclass(frozen=True)
class Context:
    """Prompt with one neuron's codes.

    Args:
        tokens: Its scored tokens as text, with leading spaces, so that joined they give the prompt.
        codes: The neuron's TopK code at each token, 0 where it is silent.
    """

    tokens: tuple[str, ...]
    codes: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.codes):
            raise ExciseError(f"a context has {len(self.tokens)} tokens but {len(self.codes)} codes")

    @property
    def text(self) -> str:
        """The prompt on one line, without special tokens."""
        return " ".join("".join(token for token in self.tokens if not is_special(token)).split())

    @property
    def peak(self) -> float:
        """The largest code."""
        return max(self.codes, default=0.0)
