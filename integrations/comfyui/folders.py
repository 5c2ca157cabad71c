"""The erasers in ComfyUI's folder `models/erasers`."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from excise.erasers.artefact.files import read
from excise.erasers.artefact.record import Artefact
from excise.errors import NotFound
from excise.files import sha256

KIND = "erasers"


def register() -> None:
    """Tell ComfyUI of the folder `models/erasers`."""
    folder_paths.add_model_folder_path(KIND, os.path.join(folder_paths.models_dir, KIND))


def names() -> list[str]:
    """Return the names of all erasers: their folders' paths below `models/erasers`, with `/`."""
    return sorted(_found())


def _found() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths(KIND):
        for folder, inner, files in os.walk(root, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".")]
            if "eraser.json" in files:
                found.setdefault(Path(folder).relative_to(root).as_posix(), Path(folder))
                inner.clear()
    return found


def folder_of(name: str) -> Path:
    """Return the folder of an eraser. A workflow names it, so only a listed one is read: NotFound for any other."""
    found = _found()
    if name not in found:
        raise NotFound(f"models/erasers has no eraser {name!r}; put its folder there and press R to refresh the list")
    return found[name]


def load(name: str) -> Artefact:
    """Load an eraser. Raise ExciseError if it is not there, incomplete or altered."""
    return Artefact.load(folder_of(name))


def fingerprint(name: str) -> str:
    """Return a digest of an eraser's files as they are now, so that ComfyUI notices one that was replaced."""
    return sha256(b"".join(bytes.fromhex(sha256(data)) for _, data in sorted(read(folder_of(name)).items())))
