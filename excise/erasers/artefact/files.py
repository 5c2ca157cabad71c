"""An eraser's three files, and the checks of them that need no tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.errors import NotFound, Tampered
from excise.files import read_file, read_tensors, sha256, unmixed

SCHEMA = "excise.eraser/1"
RENAMED = "excise.eraser/2"
"""Format of erasers whose digests are of canonical names: those for T5 and language models. Others keep the format 1,
which earlier versions read too."""
SCHEMAS = (SCHEMA, RENAMED)
READS = f"{SCHEMA!r} and {RENAMED!r}"
"""The formats that this version reads, for messages."""
FILES = ("eraser.json", "eraser.safetensors", "manifest.json")
TOP = {"schema", "method", "name", "concept", "mentions", "edits", "made_for", "created", "measured"} | {
    "canary",
    "canary_shift",
}
SIGNATURE = "model.sig"
CARD = "README.md"


@dataclass(frozen=True)
class Check:
    """The result of one check of a verification."""

    name: str
    passed: bool
    detail: str


def schema_of(made_for: Mapping[str, Any]) -> str:
    """Return the format of an eraser, given what it was made for."""
    return RENAMED if "names" in made_for else SCHEMA


def manifest(files: Mapping[str, bytes], schema: str = SCHEMA) -> bytes:
    """Return the manifest's bytes for the two other files. They have one valid form, so that any change shows."""
    return as_json({"schema": schema, "sha256": {name: sha256(files[name]) for name in FILES[:2]}})


def as_json(data: Any) -> bytes:
    """Return `data` as JSON in the exact form that erasers are saved in."""
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the three files, as one writer left them. Raise NotFound if all are missing, Tampered if one
    is missing or unreadable."""
    return unmixed(folder, lambda: _read(folder))


def _read(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in FILES:
        try:
            files[name] = (read_tensors if name.endswith(".safetensors") else read_file)(folder / name)
        except OSError as error:
            kind = Tampered if _is_eraser(folder) else NotFound
            raise kind(f"{folder} is not a complete eraser: {name}: {error.strerror}; copy or fit it again") from error
    return files


def check_manifest(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raise Tampered unless the manifest is byte for byte that of the files."""
    if files["manifest.json"] not in [manifest(files, schema) for schema in SCHEMAS]:
        raise Tampered(f"{folder} was altered or cut short since it was saved; copy it again from a trusted source")


def eraser_folders(folder: Path) -> list[Path]:
    """Return the folders of the erasers at `folder`: itself if it is an eraser, else its subfolders that are, by name.

    A folder with any of an eraser's files counts as one, so that a damaged eraser is reported and not skipped. If there
    are none, `folder` itself is returned, and reading it reports what is missing.
    """
    if _is_eraser(folder) or not folder.is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_eraser(path)) or [folder]


_OF_SYSTEMS = ("lost+found", "@eaDir", "__MACOSX")
"""Folders that file systems and archives add."""


def every_eraser(folder: Path) -> list[Path]:
    """Return what `eraser_folders` does, for a service in which no eraser may be missing.

    Raises NotFound if a visible subfolder is not an eraser: a copy that failed, or erasers one level deeper.
    """
    found = eraser_folders(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        visible = (path.is_dir() or not path.exists()) and not path.name.startswith(".")  # also a link to nothing
        if visible and path not in found and path.name not in _OF_SYSTEMS:
            raise NotFound(f"{path} is not an eraser; remove it, or copy an eraser directly into {folder} again")
    return found


def _is_eraser(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)
