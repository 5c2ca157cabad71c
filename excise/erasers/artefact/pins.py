"""Pins: which eraser a caller expects in a folder, of all that its signer may have signed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from excise.errors import InvalidSetting, Tampered, reason, shown
from excise.files import parse_json, sha256


def check_pins(folder: Path, files: Mapping[str, bytes], digest: str | None = None, concept: str | None = None) -> None:
    """Compare an eraser's files with the digest and the concept that a caller expects; None expects nothing.

    A signature says who made an eraser, not which one lies in the folder: all of it may have been exchanged for another
    eraser of the same signer. The digest is looked at before anything is parsed.

    Raises:
        InvalidSetting: if `digest` is not a sha256.
        Tampered: if the folder holds an eraser of another digest or concept.
    """
    if digest is not None:
        wanted, found = _whole(digest), sha256(files["manifest.json"])
        if found != wanted:
            raise Tampered(f"{folder} holds another eraser than the one pinned: its digest is {found}, not {wanted}")
    if concept is not None:
        try:
            found = parse_json(files["eraser.json"])["concept"]
        except (ValueError, KeyError, TypeError) as error:
            raise Tampered(f"{folder} names no concept ({reason(error)}); copy or fit it again") from error
        if not isinstance(found, str) or found.casefold() != concept.casefold():
            raise Tampered(
                f"{folder} holds another eraser than the one pinned: it erases {shown(found)}, not {shown(concept)}"
            )


def pinned_digests(folders: Sequence[Path], given: Sequence[str]) -> list[str | None]:
    """Return the digest that each folder's eraser must have; None where none is pinned.

    Args:
        folders: A folder for each eraser.
        given: A digest for each folder, in their order, or NAME=DIGEST for some of them, by their folders' names.

    Raises:
        InvalidSetting: if one is not a sha256, or they do not fit the folders.
    """
    pairs = [part.rpartition("=") for part in given]
    digests = [_whole(digest) for _, _, digest in pairs]
    if not any(sign for _, sign, _ in pairs):
        if given and len(given) != len(folders):
            raise InvalidSetting(
                f"{len(folders)} erasers but {len(given)} digests; give one each in the order of their folders, or "
                "NAME=DIGEST by a folder's name"
            )
        return [*digests] if given else [None] * len(folders)
    pinned: dict[Path, str] = {}
    for (name, _, _), digest in zip(pairs, digests, strict=True):
        named = [folder for folder in folders if name in (str(folder), folder.name, folder.resolve().name)]
        if len(named) != 1 or named[0] in pinned:
            why = "is pinned twice" if len(named) == 1 else f"is the name of {len(named)} of the erasers' folders"
            raise InvalidSetting(f"{shown(name)} {why}; give NAME=DIGEST once for a folder, by its name or its path")
        pinned[named[0]] = digest
    return [pinned.get(folder) for folder in folders]


def _whole(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest.lower()):
        raise InvalidSetting(f"digest is {shown(digest)}; give all 64 hexadecimal digits, as `Eraser.digest` has them")
    return digest.lower()
