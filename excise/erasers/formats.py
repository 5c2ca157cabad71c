"""An eraser on disk: `eraser.json` + `eraser.safetensors` + `manifest.json` with the digest of both. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from excise.erasers.edit import CHOICES, TENSORS, SAEEdit
from excise.errors import ExciseError
from excise.files import sha256
from excise.sites.site import Site

if TYPE_CHECKING:
    from excise.erasers.eraser import Eraser

SCHEMA = "excise.eraser/1"
FILES = ("eraser.json", "eraser.safetensors", "manifest.json")
_TOP = {"schema", "method", "name", "concept", "mentions", "edits", "made_for", "created", "measured"} | {
    "canary",
    "canary_shift",
}
_EDIT = {"site", "lam", "lead", "sae_digest", "concept_codes", *CHOICES}


@dataclass(frozen=True)
class Check:
    """One line of a verification."""

    name: str
    passed: bool
    detail: str


def pack(eraser: Eraser) -> dict[str, bytes]:
    """The three files' bytes; the same eraser always gives the same bytes. Raises ExciseError where it has no edit."""
    if not eraser.edits:
        raise ExciseError(f"{eraser.name!r} edits nothing, so there is nothing to save")
    tensors: dict[str, Tensor] = {}
    edits = []
    for n, edit in enumerate(eraser.edits):
        tensors.update(
            {
                f"{n}.{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, t in edit.tensors().items()
            }
        )
        site = {"component": edit.site.component, "path": edit.site.path, "width": edit.site.width}
        options = {name: getattr(edit, name) for name in ("lam", "lead", "sae_digest", *CHOICES)}
        edits.append({"site": site, "concept_codes": edit.concept_codes is not None, **options})
    described = {
        "schema": SCHEMA,
        "method": eraser.method,
        "name": eraser.name,
        "concept": eraser.concept,
        "mentions": list(eraser.mentions),
        "edits": edits,
        "made_for": dict(eraser.made_for),
        "created": dict(eraser.created),
        "measured": dict(eraser.measured),
        "canary": list(eraser.canary),
        "canary_shift": eraser.canary_shift,
    }
    try:
        text = _json(described)
    except (TypeError, ValueError) as error:
        raise ExciseError(f"the eraser's description cannot be saved as json: {error}; fit it again") from error
    files = {"eraser.json": text, "eraser.safetensors": save_tensors(tensors)}
    return {**files, "manifest.json": manifest(files)}


def manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest's bytes for the two other files: there is exactly one right spelling, so any change shows."""
    return _json({"schema": SCHEMA, "sha256": {name: sha256(files[name]) for name in FILES[:2]}})


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read(folder: Path) -> dict[str, bytes]:
    """The three files' bytes. Raises ExciseError where one is missing or unreadable."""
    files = {}
    for name in FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ExciseError(
                f"{folder} is no complete eraser: {name}: {error.strerror}; copy or fit it again"
            ) from error
    return files


def fetched(repository: str, revision: str | None = None) -> Path:
    """The local copy of an eraser's three files in a repository on the hub, downloaded unless the cache has it.

    Raises ExciseError where it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        reason = str(error).splitlines()[0]
        raise ExciseError(f"{repository} is no folder, and no eraser on the hub ({reason}); check the name") from error


def check_manifest(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raises ExciseError unless the manifest is byte for byte the one that belongs to the files."""
    if files["manifest.json"] != manifest(files):
        raise ExciseError(f"{folder} was altered or cut short since it was saved; copy it again from a trusted source")


def unpack(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The constructor arguments of the Eraser in `files`.

    Raises ExciseError for an unknown schema, a missing or unknown key, or tensors that do not fit.
    """
    try:
        described = json.loads(files["eraser.json"].decode(), parse_constant=_no_constant)
        schema = described["schema"]
        if schema != SCHEMA:
            raise ExciseError(
                f"{folder} has the format {schema!r}, this version reads {SCHEMA!r}; use a matching excise"
            )
        _exactly(described, _TOP, "eraser.json")
        tensors = load_tensors(files["eraser.safetensors"])
        edits = tuple(_edit(n, data, tensors) for n, data in enumerate(described["edits"]))
        if tensors:
            raise ValueError(f"tensor {next(iter(tensors))} belongs to no edit")
        if not edits:
            raise ValueError("it edits nothing")
        return {
            "edits": edits,
            "method": _text(described["method"]),
            "name": _text(described["name"]),
            "concept": _text(described["concept"]),
            "mentions": tuple(_text(m) for m in described["mentions"]),
            "made_for": dict(described["made_for"]),
            "created": dict(described["created"]),
            "measured": dict(described["measured"]),
            "canary": tuple(_text(c) for c in described["canary"]),
            "canary_shift": float(described["canary_shift"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"{folder} is no valid eraser ({error}); copy or fit it again") from error


def _edit(n: int, data: dict[str, Any], tensors: dict[str, Tensor]) -> SAEEdit:
    _exactly(data, _EDIT, f"edit {n}")
    _exactly(data["site"], {"component", "path", "width"}, f"edit {n}'s site")
    site = Site(_text(data["site"]["component"]), _text(data["site"]["path"]), int(data["site"]["width"]))
    names = [*TENSORS, *(["concept_codes"] if data["concept_codes"] else [])]
    parts: dict[str, Any] = {name: tensors.pop(f"{n}.{name}") for name in names}
    for name, tensor in parts.items():
        if tensor.dtype != (torch.int64 if name == "indices" else torch.float32):
            raise ValueError(f"{n}.{name} is {tensor.dtype}")
    options: dict[str, Any] = {name: _text(data[name]) for name in (*CHOICES, "sae_digest")}
    return SAEEdit(site=site, lam=float(data["lam"]), lead=int(data["lead"]), **parts, **options)


def _exactly(data: Mapping[str, Any], keys: set[str], where: str) -> None:
    if odd := sorted(set(data) ^ keys):
        raise ValueError(f"{where}: {odd[0]!r} is {'unknown' if odd[0] in data else 'missing'}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be text")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
