"""Several erasers at once: the folder that holds them, and their attachments on one pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from excise.erasers.artefact.files import eraser_folders
from excise.erasers.attachment import Attachment
from excise.erasers.eraser import Eraser
from excise.errors import InvalidSetting


def load_erasers(folders: Sequence[Path], **options: Any) -> dict[str, Eraser]:
    """The erasers in these folders and in folders of erasers, each by a name that no other has.

    The name is the eraser's own, or its folder's where two erasers share theirs; `options` are those of `Eraser.load`.
    Raises ExciseError where one cannot be read, or two are the same.
    """
    places = [place for folder in folders for place in eraser_folders(folder)]
    loaded = [Eraser.load(place, **options) for place in places]
    by_digest: dict[str, Path] = {}
    for place, eraser in zip(places, loaded, strict=True):
        if eraser.digest in by_digest:
            raise InvalidSetting(f"{by_digest[eraser.digest]} and {place} are the same eraser; name it once")
        by_digest[eraser.digest] = place
    return dict(zip(_names(loaded, places), loaded, strict=True))


def _names(erasers: Sequence[Eraser], places: Sequence[Path]) -> list[str]:
    """A name for each, all different."""
    own = [eraser.name for eraser in erasers]
    for others in ([place.resolve().name for place in places], [str(place) for place in places]):
        shared = {name for name, count in Counter(own).items() if count > 1}
        own = [other if name in shared else name for name, other in zip(own, others, strict=True)]
    return own


class Attachments(Sequence[Attachment]):
    """Several erasers on one pipeline, attached together: a context manager that detaches all of them.

    `strength` and `enabled` set every one of them.
    """

    def __init__(self, attached: Sequence[Attachment]) -> None:
        self._attached = tuple(attached)

    @classmethod
    def of(cls, pipe: Any, erasers: Mapping[str, Eraser], **options: Any) -> Attachments:
        """Attach erasers by name, with the options of `Eraser.attach`: all of them, or none where one is refused.

        Raises ExciseError and EraserDidNotFire as `Eraser.attach` does.
        """
        made: list[Attachment] = []
        try:
            for name, eraser in erasers.items():
                made.append(eraser.attach(pipe, name=name, **options))
        except BaseException:
            cls(made).detach()
            raise
        return cls(made)

    @overload
    def __getitem__(self, which: int) -> Attachment: ...

    @overload
    def __getitem__(self, which: slice) -> Sequence[Attachment]: ...

    def __getitem__(self, which: int | slice) -> Attachment | Sequence[Attachment]:
        return self._attached[which]

    def __len__(self) -> int:
        return len(self._attached)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._attached)

    @property
    def strength(self) -> tuple[float, ...]:
        """The strength of each."""
        return tuple(attachment.strength for attachment in self)

    @strength.setter
    def strength(self, value: float) -> None:
        for attachment in self:
            attachment.check_strength(value)
        for attachment in self:
            attachment.strength = value

    @property
    def enabled(self) -> bool:
        """Whether all of them are enabled."""
        return all(attachment.enabled for attachment in self)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for attachment in self:
            attachment.enabled = value

    def status(self) -> dict[str, dict[str, Any]]:
        """The status of each by its name, as `list_erasers` gives it."""
        return {attachment.name: attachment.status() for attachment in self}

    def detach(self) -> None:
        """Detach all of them, the last one first. Calling it twice is harmless."""
        for attachment in reversed(self._attached):
            attachment.detach()

    def __enter__(self) -> Attachments:
        for attachment in self:
            attachment.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
