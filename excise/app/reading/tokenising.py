"""Tokenising of a corpus: each part of the prompts becomes a parquet file, on any engine."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from excise.app.models.loader import Loader
from excise.app.reading.corpus import ABOUT, MANIFEST, SCHEMA, Corpus, load_corpus, probed
from excise.concepts.formats import parquet_file
from excise.concepts.parts import Part, read_part
from excise.engine import Outcome, is_first, is_here, make_all
from excise.errors import ExciseError, MissingExtra
from excise.files import begun, parse_json, sha256, write_atomic
from excise.pipeline import Pipeline
from excise.sites.activations.capture import is_clip
from excise.sites.activations.tokenising import tokenise
from excise.sites.site import encoder_of, tokenizer_of

GROUP = 1024
"""Prompts in a row group."""
SAMPLE = 256
"""Prompts of a corpus that are also kept as text, evenly spread, or one of each file if there are more."""
LARGEST_UINT16 = 65_535
"""The largest vocabulary whose ids are stored in two bytes; those of larger ones take four."""


@dataclass(frozen=True, eq=False)
class Tokenising:
    """Stage that tokenises the parts of a corpus, each into a parquet file of its own."""

    load: Loader
    component: str
    column: str
    out: str
    sampled: int
    """Prompts of each part that are kept as text."""
    pipe: Pipeline | None = field(default=None, repr=False)
    """The model, if it is in this process; it is not pickled."""

    def open(self) -> Callable[[Part], str]:
        return partial(self._make, self.pipe or self.load())

    def path(self, item: Part) -> Path:
        return Path(self.out) / f"{item.number:06d}.parquet"

    def name(self, item: Part) -> str:
        return f"part-{item.number:06d}"

    def _make(self, pipe: Pipeline, item: Part) -> str:
        pyarrow, parquet = _pyarrow()
        texts = [text for _, text in read_part(item, self.column)]
        bounds, ids = [0], []
        for begin in range(0, len(texts), GROUP):
            found, attention, _ = tokenise(pipe, self.component, texts[begin : begin + GROUP])
            kept = attention.bool()
            ids.append(found[kept])
            bounds += (bounds[-1] + kept.sum(1).cumsum(0)).tolist()
        kind = id_type(vocabulary_of(pipe, self.component))
        values = torch.cat([torch.empty(0, dtype=torch.int64), *ids]).numpy()
        rows = pyarrow.ListArray.from_arrays(pyarrow.array(bounds, pyarrow.int32()), pyarrow.array(values, kind))
        sample = texts[:: -(-len(texts) // self.sampled)] if texts else []
        table = pyarrow.table({"ids": rows}).replace_schema_metadata({"sample": json.dumps(sample)})
        data = io.BytesIO()
        parquet.write_table(table, data, row_group_size=GROUP, compression="zstd")
        write_atomic(self.path(item), data.getvalue())
        counts = [[min(GROUP, len(texts) - n * GROUP), len(found)] for n, found in enumerate(ids)]
        return json.dumps([sha256(data.getvalue()), counts, sample])


def vocabulary_of(pipe: Pipeline, component: str) -> int:
    """Return the number of ids that a text encoder's tokenizer may give or its embedding has."""
    config = getattr(encoder_of(pipe, component), "config", None)
    return max(len(tokenizer_of(pipe, component)), int(getattr(config, "vocab_size", 0) or 0))


def id_type(vocabulary: int) -> str:
    """Return the type that ids of such a vocabulary are stored in."""
    return "uint16" if vocabulary <= LARGEST_UINT16 else "uint32"


