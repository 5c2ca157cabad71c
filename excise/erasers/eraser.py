"""Eraser: the artefact. What is edited, what it was made for, how it was made and what was measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from excise.erasers.apply.registry import module_of
from excise.erasers.artefact import formats, hub
from excise.erasers.artefact.formats import Check
from excise.erasers.artefact.signing import Signer, check_signature
from excise.erasers.attachment import Attachment, OnBypass
from excise.erasers.edits.registry import Edit, TextEdit
from excise.erasers.guard.coverage import absent_from
from excise.erasers.guard.model_digest import mismatches
from excise.errors import ExciseError
from excise.files import sha256, write_folder


@dataclass(frozen=True, eq=False)
class Eraser:
    """A concept's erasure as data: attach it to a live pipeline with `attach`.

    Raises ExciseError on construction where it edits something but names no canary prompt to prove it with.
    """

    edits: tuple[Edit, ...]
    name: str
    concept: str
    mentions: tuple[str, ...] = ()
    made_for: Mapping[str, Any] = field(default_factory=dict)
    """`integrity.made_for(pipe)` of the pipeline it was fitted on."""
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

    def __post_init__(self) -> None:
        if self.edits and not any(c.strip() for c in self.canary):
            raise ExciseError(f"eraser {self.name!r} has no canary prompt, so nothing could prove that it works")
        if not self.edits and self.method != "none":
            raise ExciseError(f"eraser {self.name!r} edits nothing; fit it again")
        if not (math.isfinite(self.canary_shift) and self.canary_shift >= 0):
            raise ExciseError(f"eraser {self.name!r} has an impossible canary shift of {self.canary_shift}")

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
        return sha256(formats.pack(self)["manifest.json"]) if self.edits else sha256(b"none")

    def save(self, folder: Path | str) -> None:
        """Put `eraser.json`, `eraser.safetensors` and `manifest.json` into `folder`, all at once or not at all."""
        write_folder(Path(folder), formats.pack(self))

    def save_pretrained(
        self, folder: Path | str, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Like `save`, with a card (README.md) beside the three files. With `push_to_hub` it is pushed too, to
        `repo_id` or else the folder's name, and the commit's address returned; `options` are those of `push_to_hub`."""
        path = Path(folder)
        write_folder(path, {**formats.pack(self), hub.CARD: hub.card(self, repo_id or hub.SOMEWHERE)})
        return self.push_to_hub(repo_id or path.name, **options) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Push an eraser",
    ) -> str:
        """Put the eraser and its card into a repository on the hub, in one commit, and return the commit's address.

        The repository, and the branch `revision`, are made where there are none. Raises ExciseError where the hub
        refuses.
        """
        return hub.push(self, repo_id, private=private, token=token, revision=revision, commit_message=commit_message)

    @classmethod
    def load(cls, folder: Path | str, *, signed_by: Signer | None = None, require_signature: bool = False) -> Eraser:
        """Read a saved eraser; with `signed_by`, only if that signer signed it, which is checked before it is parsed.

        Raises ExciseError where it is incomplete, altered, cut short, of another format or not signed as asked for, and
        where a signature is required but nobody named: one by just anybody proves nothing.
        """
        path = Path(folder)
        if require_signature and signed_by is None:
            raise ExciseError("anybody can sign; name whom you trust: signed_by=Signer(public_key=...)")
        files = formats.read(path)
        if signed_by is not None:
            check_signature(path, files, signed_by)
        formats.check_manifest(path, files)
        return cls(**formats.unpack(path, files))

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        cache_dir: Path | str | None = None,
        signed_by: Signer | None = None,
        require_signature: bool = False,
    ) -> Eraser:
        """The eraser in a folder, or in a repository on the hub (`owner/name`), which is downloaded unless cached.

        `revision` is a branch, a tag, or best a commit; `token`, `local_files_only` and `cache_dir` are the hub's.
        Raises ExciseError where it cannot be had, and as `load` does.
        """
        folder = Path(source)
        if not folder.exists():
            folder = hub.fetched(
                str(source), revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
            )
        return cls.load(folder, signed_by=signed_by, require_signature=require_signature)

    def attach(
        self,
        pipe: Any,
        strength: float = 1.0,
        strict: bool = True,
        *,
        sae: Any | None = None,
        name: str | None = None,
        on_bypass: OnBypass | None = None,
        allow_amplify: bool = False,
    ) -> Attachment:
        """Attach to `pipe` and prove with the canary that it works; use the result as a context manager.

        `sae` is needed by gate="topk" alone, `name` where another attached eraser has this one's. `on_bypass` says what
        becomes of a prompt whose states go round the eraser (embeddings encoded elsewhere, a text encoder that was
        changed, an IP-Adapter): "raise" (the default), "warn" or "allow". With `strict=False` another model's weights
        are let through, and bypasses too unless `on_bypass` says otherwise; an eraser that does not fire never is.
        A negative strength amplifies the concept and wants `allow_amplify`.
        Raises ExciseError where the pipeline is not the one it was made for, EraserDidNotFire where nothing changed.
        """
        return Attachment(
            self,
            pipe,
            strength=strength,
            strict=strict,
            sae=sae,
            name=name,
            on_bypass=on_bypass,
            allow_amplify=allow_amplify,
        )


def verify(
    folder: Path | str, pipe: Any | None = None, *, sae: Any | None = None, signed_by: Signer | None = None
) -> list[Check]:
    """Check a saved eraser, with `signed_by` its signature, and with `pipe` that it fits that pipeline and fires on it.

    Stops at the first failure that makes the later checks meaningless; nothing is raised for a bad eraser.
    """
    path = Path(folder)
    checks: list[Check] = []

    def passes(name: str, step: Any, detail: str) -> Any:
        try:
            result = step()
        except ExciseError as error:
            checks.append(Check(name, False, str(error)))
            return None
        checks.append(Check(name, True, detail))
        return result if result is not None else True

    files = passes("files", lambda: formats.read(path), "all three files are there")
    if files is None:
        return checks
    if signed_by is not None and not passes(
        "signature", lambda: check_signature(path, files, signed_by), f"signed by {signed_by}"
    ):
        return checks
    if passes("manifest", lambda: formats.check_manifest(path, files), "no byte was altered") is None:
        return checks
    eraser = passes("content", lambda: Eraser(**formats.unpack(path, files)), "format, shapes and values are valid")
    if eraser is None or pipe is None:
        return checks

    absent = absent_from(pipe, eraser)

    def same_model() -> None:
        if odd := mismatches(pipe, eraser.made_for, absent):
            raise ExciseError(f"made for another pipeline: {'; '.join(odd)}")

    def fires() -> None:
        with warnings.catch_warnings():
            # Another model is what the check before this one reports; on the right one the full shift is asked for.
            warnings.simplefilter("ignore")
            eraser.attach(pipe, strict=same, sae=sae).detach()

    there = [edit for edit in eraser.edits if edit.site.component not in absent]
    passes("sites", lambda: [module_of(pipe, edit) for edit in there], "every Site exists")
    same = passes("model", same_model, "text encoder and tokenizer are those it was made for") is not None
    prompts = "the canary prompt" if len(eraser.canary) == 1 else f"each of {len(eraser.canary)} canary prompts"
    passes("canary", fires, f"what the denoiser reads changes on {prompts}")
    if eraser.verdict:
        found = "it met every limit when it was made"
        checks.append(Check("verdict", not eraser.weak, f"weak: {'; '.join(eraser.weak)}" if eraser.weak else found))
    return checks
