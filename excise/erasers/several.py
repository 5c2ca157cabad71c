"""Several erasers: loading them from folders, merging them into one, and their attachments to one pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from excise.erasers.artefact.files import eraser_folders
from excise.erasers.artefact.pins import pinned_digests
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment
from excise.erasers.edits.merged_sae import MergedSAEEdit, can_be_merged
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.eraser import Eraser
from excise.errors import InvalidSetting, WrongModel
from excise.notebook import line, listed, quoted
from excise.pipeline import Pipeline
from excise.sites.site import Site

MERGED = "merged"
"""The method of a merged eraser."""


def load_erasers(
    folders: Sequence[str | PathLike[str]],
    *,
    signed_by: Signer | None = None,
    require_signature: bool = False,
    digests: Sequence[str] = (),
) -> dict[str, Eraser]:
    """Load the erasers in these folders, under unique names.

    Args:
        folders: Folders that hold an eraser, or a folder for each of several erasers.
        signed_by: The signer whose signature each needs.
        require_signature: Refuse if `signed_by` is None.
        digests: The digest that each eraser must have, in their order, or NAME=DIGEST by a folder's name.

    Returns:
        Erasers by name: an eraser's own name, or its folder's if two erasers share theirs.

    Raises:
        ExciseError: if one cannot be read or is not the one pinned, or two are the same.
    """
    places = [place for folder in folders for place in eraser_folders(Path(folder))]
    signed = {"signed_by": signed_by, "require_signature": require_signature}
    loaded = [
        Eraser.load(place, digest=digest, **signed)  # type: ignore[arg-type]
        for place, digest in zip(places, pinned_digests(places, digests), strict=True)
    ]
    by_digest: dict[str, Path] = {}
    for place, eraser in zip(places, loaded, strict=True):
        if eraser.digest in by_digest:
            raise InvalidSetting(f"{by_digest[eraser.digest]} and {place} are the same eraser; name it once")
        by_digest[eraser.digest] = place
    return dict(zip(_names(loaded, places), loaded, strict=True))


def _names(erasers: Sequence[Eraser], places: Sequence[Path]) -> list[str]:
    """Return a unique name for each eraser."""
    names = [eraser.name for eraser in erasers]
    for others in ([place.resolve().name for place in places], [str(place) for place in places]):
        shared = {name for name, count in Counter(names).items() if count > 1}
        names = [other if name in shared else name for name, other in zip(names, others, strict=True)]
    return names


def merge(erasers: Sequence[Eraser], name: str = "merged") -> Eraser:
    """Merge erasers of one model into one, which erases what all of them erase together.

    One product reads all neurons, so the time that is added to a prompt hardly depends on the number of concepts. A
    neuron of several erasers is turned down once.

    Args:
        erasers: Erasers that edit SAE neurons with gate="whole", as SNCE's do by default, or merged ones.
        name: Name of the result.

    Returns:
        The eraser, with all canary prompts, mentions and weaknesses. `created` names each eraser and its digest.

    Raises:
        InvalidSetting: There are fewer than two, or one is given twice or edits in another way.
        WrongModel: They were made for different models or SAEs.
    """
    repeated = Counter(eraser.digest for eraser in erasers).most_common(1)
    if len(erasers) < 2 or repeated[0][1] > 1:
        raise InvalidSetting("give at least two erasers to merge, each once")
    first = erasers[0]
    by_site: dict[Site, list[SAEEdit]] = {}
    for eraser in erasers:
        if any(eraser.made_for.get(key) != first.made_for.get(key) for key in ("encoders", "tokenizers")):
            raise WrongModel(f"{first.name!r} and {eraser.name!r} were made for different models; merge those of one")
        for edit in eraser.edits:
            if not can_be_merged(edit):
                raise InvalidSetting(
                    f"eraser {eraser.name!r} cannot be merged: only SNCE's with gate=whole can; attach it beside the "
                    "merged one"
                )
            by_site.setdefault(edit.site, []).append(edit)
    sources = [{"concept": e.concept, "digest": e.digest, "method": e.method, "name": e.name} for e in erasers]
    mentions = [row for eraser in erasers for row in eraser.verdict.get("mentions", ())]
    weak = [f"{eraser.concept}: {reason}" for eraser in erasers for reason in eraser.weak]
    return Eraser(
        edits=tuple(MergedSAEEdit.of(edits) for edits in by_site.values()),
        name=name,
        concept=", ".join(dict.fromkeys(eraser.concept for eraser in erasers)),
        mentions=tuple(dict.fromkeys(mention for eraser in erasers for mention in eraser.mentions)),
        made_for=first.made_for,
        created={"method": MERGED, "erasers": sources},
        canary=tuple(dict.fromkeys(canary for eraser in erasers for canary in eraser.canary)),
        canary_shift=min(eraser.canary_shift for eraser in erasers),
        method=MERGED,
        verdict={"mentions": mentions, "weak": weak} if all(eraser.verdict for eraser in erasers) else {},
    )


class Attachments(Sequence[Attachment]):
    """Several erasers on one pipeline, attached together: a context manager that detaches all of them.

    `strength` and `enabled` set every one of them.
    """

    def __init__(self, attached: Sequence[Attachment]) -> None:
        self._attached = tuple(attached)

    @classmethod
    def of(cls, pipe: Pipeline, erasers: Mapping[str, Eraser], **options: Any) -> Attachments:
        """Attach erasers by name, with the options of `Eraser.attach`. If one is refused, none is attached.

        Raises the errors of `Eraser.attach`.
        """
        made: list[Attachment] = []
        try:
            for name, eraser in erasers.items():
                made.append(eraser.attach(pipe, name=name, **options))
        except BaseException:
            cls(made).detach()
            raise
        return cls(made)

    def __repr__(self) -> str:
        return line(self, listed([quoted(attachment.name) for attachment in self], 5))

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
        """The strengths of all."""
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
        """Return the status of each by name, as `list_erasers` does."""
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
