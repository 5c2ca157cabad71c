"""What a method is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from excise.errors import ExciseError
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from excise.concepts import Concept
    from excise.erasers import Eraser
else:
    from excise.moved import forward

    __getattr__ = forward(__name__)

AND = "+"
"""Joins the names of methods whose edits go into one eraser: `snce+saemnesia`."""


class Method(Protocol):
    """`fit` makes an eraser of a concept for a pipeline; `Config` makes its frozen configuration."""

    name: str

    @property
    def Config(self) -> Callable[..., Any]:
        """Settings by name, defaults for the rest. Raises ExciseError for an impossible value."""
        ...

    def fit(self, pipe: Pipeline, concept: Concept, config: Any) -> Eraser:
        """Raises ExciseError where the concept cannot be erased so."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A Method of one of our files: its name, its configuration's class and that file's `fit`."""

    name: str
    Config: Callable[..., Any]
    make: Callable[..., Eraser]

    def fit(self, pipe: Pipeline, concept: Concept, config: Any = None, **more: Any) -> Eraser:
        """As its file's `fit`. Raises ExciseError, saying what to lower, where memory does not suffice."""
        config = self.Config() if config is None else config
        try:
            return self.make(pipe, concept, config, **more)
        except (MemoryError, RuntimeError) as error:
            if not _of_memory(error):
                raise
            known = vars(config)
            lower = [name for name in LOWER if name in known and known[name] != 1]
            ways = [f"lower {' or '.join(lower)}"] if lower else []
            ways += ["choose a method that needs less, such as snce"] if self.name != "snce" else ["free some of it"]
            raise ExciseError(f"memory does not suffice for {self.name}; {', or '.join(ways)}") from error


LOWER = ("batch", "batch_size", "pictures", "retain", "anchors")
"""Settings that memory grows with, whichever method has them."""


def _of_memory(error: BaseException) -> bool:
    """Whether there was too little of it: torch says so in a class of its own on GPUs, in words on CPUs."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