def build(
    pipe: Pipeline,
    component: str,
    source: Path,
    parts: Sequence[Part],
    out: Path,
    load: Loader,
    *,
    column: str = "prompt",
    engine: str | None = None,
    workers: int = 1,
    retry: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Corpus | None:
    """Tokenise the parts of `source` that are missing, and write the manifest at the end.

    The same call continues after an interruption, or loads a finished corpus. Texts are in memory part by part.

    Args:
        pipe: The pipeline.
        component: Text encoder whose tokenizer is used.
        source: File or folder of the prompts.
        parts: Its parts.
        out: Folder of the corpus.
        load: How the workers of an engine load the model.
        column: Column of the prompts.
        engine: Where to work, as in `excise.engine.run`.
        workers: Number of workers.
        retry: Whether to try parts again that failed before.
        progress: Called with the number of parts done since its last call.

    Returns:
        The corpus; None in a slice that is not the first, which leaves the manifest to that one.

    Raises:
        ItemsFailed: A part failed for a reason that no user can fix.
        ExciseError: There are no prompts, `out` holds something else, or the engine cannot be used.
    """
    _pyarrow()
    if not is_clip(encoder_of(pipe, component)):
        raise ExciseError(f"{component} is not a CLIP text encoder; its states are stored: train it on --prompts")
    nothing = ExciseError(f"{source} holds no prompts; fill it or choose another file")
    if not parts:
        raise nothing
    vocabulary = vocabulary_of(pipe, component)
    about = {
        "schema": SCHEMA,
        "component": component,
        "column": column,
        "vocabulary": vocabulary,
        "type": id_type(vocabulary),
        "source": source.name,
        "parts": sha256(json.dumps(_described(parts)).encode()),
        "words": probed(pipe, component, ["a photo of a cat", "Zürich, 1998: über-sized — ok?"]),
    }
    if _begun(out, about):
        if progress is not None:
            progress(len(parts))
        return load_corpus(out)
    stage = Tokenising(load, component, column, str(out), -(-SAMPLE // len(parts)))
    if is_here(engine, workers):
        stage = replace(stage, pipe=pipe)
    made: dict[int, Any] = {}

    def then(outcome: Outcome[Part]) -> None:
        if outcome.state == "made":
            made[outcome.item.number] = parse_json(outcome.why)
        if progress is not None and outcome.state != "failed":
            progress(1)

    make_all(engine, stage, parts, failures=out / "failures", then=then, workers=workers, retry=retry)
    if not is_first(engine, workers):
        return None
    files, sample = [], list[str]()
    for part in parts:
        path = stage.path(part)
        digest, counts, texts = made.get(part.number) or _found(path)
        files.append([path.name, digest, counts])
        sample += texts
    if not sample:  # leave nothing behind, so that the filled file may go there
        for name in (*(name for name, *_ in files), ABOUT):
            (out / name).unlink(missing_ok=True)
        raise nothing
    positions = tokenise(pipe, component, sample[:1])[0].shape[1]
    manifest = {**about, "positions": positions, "sample": sample, "probe": probed(pipe, component, sample)}
    write_atomic(out / MANIFEST, json.dumps({**manifest, "files": files}) + "\n")
    return load_corpus(out)


def _found(path: Path) -> list[Any]:
    """Return what `Tokenising` returns about a file that an earlier call made."""
    counts = []
    with parquet_file(path, "ids") as file:
        sample = parse_json((file.schema_arrow.metadata or {}).get(b"sample", b"[]"))
        for number in range(file.metadata.num_row_groups):
            rows = file.read_row_group(number, columns=["ids"]).column(0).combine_chunks()
            if len(rows):
                counts.append([len(rows), len(rows.flatten())])
    return [sha256(path), counts, sample]


def _described(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return what tells these parts from those of other prompts: places in their files, and the files' digests."""
    try:
        digests = {path: sha256(Path(path)) for path in dict.fromkeys(part.path for part in parts)}
    except OSError as error:
        raise ExciseError(f"cannot read the prompts ({error}); check --prompts") from error
    return [{**asdict(part), "path": Path(part.path).name, "sha256": digests[part.path]} for part in parts]


def _begun(out: Path, about: dict[str, Any]) -> bool:
    """Prepare the folder, or find it prepared, and return whether the corpus is finished."""
    try:
        if begun(out / ABOUT, about) == about:
            return (out / MANIFEST).exists()
    except (OSError, ValueError):
        pass
    raise ExciseError(f"{out} holds something else; choose another --out, or delete it")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("a tokenised corpus needs pyarrow: pip install 'excise[parquet]'") from error
    return pyarrow, parquet
