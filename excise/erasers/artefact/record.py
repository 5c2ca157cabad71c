"""Artefact: the data of an eraser, without a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.erasers.artefact import files, formats
from excise.erasers.artefact.pins import check_pins
from excise.erasers.artefact.signing import Signer, check_signature
from excise.erasers.edits.merged_sae import MergedSAEEdit
from excise.erasers.edits.registry import Edit, TextEdit
from excise.errors import ExciseError, InvalidSetting
from excise.files import sha256, write_folder
from excise.notebook import counted, line, listed, quoted, table

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_CANARIES, LONGEST_CANARY = 13, 2000
"""Largest number of canary prompts, and of characters in one. Attaching encodes each of them, so a file must not be
able to ask for more than fitting makes: one, and one more for each of 12 mentions."""
MOST_OF_MERGED = 20_000
"""Largest number of canary prompts of a merged eraser, which may have `MOST_CANARIES` for each neuron."""


def most_canaries(edits: Sequence[Edit]) -> int:
    """Return the largest number of canary prompts that an eraser with these edits may have."""
    merged = sum(len(edit.neurons) for edit in edits if isinstance(edit, MergedSAEEdit))
    return min(MOST_CANARIES * max(1, merged), MOST_OF_MERGED)


@dataclass(frozen=True, eq=False, repr=False)
class Artefact:
    """The data of an eraser: its edits, the model it was made for, how it was made and what was measured.

    Raises ExciseError on construction if it has edits but no canary prompt to prove them with, or too many or too long
    ones.
    """

    edits: tuple[Edit, ...]
    name: str
    concept: str
    mentions: tuple[str, ...] = ()
    made_for: Mapping[str, Any] = field(default_factory=dict)
    """`model_digest.made_for(pipe)` of the pipeline it was fitted on."""
    created: Mapping[str, Any] = field(default_factory=dict)
    """The method's configuration, as json."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Measurements at fit time, as json."""
    canary: tuple[str, ...] = ()
    """Prompts for which the edit must change what the denoiser reads."""
    canary_shift: float = 0.0
    """The smallest relative L2 change of those states over the canaries, at strength 1, at fit time."""
    method: str = "snce"
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """Results of its test, as json (`excise.methods.judging`); empty if it was not tested."""

    commit: str | None = field(default=None, init=False)
    """The commit of the hub repository that it was loaded from, or None. It is not saved, and `dataclasses.replace`
    drops it."""

    def __post_init__(self) -> None:
        if self.edits and not any(c.strip() for c in self.canary):
            raise ExciseError(f"eraser {self.name!r} has no canary prompt to prove that it works; fit it again")
        most = most_canaries(self.edits)
        if len(self.canary) > most or any(len(text) > LONGEST_CANARY for text in self.canary):
            raise ExciseError(
                f"eraser {self.name!r} has {len(self.canary)} canary prompts of up to {max(map(len, self.canary))} "
                f"characters, but at most {most} of {LONGEST_CANARY} are allowed; fit it again"
            )
        if not self.edits and self.method != "none":
            raise ExciseError(f"eraser {self.name!r} edits nothing; fit it again")
        if not (math.isfinite(self.canary_shift) and self.canary_shift >= 0):
            raise ExciseError(f"eraser {self.name!r} has an impossible canary shift {self.canary_shift}; fit it again")

    def __repr__(self) -> str:
        places = [f"{edit.site.key} {_neurons(edit)}".strip() for edit in self.edits]
        return line(
            self,
            quoted(self.name),
            f"concept={quoted(self.concept)}",
            f"method={quoted(self.method)}",
            f"edits: {listed(places, 2)}" if places else "edits nothing",
            f"weak: {counted(len(self.weak), 'reason')}" if self.weak else "",
            f"commit={self.commit[:12]}" if self.commit else "",
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        limits = "; ".join(self.weak) or ("met every limit" if self.verdict else "not tested")
        edits = [(f"edit at {e.site.key}", f"{_neurons(e)}, {_strength(e)}".removeprefix(", ")) for e in self.edits]
        rows = [
            ("concept", self.concept),
            ("mentions", ", ".join(self.mentions)),
            ("method", self.method),
            *edits,
            ("made for", self.made_for.get("model") or self.made_for.get("pipeline", "not recorded")),
            ("weaknesses", limits),
            ("canary", "; ".join(self.canary)),
            ("digest", self.digest),
            *((("commit", self.commit),) if self.commit else ()),
        ]
        return table(f"Eraser {self.name}", (), rows)

    @property
    def weak(self) -> tuple[str, ...]:
        """Reasons why it is unreliable, one clause each. Empty for an eraser that works or was not tested."""
        return tuple(self.verdict.get("weak", ()))

    @property
    def text_edits(self) -> list[TextEdit]:
        """The edits of text encoders."""
        return [edit for edit in self.edits if edit.site.part == "text"]  # type: ignore[misc]

    @property
    def denoisers(self) -> list[str]:
        """Names of the edited denoisers."""
        return sorted({edit.site.component for edit in self.edits if edit.site.part == "denoiser"})

    @cached_property
    def digest(self) -> str:
        """Identity of the artefact: the sha256 of the manifest, which holds the digests of the other files."""
        return sha256(self.pack()["manifest.json"]) if self.edits else sha256(b"none")

    def pack(self) -> dict[str, bytes]:
        """Return the bytes of the three files by name. Raise ExciseError if it edits nothing."""
        if not self.edits:
            raise ExciseError(f"{self.name!r} edits nothing, so there is nothing to save")
        about: dict[str, Any] = {
            "method": self.method,
            "name": self.name,
            "concept": self.concept,
            "mentions": list(self.mentions),
            "made_for": dict(self.made_for),
            "created": dict(self.created),
            "measured": dict(self.measured),
            "canary": list(self.canary),
            "canary_shift": float(self.canary_shift),
        }
        return formats.pack(self.edits, about | ({"verdict": dict(self.verdict)} if self.verdict else {}))

    def save(self, folder: Path | str) -> None:
        """Write `eraser.json`, `eraser.safetensors` and `manifest.json` to `folder`, atomically."""
        write_folder(Path(folder), self.pack())

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        signed_by: Signer | None = None,
        require_signature: bool = False,
        digest: str | None = None,
        concept: str | None = None,
    ) -> Self:
        """Load a saved eraser.

        Args:
            folder: Folder of the eraser.
            signed_by: The signer whose signature is required. It is checked before anything is parsed.
            require_signature: Refuse if `signed_by` is None, since a signature by anyone proves nothing.
            digest, concept: The digest or the concept that it must have: which of the signer's erasers it is.

        Raises:
            ExciseError: if it is incomplete, altered, of another format, or not signed or pinned as required.
        """
        path = Path(folder)
        if require_signature and signed_by is None:
            raise InvalidSetting("anybody can sign; name the signer that you trust: signed_by=Signer(public_key=...)")
        saved = files.read(path)
        if signed_by is not None:
            check_signature(path, saved, signed_by)
        files.check_manifest(path, saved)
        check_pins(path, saved, digest, concept)
        return cls(**formats.unpack(path, saved))


def _neurons(edit: Edit) -> str:
    """Return `neuron 5`, `neurons 5, 7`, or nothing for an edit without neurons."""
    numbers = edit.neurons
    return f"neuron{'s' * (len(numbers) > 1)} {listed(numbers)}" if numbers else ""


def _strength(edit: Edit) -> str:
    return "{} = {:.4g}".format(*edit.coefficient)
