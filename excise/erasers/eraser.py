"""Eraser: the saved artefact with its edits, the model it was made for, how it was made and what was measured."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from excise.erasers.artefact import hub
from excise.erasers.artefact.files import CARD, FILES, SIGNATURE
from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment, OnBypass
from excise.files import write_folder
from excise.hub import fetch

if TYPE_CHECKING:
    from excise.pipeline import Pipeline
    from excise.sae import TopKSAE

StrPath = str | PathLike[str]


class Eraser(Artefact):
    """The erasure of a concept: attach it to a pipeline, save it, push it to the hub.

    Example:
        >>> eraser = excise.erase(pipe, "gun")
        >>> with eraser.attach(pipe):
        ...     image = pipe("a gun on a table").images[0]
    """

    def save_pretrained(
        self,
        folder: StrPath,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Push an eraser",
    ) -> str | None:
        """Save the eraser's three files and a card (README.md) in a folder, atomically.

        Args:
            folder: A new or empty folder, or one with an eraser, which is replaced.
            repo_id: Repository named on the card, and pushed to with `push_to_hub`; by default the folder's name.
            push_to_hub: Whether to push it too.
            private: Whether a new repository is private, by default as in the account's settings.
            token: The hub's access token, by default the one of `hf auth login`.
            revision: Branch to push to, created if missing, by default `main`.
            commit_message: First line of the commit message.

        Returns:
            The commit's address if it was pushed, else None.

        Raises:
            ExciseError: if the folder holds other files or cannot be written, or the hub refuses.
        """
        path = Path(folder)
        write_folder(path, {**self.pack(), CARD: hub.card(self, repo_id or hub.SOMEWHERE)})
        if not push_to_hub:
            return None
        return self.push_to_hub(
            repo_id or path.name, private=private, token=token, revision=revision, commit_message=commit_message
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Push an eraser",
    ) -> str:
        """Push the eraser and its card to a repository on the hub, in one commit.

        Args:
            repo_id: `OWNER/NAME`, created if missing.
            private: Whether a new repository is private, by default as in the account's settings.
            token: The hub's access token, by default the one of `hf auth login`.
            revision: Branch to push to, created if missing, by default `main`.
            commit_message: First line of the commit message.

        Returns:
            The commit's address.

        Raises:
            ExciseError: if the name is impossible, or the hub refuses.
        """
        return hub.push(self, repo_id, private=private, token=token, revision=revision, commit_message=commit_message)

    @classmethod
    def from_pretrained(
        cls,
        source: StrPath,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        cache_dir: StrPath | None = None,
        signed_by: Signer | None = None,
        require_signature: bool = False,
        digest: str | None = None,
        concept: str | None = None,
    ) -> Eraser:
        """Load an eraser from a folder, or from a repository on the hub, which is downloaded unless cached.

        Args:
            source: A folder, or `OWNER/NAME` on the hub.
            revision: A branch, a tag, or (best) a commit, so that a later push cannot change what is loaded.
            subfolder: Folder within the folder or repository that holds the eraser.
            token: The hub's access token, by default the one of `hf auth login`.
            local_files_only: Use only the cache.
            cache_dir: The hub's cache folder, by default the standard one.
            signed_by: The signer whose signature is required. It is checked before anything is parsed.
            require_signature: Refuse if `signed_by` is None.
            digest, concept: The digest or the concept that it must have: which of the signer's erasers it is.

        Returns:
            The eraser. Its `commit` is the commit it came from, or None for a local folder.

        Raises:
            NotFound: if there is no such folder, repository, revision or subfolder.
            Tampered: if its files are incomplete, altered, or not signed or pinned as required.
            InvalidSetting: if a folder is given a revision, or the subfolder leads out of it.

        Example:
            >>> eraser = excise.Eraser.from_pretrained("owner/gun-eraser", revision="6ba7b81")
        """
        found = fetch(
            source,
            (*FILES, SIGNATURE),
            "eraser",
            revision=revision,
            subfolder=subfolder,
            token=token,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
        required = {
            "signed_by": signed_by,
            "require_signature": require_signature,
            "digest": digest,
            "concept": concept,
        }
        eraser = cls.load(found.folder, **required)  # type: ignore[arg-type]
        object.__setattr__(eraser, "commit", found.commit)  # the dataclass is frozen, but not shared yet
        return eraser

    def attach(
        self,
        pipe: Pipeline,
        strength: float = 1.0,
        strict: bool = True,
        *,
        sae: TopKSAE | None = None,
        name: str | None = None,
        on_bypass: OnBypass | None = None,
        allow_amplify: bool = False,
        enabled: bool = True,
    ) -> Attachment:
        """Attach the eraser to a pipeline, and prove on its canary prompts that it works.

        Args:
            pipe: The pipeline it was made for, or another one with the same text encoders (or denoiser).
            strength: Factor on the fitted strength: 0 changes nothing.
            strict: If False, another model's weights are accepted with a warning, and bypasses are allowed unless
                `on_bypass` is given. An eraser that does not fire is always refused.
            sae: The SAE it was made from, needed for gate="topk" only.
            name: A name for it on this pipeline, by default its own.
            on_bypass: What to do with a prompt whose states bypass the eraser, such as embeddings encoded elsewhere:
                "raise" (the default), "warn" or "allow".
            allow_amplify: Accept a negative strength, which amplifies the concept.
            enabled: If False, attach and prove the eraser, but leave it inactive until it is enabled.

        Returns:
            The attachment, a context manager that detaches on leaving.

        Raises:
            WrongModel: if the eraser was made for another pipeline.
            EraserDidNotFire: if a canary prompt does not change enough.
            InvalidSetting: if a strength or option is impossible, or the name is taken.
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
            enabled=enabled,
        )
