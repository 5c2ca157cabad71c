"""Several erasers: loading them from folders, merging them into one, and their attachments to one pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from excise.concepts.concept import mentioned
from excise.erasers.artefact.files import eraser_folders
from excise.erasers.artefact.pins import pinned_digests
from excise.erasers.artefact.record import most_canaries
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment
from excise.erasers.edits.merged_sae import MERGED, MergedSAEEdit, can_be_merged, parts_of, words_instead
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.eraser import Eraser
from excise.errors import InvalidSetting, WrongModel
from excise.notebook import line, listed, quoted
from excise.pipeline import Pipeline
from excise.sites.language import LanguageModel
from excise.sites.site import Site


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
    neuron of several erasers acts once: as in the first of them that has it with `replace_with`, or else it is turned
    down. When it is attached, every canary prompt must move at least half as far as the one that moved least when the
    parts were fitted.

    Args:
        erasers: Erasers that edit SAE neurons with gate="whole", as SNCE's do by default, also with `replace_with`, or
            merged ones.
        name: Name of the result.

    Returns:
        The eraser, with all mentions and weaknesses, and with at least one canary prompt of each. `created` names each
        eraser and its digest.

    Raises:
        InvalidSetting: There are fewer than two, or one is given twice, edits in another way, has no canary shift, or
            moves states to what another one erases.
        WrongModel: They were made for different models or SAEs.
        Tampered: Two of them have different rows of one neuron.
    """
    repeated = Counter(eraser.digest for eraser in erasers).most_common(1)
    if len(erasers) < 2 or repeated[0][1] > 1:
        raise InvalidSetting("give at least two erasers to merge, each once")
    _check_words(erasers)
    by_site: dict[Site, list[SAEEdit]] = {}
    for eraser in erasers:
        _check_part(eraser, erasers[0])
        for edit in eraser.edits:
            by_site.setdefault(edit.site, []).append(edit)  # type: ignore[arg-type]
    weak = [(e.concept, reason) for e in erasers for reason in (e.weak if e.verdict else ("it was not tested",))]
    verdict = {
        "mentions": [row for eraser in erasers for row in eraser.verdict.get("mentions", ())],
        "weak": [f"{concept}: {reason}" for concept, reason in weak],
    }
    edits = tuple(MergedSAEEdit.of(edits) for edits in by_site.values())
    return Eraser(
        edits=edits,
        name=name,
        concept=", ".join(dict.fromkeys(eraser.concept for eraser in erasers)),
        mentions=_in_turn([eraser.mentions for eraser in erasers]),
        made_for=erasers[0].made_for,
        created={"method": MERGED, "erasers": [source for eraser in erasers for source in _sources(eraser)]},
        canary=_in_turn([eraser.canary for eraser in erasers])[: most_canaries(edits)],
        canary_shift=min(eraser.canary_shift for eraser in erasers),
        method=MERGED,
        verdict=verdict,
    )


def _check_part(eraser: Eraser, first: Eraser) -> None:
    """Raise an error unless the eraser can be merged with the first one."""
    if any(eraser.made_for.get(key) != first.made_for.get(key) for key in ("encoders", "tokenizers", "lengths")):
        raise WrongModel(f"{first.name!r} and {eraser.name!r} were made for different models; merge those of one")
    if (
        not all(can_be_merged(edit) for edit in eraser.edits)
        or eraser.made_for.get("pipeline") == LanguageModel.__name__
    ):
        raise InvalidSetting(
            f"eraser {eraser.name!r} cannot be merged: only SNCE's with gate=whole and without ortho can, of pipelines "
            "that generate pictures; attach it together with the merged one"
        )
    if not eraser.canary_shift > 0:
        raise InvalidSetting(f"eraser {eraser.name!r} has no canary shift to prove it by; fit it again")


def _check_words(erasers: Sequence[Eraser]) -> None:
    """Raise InvalidSetting if one moves states to another's concept: neurons read the model's own states alone."""
    erased = tuple(dict.fromkeys(mention for eraser in erasers for mention in eraser.mentions))
    for eraser in erasers:
        for word in dict.fromkeys(word for edit in eraser.edits for word in words_instead(edit)):
            if own := erased and mentioned(word, erased):
                raise InvalidSetting(
                    f"eraser {eraser.name!r} moves states to those of {word!r}, and {own!r} is to be erased; fit it "
                    "with another word"
                )


def _in_turn(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return each text once: the first of every group, then the second ones, and so on."""
    rows = zip_longest(*groups)
    return tuple(dict.fromkeys(text for row in rows for text in row if text is not None))


def _sources(eraser: Eraser) -> list[dict[str, Any]]:
    """Return what a merged eraser says of a part, or of each of its parts."""
    if eraser.method == MERGED:
        return parts_of(eraser.created)
    return [{"concept": eraser.concept, "digest": eraser.digest, "method": eraser.method, "name": eraser.name}]


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
