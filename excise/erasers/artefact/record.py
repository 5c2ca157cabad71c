"""Artefact: an eraser as data, without a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.erasers.artefact import files, formats
from excise.erasers.artefact.signing import Signer, check_signature
from excise.erasers.edits.registry import Edit, TextEdit
from excise.errors import ExciseError, InvalidSetting
from excise.files import sha256, write_folder
from excise.notebook import counted, line, listed, quoted, table

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, repr=False)
class Artefact:
    """What an eraser edits, what it was made for, how it was made and what was measured.

    Raises ExciseError on construction where it edits something but names no canary prompt to prove it with.
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
    """What was measured when it was fitted, as json."""
    canary: tuple[str, ...] = ()
    """Prompts on which the edit must visibly change what the denoiser reads."""
    canary_shift: float = 0.0
    """The smallest relative L2 change of those states over the canaries, at strength 1, when it was fitted."""
    method: str = "snce"
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What was found when it was tried, as json (`excise.methods.judging`); empty where it was not."""

    commit: str | None = field(default=None, init=False)
    """The commit of the hub's repository that it was loaded from; None for one from a folder or just made. Not saved,
    and an eraser made from this one by `dataclasses.replace` has none."""

    def __post_init__(self) -> None:
        if self.edits and not any(c.strip() for c in self.canary):
            raise ExciseError(f"eraser {self.name!r} has no canary prompt, so nothing could prove that it works")
        if not self.edits and self.method != "none":
            raise ExciseError(f"eraser {self.name!r} edits nothing; fit it again")
        if not (math.isfinite(self.canary_shift) and self.canary_shift >= 0):
            raise ExciseError(f"eraser {self.name!r} has an impossible canary shift of {self.canary_shift}")

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
        """A table for notebooks."""
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
        """Why it cannot be relied on, a clause each; empty for an eraser that works, and for one that was not tried."""
        return tuple(self.verdict.get("weak", ()))

    @property
    def text_edits(self) -> list[TextEdit]:
        """The edits of text encoders."""
        return [edit for edit in self.edits if edit.site.part == "text"]  # type: ignore[misc]

    @property
    def denoisers(self) -> list[str]:
        """Names of the denoisers that are edited."""
        return sorted({edit.site.component for edit in self.edits if edit.site.part == "denoiser"})

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the digests of everything else: the artefact's identity."""
        return sha256(self.pack()["manifest.json"]) if self.edits else sha256(b"none")

    def pack(self) -> dict[str, bytes]:
        """The three files' bytes by name. Raises ExciseError where it edits nothing."""
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
        """Put `eraser.json`, `eraser.safetensors` and `manifest.json` into `folder`, all at once or not at all."""
        write_folder(Path(folder), self.pack())

    @classmethod
    def load(cls, folder: Path | str, *, signed_by: Signer | None = None, require_signature: bool = False) -> Self:
        """Read a saved eraser; with `signed_by`, only if that signer signed it, which is checked before it is parsed.

        Raises ExciseError where it is incomplete, altered, cut short, of another format or not signed as asked for, and
        where a signature is required but nobody named: one by just anybody proves nothing.
        """
        path = Path(folder)
        if require_signature and signed_by is None:
            raise InvalidSetting("anybody can sign; name whom you trust: signed_by=Signer(public_key=...)")
        saved = files.read(path)
        if signed_by is not None:
            check_signature(path, saved, signed_by)
        files.check_manifest(path, saved)
        return cls(**formats.unpack(path, saved))


def _neurons(edit: Edit) -> str:
    """`neuron 5`, `neurons 5, 7`, or nothing for an edit without neurons."""
    numbers = edit.neurons
    return f"neuron{'s' * (len(numbers) > 1)} {listed(numbers)}" if numbers else ""


def _strength(edit: Edit) -> str:
    return "{} = {:.4g}".format(*edit.coefficient)
