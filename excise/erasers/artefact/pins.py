"""Pins: which eraser a caller expects in a folder, of all that its signer may have signed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from excise.errors import InvalidSetting, Tampered, reason
from excise.files import sha256


def check_pins(folder: Path, files: Mapping[str, bytes], digest: str | None = None, concept: str | None = None) -> None:
    """Compare an eraser's files with the digest and the concept that a caller expects; None expects nothing.

    A signature says who made an eraser, not which one lies in the folder: all of it may have been exchanged for another
    eraser of the same signer. The digest is looked at before anything is parsed.

    Raises:
        InvalidSetting: if `digest` is not a sha256.
        Tampered: if the folder holds an eraser of another digest or concept.
    """
    if digest is not None:
        if not re.fullmatch("[0-9a-f]{64}", digest.lower()):
            raise InvalidSetting(
                f"digest is {digest[:80]!r}; give all 64 hexadecimal digits, as `Eraser.digest` has them"
            )
        if (found := sha256(files["manifest.json"])) != digest.lower():
            raise Tampered(
                f"{folder} holds another eraser than the one pinned: its digest is {found}, not {digest.lower()}"
            )
    if concept is not None:
        try:
            found = json.loads(files["eraser.json"])["concept"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Tampered(f"{folder} names no concept ({reason(error)}); copy or fit it again") from error
        if not isinstance(found, str) or found.casefold() != concept.casefold():
            raise Tampered(
                f"{folder} holds another eraser than the one pinned: it erases {str(found)[:80]!r}, not {concept!r}"
            )
