"""A prompt and one neuron's codes in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from excise.errors import ExciseError

_SPECIAL = re.compile(r"\s*⟨.*⟩\s*")


def is_special(token: str) -> bool:
    """Whether a token is no text of the prompt, such as ⟨end⟩ (`excise.sites.tokens`)."""
    return not token or _SPECIAL.fullmatch(token) is not None


@dataclass(frozen=True)
class Context:
    """A prompt and one neuron's codes in it.

    tokens: its scored tokens as text, each with the space before it if there is one, so that joined they read as the
    prompt does. codes: the neuron's TopK code at each, 0 where it is silent.
    """

    tokens: tuple[str, ...]
    codes: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.codes):
            raise ExciseError(f"a context has {len(self.tokens)} tokens but {len(self.codes)} codes")

    @property
    def text(self) -> str:
        """The prompt on one line, without tokens that are no text."""
        return " ".join("".join(token for token in self.tokens if not is_special(token)).split())

    @property
    def peak(self) -> float:
        """The largest code."""
        return max(self.codes, default=0.0)
