"""Stage, items and outcomes: what an engine is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

Item = TypeVar("Item")
Taken = TypeVar("Taken", contravariant=True)


class Stage(Protocol[Taken]):
    """What is done to each item: a frozen dataclass of names and paths, which workers receive pickled."""

    def open(self) -> Callable[[Taken], object]:
        """Load what the items need, once in each worker. The function returned makes one item.

        That function must depend on the item alone, and end by writing `path` atomically: after a worker was lost, or
        where two engines work in one folder, it runs more than once. A text that it returns becomes the outcome's
        `why`. If it has a method `close`, the engine `local` calls that at the end.
        """
        ...

    def path(self, item: Taken) -> Path:
        """Return the file that exists if and only if the item is done."""
        ...

    def name(self, item: Taken) -> str:
        """Return the item's name. It is unique in the stage and valid in a file name."""
        ...


@dataclass(frozen=True)
class Needs:
    """What one worker needs. An engine that places workers (Ray) reserves it."""

    cpus: int = 0
    """CPU cores, and so threads of torch. With 0, workers of one machine share its cores equally."""
    gpus: float = 0
    """GPUs; 1 gives each worker its own, as long as there are enough."""
    memory: int = 0
    """Bytes of memory; 0 for any amount."""


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of an item."""

    item: Item
    state: Literal["made", "kept", "failed"]
    """"kept" if its file existed."""
    seconds: float = 0.0
    tries: int = 0
    error: str = ""
    """Class of the error. "Lost" if its workers died."""
    why: str = ""
    """The error in one line. Of an item that was made, the text that the stage's function returned, if any."""
    aside: bool = False
    """Whether the item is set aside in `failures` until a call with `retry`. False for errors that a user can fix."""
    elsewhere: bool = False
    """Whether another slice made the item or failed at it. That slice reports it."""


@dataclass(frozen=True)
class Answer:
    """What a worker reports about one try at an item. It is pickled, so it holds no exception."""

    kind: Literal["made", "raised", "lost", "unopened"]
    """"unopened" if the worker failed before it took the item."""
    seconds: float = 0.0
    error: str = ""
    why: str = ""
    trace: str = ""
    expected: bool = False
    """Whether the error is an ExciseError, which a user can fix."""
    disk: bool = False
    """Whether the disk caused the error (full, read-only), so that every other item would fail too."""
    others: bool = False
    """Whether a worker that was lost may have died of another item."""


class Pool(Protocol):
    """Workers of an engine. They start when items are submitted, and end with the context."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        """End the workers. After an error each of them may finish what it keeps on Ctrl-C."""
        ...

    def free(self) -> bool:
        """Return whether another item can be submitted now."""
        ...

    def submit(self, item: Any) -> None:
        """Give an item to a worker."""
        ...

    def wait(self) -> list[tuple[Any, Answer]]:
        """Wait until at least one submitted item has an answer, and return those that have. It may return none."""
        ...
