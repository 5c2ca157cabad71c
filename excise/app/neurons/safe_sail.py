"""Import of the neuron databases published by Safe-SAIL (Weng et al. 2025, arXiv 2509.18127)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from excise.app.neurons.database import now
from excise.errors import ExciseError, shown
from excise.files import TENSORS, parse_json, read_file, sha256, temporary_beside
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag

BY = "Safe-SAIL"
NAMES = ("neuron", "name", "id", "key")
"""Keys of a neuron's name in a list of entries."""
_DEPTH, _DIGITS = 9, 18
"""How deep lists are nested, and how many digits a layer or a neuron's number has, at most."""


def import_safe_sail(source: Path, out: Path) -> list[Path]:
    """Convert a published `en_db.json` or `cn_db.json` to neuron databases, one per layer, and return their paths.

    The JSON is an object or a list of entries with `explanation`, `correlation_score` and `tag_list`. An entry's key,
    or its `neuron`, `name` or `id`, holds the layer and the neuron's number, such as `35_10067`. A single layer is
    written to `out`, several layers next to it as `NAME-layer35.db`. Masked words stay masked. Activations are not
    published, so contexts and densities are missing.

    Raises:
        ExciseError: The file is of another kind, or one of the databases exists.
    """
    try:
        data = read_file(source, TENSORS)
        content = parse_json(data, finite=True)
    except OSError as error:
        raise ExciseError(f"cannot read {source}: {error.strerror or error}; check the name") from error
    except ValueError as error:
        raise ExciseError(f"{source} is not JSON ({error}); give Safe-SAIL's en_db.json or cn_db.json") from error
    layers: dict[int, dict[int, Entry]] = {}
    for name, entry in _named(content, source):
        layer, index = _place(name, source)
        layers.setdefault(layer, {})[index] = _entry(index, entry, f"{source}: neuron {name[:60]}")
    if not layers:
        raise ExciseError(f"{source} holds no neurons; give Safe-SAIL's en_db.json or cn_db.json")
    paths = {layer: _path(out, layer, len(layers)) for layer in sorted(layers)}
    for path in paths.values():
        if path.exists():
            raise ExciseError(f"{path} exists already; choose another name")
    for layer, path in paths.items():
        about = Provenance("", f"layer {layer}", None, f"{BY}: {source.name}", 0, sha256(data), now())
        _write(path, about, [layers[layer][index] for index in sorted(layers[layer])])
    return list(paths.values())


def _write(path: Path, about: Provenance, entries: list[Entry]) -> None:
    temporary = temporary_beside(path)
    try:
        with NeuronDatabase.create(temporary, about) as database:
            database.add(entries)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _path(out: Path, layer: int, layers: int) -> Path:
    return out if layers == 1 else out.with_name(f"{out.stem}-layer{layer}{out.suffix}")


def _named(content: Any, source: Path, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, entry) from an object of entries, or from a list of named entries or of such objects."""
    if isinstance(content, Mapping):
        for name, entry in content.items():
            if not isinstance(entry, Mapping):
                raise ExciseError(
                    f"{source}: {shown(name)} is not an entry with an explanation; is it Safe-SAIL's file?"
                )
            yield str(name), entry
    elif isinstance(content, list) and depth < _DEPTH:
        for entry in content:
            if isinstance(entry, Mapping) and "layer" in entry and "index" in entry:
                yield f"{entry['layer']}_{entry['index']}", entry
            elif isinstance(entry, Mapping) and (key := next((n for n in NAMES if n in entry), None)):
                yield str(entry[key]), entry
            else:
                yield from _named(entry, source, depth + 1)
    else:
        raise ExciseError(f"{source} holds no entries by neuron; give Safe-SAIL's en_db.json or cn_db.json")


def _place(name: str, source: Path) -> tuple[int, int]:
    """Return layer and number from names such as `35_10067` or `layer35/neuron10067`."""
    numbers = re.findall(r"[0-9]+", name)
    if len(numbers) != 2 or max(map(len, numbers)) > _DIGITS:
        raise ExciseError(f"{source}: the name {shown(name)} does not hold a layer and a neuron, such as 35_10067")
    return int(numbers[0]), int(numbers[1])


def _entry(index: int, entry: Mapping[str, Any], where: str) -> Entry:
    text, score, tags = entry.get("explanation"), entry.get("correlation_score"), entry.get("tag_list") or []
    if not isinstance(text, str) or not isinstance(tags, list):
        raise ExciseError(f"{where} has no explanation, or its tags are not a list")
    if score is not None and (type(score) not in (int, float) or abs(score) > sys.float_info.max):
        raise ExciseError(f"{where} has the correlation score {shown(score)}, which is not a number")
    return Entry(
        index,
        tags=tuple(map(Tag, dict.fromkeys(map(str, tags)))),
        explanation=Explanation(text.strip(), BY, ""),
        scores={} if score is None else {"correlation": Measured(float(score))},
    )
