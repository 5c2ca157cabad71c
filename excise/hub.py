"""Repositories on the Hugging Face hub: download a folder's files, and push files in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from excise.errors import ExciseError, InvalidSetting, NotFound, reason


class Fetched(NamedTuple):
    """A folder's files on this machine, and the commit that they come from: None for a folder that was here before."""

    folder: Path
    commit: str | None


def fetch(
    source: str | PathLike[str],
    files: Iterable[str],
    what: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | PathLike[str] | None = None,
    subfolder: str | None = None,
) -> Fetched:
    """Return the folder `source`, or download the named `files` of the repository `source` (`owner/name`).

    Files are downloaded unless cached, and nothing else of the repository is. A branch or tag is resolved to its commit
    once, so that all files come from one commit. `what` names the thing in error messages, such as "eraser".

    Raises NotFound if it cannot be found or downloaded, InvalidSetting for an invalid name.
    """
    if not isinstance(source, (str, PathLike)) or not str(source):
        raise InvalidSetting(f"{source!r} is neither a folder nor OWNER/NAME on the hub; give one of them as a text")
    below = _below(subfolder)
    folder = Path(source)
    if folder.exists():
        if revision is not None:
            raise InvalidSetting(f"{source} is a folder, which has no revisions; leave revision={revision!r} out")
        return Fetched(folder / below, None)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            str(source),
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            allow_patterns=[str(below / name) for name in files],
        )
    except refusals() as error:
        raise NotFound(
            f"{source} is not a folder, and no {what} was found on the hub ({why(error)}); check the name"
        ) from error
    return Fetched(Path(found) / below, Path(found).name)


def push(
    repo_id: str,
    files: Callable[[str], Mapping[str, bytes]],
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str,
    gone: Iterable[str] = (),
) -> str:
    """Push files to a repository on the hub in one commit, and return the commit's URL.

    The repository, and the branch `revision`, are created if they do not exist. `files` takes the repository's whole
    name, with its owner, and returns the files' bytes by path. Files that `gone` names and `files` does not return are
    deleted. Raises ExciseError if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_name(repo_id)
    api = HfApi(token=token, library_name="excise")
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        added = files(name)
        changes: list[Any] = [CommitOperationAdd(path, data) for path, data in added.items()]
        for path in gone:
            if path not in added and api.file_exists(name, path, revision=revision):
                changes.append(CommitOperationDelete(path))
        done = api.create_commit(name, changes, commit_message=commit_message, revision=revision)
    except refusals() as error:
        if _unreached(error):
            raise ExciseError(
                f"{repo_id} was not pushed: the hub was not reached ({why(error)}); check the network and try again"
            ) from error
        raise ExciseError(
            f"{repo_id} could not be pushed ({why(error)}); check the name, and that your token may write there"
        ) from error
    return str(done.commit_url)


def check_name(repo_id: str) -> None:
    """Raise ExciseError unless the hub allows the name for a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidSetting(f"{repo_id!r} is not a repository's name ({why(error)}); give OWNER/NAME") from error


def refusals() -> tuple[type[BaseException], ...]:
    """Return what huggingface_hub raises: mostly OSError and ValueError; its HTTP client's errors may be neither."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)


def _unreached(error: BaseException) -> bool:
    """Return whether the hub did not answer at all, judging by the names of either HTTP client's errors."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled"})


def why(error: BaseException) -> str:
    """Return why the hub refused, in one clause."""
    from huggingface_hub import errors

    known = {
        errors.GatedRepoError: "it is gated; ask its owner for access, and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "no such repository, or a private one and no token that may read it",
        errors.RevisionNotFoundError: "no such revision",
        errors.LocalEntryNotFoundError: "not in the cache, and the hub was not reached",
    }
    for kind, text in known.items():
        if isinstance(error, kind):
            return text
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not accept your token for this ({status}); log in with `hf auth login`"
    return reason(error)


def _below(subfolder: str | None) -> PurePosixPath:
    """Return a folder within a repository as a path. Raises InvalidSetting for one that leads out of it."""
    below = PurePosixPath(subfolder or ".") if isinstance(subfolder, str | None) else None
    if below is None or below.is_absolute() or ".." in below.parts or "\\" in str(below):
        raise InvalidSetting(f"subfolder is {subfolder!r}; it is a path within the repository, such as 'erasers/gun'")
    return below
