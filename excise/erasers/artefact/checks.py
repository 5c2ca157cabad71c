"""Checks of a saved eraser's files, without reading a tensor."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.errors import ExciseError, Tampered, reason
from excise.files import parse_json

if TYPE_CHECKING:
    from excise.erasers.artefact.signing import Signer
from excise.erasers.artefact.files import READS, SCHEMAS, TOP, Check, check_manifest, read
from excise.erasers.artefact.pins import check_pins


def check_files(
    folder: Path, signed_by: Signer | None = None, digest: str | None = None, concept: str | None = None
) -> list[Check]:
    """Check that a saved eraser's files are complete and unaltered, with a description and a table of tensors.

    Args:
        folder: Folder of the eraser.
        signed_by: The signer whose signature is required. It is checked before anything is parsed.
        digest, concept: The digest or the concept that it must have.

    Returns:
        The result of each check. A bad eraser raises nothing. `excise.erasers.verify` checks the tensors too.
    """
    checks: list[Check] = []
    files: dict[str, bytes] = {}

    def check_signer() -> None:
        from excise.erasers.artefact.signing import check_signature

        if signed_by is not None:
            check_signature(folder, files, signed_by)

    pinned = digest is not None or concept is not None
    steps: tuple[tuple[str, Callable[[], Any], str], ...] = (
        ("files", lambda: files.update(read(folder)), "all three files are there"),
        *((("signature", check_signer, f"signed by {signed_by}"),) if signed_by is not None else ()),
        ("manifest", lambda: check_manifest(folder, files), "no byte was altered"),
        *(
            (("pins", lambda: check_pins(folder, files, digest, concept), "the eraser that was asked for"),)
            if pinned
            else ()
        ),
        ("content", lambda: _check_content(folder, files), "its description and its table of tensors can be read"),
    )
    for name, step, detail in steps:
        try:
            step()
        except ExciseError as error:
            checks.append(Check(name, False, str(error)))
            break
        checks.append(Check(name, True, detail))
    return checks


def _check_content(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raise Tampered unless the description has this version's keys, and the tensors are those of its edits."""
    try:
        described = parse_json(files["eraser.json"])
        if described["schema"] not in SCHEMAS:
            raise ValueError(f"its format is {str(described['schema'])[:60]!r}, but this version reads {READS}")
        if missing := sorted(TOP - set(described)):
            raise ValueError(f"{missing[0]} is missing")
        data = files["eraser.safetensors"]
        size = struct.unpack("<Q", data[:8])[0]
        table = parse_json(data[8 : 8 + size])
        table.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        if 8 + size + end != len(data):
            raise ValueError("its tensors are not as long as their table says")
        edits = {str(n) for n in range(len(described["edits"]))}
        if not edits or not {name.partition(".")[0] for name in table} <= edits:
            raise ValueError("its tensors belong to other edits")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, struct.error) as error:
        raise Tampered(f"{folder} is not a valid eraser ({reason(error)}); copy or fit it again") from error
