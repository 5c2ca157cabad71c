"""The format of an eraser: `eraser.json`, `eraser.safetensors` and a `manifest.json` of their digests. No pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from excise.erasers.artefact import verdict
from excise.erasers.artefact.files import READS, SCHEMAS, as_json, manifest, schema_of
from excise.erasers.artefact.files import TOP as _TOP
from excise.erasers.edits.registry import KINDS, Edit
from excise.errors import ExciseError, Tampered, reason, shown
from excise.files import parse_json
from excise.sites.site import Site

T = TypeVar("T")
_OPTIONAL = {"verdict"}
"""Keys that erasers of earlier versions do not have."""
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_MALFORMED = (
    ExciseError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
    SafetensorError,
)
"""Errors that json, safetensors, torch and the constructors raise for bytes that are not an eraser."""
_UNNAMED = "sae"
"""The default kind of a saved edit. It was once the only one."""


def pack(edits: Sequence[Edit], about: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of the three files, given edits and the other keys of `eraser.json`. They are deterministic.

    Raises ExciseError if `about` cannot be saved as json.
    """
    tensors: dict[str, Tensor] = {}
    saved = []
    for n, edit in enumerate(edits):
        tensors.update(
            {
                f"{n}.{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, t in edit.tensors().items()
            }
        )
        site = {"component": edit.site.component, "path": edit.site.path, "width": edit.site.width}
        kind = {} if edit.kind == _UNNAMED else {"kind": edit.kind}
        saved.append({"site": site, **kind, **edit.saved})
    schema = schema_of(about["made_for"])
    described = {"schema": schema, **about, "edits": saved}
    try:
        text = as_json(described)
    except (TypeError, ValueError) as error:
        raise ExciseError(f"the eraser's description cannot be saved as json: {error}; fit it again") from error
    files = {"eraser.json": text, "eraser.safetensors": save_tensors(tensors)}
    return {**files, "manifest.json": manifest(files, schema)}


def unpack(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the constructor arguments of the Artefact in `files`.

    Raises ExciseError if the schema or a key is unknown, a key is missing, or tensors do not fit.
    """
    try:
        described = parse_json(files["eraser.json"], finite=True)
        schema = described["schema"]
        if schema in SCHEMAS:
            stated = schema_of(_is(dict, described["made_for"]))
            if schema != stated or files["manifest.json"] != manifest(files, schema):
                raise ValueError("its files state different formats")
            return _arguments(described, load_tensors(files["eraser.safetensors"]))
    except _MALFORMED as error:
        raise Tampered(f"{folder} is not a valid eraser ({reason(error)}); copy or fit it again") from error
    raise ExciseError(
        f"{folder} has the format {shown(schema)}, but this version reads {READS}; use a matching version of excise"
    )


def _arguments(described: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    _exactly(described, _TOP | (_OPTIONAL & set(_is(dict, described))), "eraser.json")
    as_json(described)  # refuses values that could not be saved again: 1e999, and lone surrogates
    edits = tuple(_edit(n, data, tensors) for n, data in enumerate(_is(list, described["edits"])))
    if tensors:
        raise ValueError(f"tensor {next(iter(tensors))!r} belongs to no edit")
    if not edits:
        raise ValueError("it edits nothing")
    return {
        "edits": edits,
        **{name: _is(str, described[name]) for name in ("method", "name", "concept")},
        **{name: tuple(_is(str, text) for text in _is(list, described[name])) for name in ("mentions", "canary")},
        **{name: _is(dict, described[name]) for name in ("made_for", "created", "measured")},
        "canary_shift": _number(described["canary_shift"]),
        "verdict": verdict.checked(described.get("verdict", {})),
    }


def _edit(n: int, data: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    named = "kind" in _is(dict, data)
    kind = KINDS.get(data["kind"] if named else _UNNAMED)
    if kind is None or named is (kind.kind == _UNNAMED):
        raise ValueError(f"edit {n} is of kind {shown(data['kind'])}")
    _exactly(data, {"site", *(["kind"] if named else []), *kind.SAVED}, f"edit {n}")
    _exactly(data["site"], {"component", "path", "width"}, f"edit {n}'s site")
    component, path, width = (data["site"][name] for name in ("component", "path", "width"))
    site = Site(_is(str, component), _is(str, path), _is(int, width))

    def take(name: str) -> Tensor:
        tensor = tensors.pop(f"{n}.{name}")
        if tensor.dtype not in ((torch.int64,) if name == "indices" else kind.DTYPES):
            raise ValueError(f"{n}.{name} is {tensor.dtype}")
        return tensor

    saved = {name: _number(data[name]) if t is float else _is(t, data[name]) for name, t in kind.SAVED.items()}
    return kind.restored(site, saved, take)


def _exactly(data: Any, keys: set[str], where: str) -> None:
    if odd := sorted(set(_is(dict, data)) ^ keys):
        raise ValueError(f"{where}: {odd[0]!r} is {'unknown' if odd[0] in data else 'missing'}")


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance, since True is an int too
        raise TypeError(f"{shown(value)} should be {_KINDS[kind]}")
    return value


def _number(value: Any) -> float:
    return float(value if type(value) is int else _is(float, value))
