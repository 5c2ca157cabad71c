"""The interface of a method, and the class that our own methods use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Protocol of a method: `fit` makes an eraser of a concept for a pipeline, `Config` its frozen configuration."""

    name: str

    @property
    def Config(self) -> Callable[..., Any]:
        """Make a configuration from settings by name, with defaults for the rest.

        Raises ExciseError for an invalid value.
        """
        ...

    def fit(self, pipe: Pipeline, concept: Concept, config: Any) -> Eraser:
        """Fit an eraser of `concept` for `pipe`. Raises ExciseError if the method cannot erase it."""
        ...


@dataclass(frozen=True)
class Fitted:
    """Method defined by one of our modules: a name, a configuration class and the module's `fit`."""

    name: str
    Config: Callable[..., Any]
    make: Callable[..., Eraser]
    solve: Callable[..., Sequence[Any]] | None = None
    """For a method in closed form: return its edits, given a pipeline, the concept's mentions, the words to keep and a
    configuration. `excise verify` compares them with an eraser's."""

    def fit(self, pipe: Pipeline, concept: Concept, config: Any = None, **more: Any) -> Eraser:
        """Fit an eraser. On out-of-memory, raises ExciseError that names the settings to reduce."""
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
            raise ExciseError(f"there is not enough memory for {self.name}; {', or '.join(ways)}") from error


LOWER = ("batch", "batch_size", "pictures", "retain", "anchors")
"""Settings that increase memory use, for whichever method has them."""


def _of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: torch has an exception class for it on GPUs, only a message on CPUs."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
