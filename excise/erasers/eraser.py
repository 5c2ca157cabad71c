"""Eraser: the artefact. What is edited, what it was made for, how it was made and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excise.erasers.artefact import hub
from excise.erasers.artefact.files import CARD
from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment, OnBypass
from excise.files import write_folder


class Eraser(Artefact):
    """A concept's erasure: attach it to a live pipeline with `attach`, save it, push it to the hub."""

    def save_pretrained(
        self, folder: Path | str, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Like `save`, with a card (README.md) beside the three files. With `push_to_hub` it is pushed too, to
        `repo_id` or else the folder's name, and the commit's address returned; `options` are those of `push_to_hub`."""
        path = Path(folder)
        write_folder(path, {**self.pack(), CARD: hub.card(self, repo_id or hub.SOMEWHERE)})
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
