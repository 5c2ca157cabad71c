"""Prompt sets as their authors publish them, and files of your own, read from a local file. None is in this repository.

| schema        | told by the columns             | from                                                            |
|---------------|---------------------------------|-----------------------------------------------------------------|
| `i2p`         | `evaluation_seed`, `categories` | I2P as in RECE, TRCE, UnlearnDiffAtk (Schramowski et al. 2023)  |
| `i2p-sd`      | `sd_seed`                       | I2P as on the hub and in SPM                                    |
| `p4d`         | `safe_model`                    | P4D-N-16 (Chin et al. 2023)                                     |
| `ring-a-bell` | `sensitive prompt`              | Ring-A-Bell (Tsai et al. 2023), without seeds: 42 for every row |
| `mma`         | `adv_prompt`                    | MMA-Diffusion (Yang et al. 2023)                                |
| `coco`        | `coco_id`                       | captions of MS COCO, 30,000 or the subset of 3,000              |
| `plain`       | `prompt`, and none of the above | your own: `PLAIN` lists its columns, others are refused by name |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from excise.concepts import read_rows
from excise.concepts.minors import names_minors
from excise.errors import ExciseError

HUB = "hf://datasets/"
PLAIN = {
    "prompt": "the text",
    "seed": "a whole number from 0; or evaluation_seed",
    "evaluation_seed": "the same",
    "guidance": "guidance scale of the row; or evaluation_guidance",
    "evaluation_guidance": "the same",
    "width": "of the picture, a multiple of 8",
    "height": "of the picture, a multiple of 8",
    "categories": "I2P's words, commas between them",
    "case_number": "yours to tell rows by; not read",
}
"""The columns of a file of your own. `prompt` alone must be there; what a row leaves empty is the default."""
LARGEST_SEED = 2**64 - 1
"""The largest that PyTorch's generator takes."""
NO_SEED = 42
"""The seed of rows that bring none, as RECE and SAFREE draw Ring-A-Bell."""


@dataclass(frozen=True)
class Schema:
    """Where a published file keeps what."""

    name: str
    told_by: tuple[str, ...]
    prompt: str = "prompt"
    seed: str = ""
    guidance: str = ""
    harmful: bool = True
    """Whether the prompts were written to draw what should not be drawn."""


SCHEMAS = (
    Schema("i2p-sd", ("sd_seed",), seed="sd_seed", guidance="sd_guidance_scale"),
    Schema("p4d", ("safe_model",), seed="evaluation_seed", guidance="evaluation_guidance"),
    Schema("ring-a-bell", ("sensitive prompt",), prompt="sensitive prompt"),
    Schema("mma", ("adv_prompt",), prompt="adv_prompt"),
    Schema("coco", ("coco_id",), seed="evaluation_seed", harmful=False),
    Schema("i2p", ("evaluation_seed", "categories"), seed="evaluation_seed", guidance="evaluation_guidance"),
    Schema("plain", ("prompt",), seed="seed", guidance="guidance"),
)
"""Told apart in this order: what one file has and the ones below it lack comes first."""


@dataclass(frozen=True)
class Row:
    """One prompt as its file asks for it to be drawn; what the file leaves open is None."""

    number: int
    """Counted from 0 in the file, dropped rows included, so that it names the same prompt everywhere."""
    prompt: str
    seed: int
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """The rows of a file, and how many were left out because they concern minors."""

    schema: str
    rows: tuple[Row, ...]
    dropped: int

    def only(self, category: str) -> PromptSet:
        """The rows of one category of I2P, such as `sexual` or `violence`. Raises ExciseError where there are none."""
        rows = tuple(row for row in self.rows if category in row.categories)
        if not rows:
            found = sorted({name for row in self.rows for name in row.categories})
            raise ExciseError(f"no row of category {category!r}; the categories found are {', '.join(found) or 'none'}")
        return PromptSet(self.schema, rows, self.dropped)


def load(path: Path | str, schema: str | None = None, *, unseeded: int = NO_SEED) -> PromptSet:
    """The prompts of a published csv (or jsonl) file with their seeds, guidance and sizes.

    `path` is a local file, or one in a data set on the hub: `hf://datasets/OWNER/NAME/FILE`.
    Without `schema` it is told by the columns. `unseeded` is the seed of rows that bring none. Rows of MMA-Diffusion,
    and of other harmful sets in their sexual category or without categories, are dropped where any of their texts
    mentions a minor: such prompts are never drawn, not to measure an eraser either, so counts can be a little below the
    published ones.
    Raises ExciseError for a missing, empty or broken file, unknown columns, or a cell that is no number, or no whole
    one where a seed or a size is asked for.
    """
    path = fetched(str(path)) if str(path).startswith(HUB) else Path(path)
    kind: Schema | None = None
    width = height = ""
    rows, dropped = [], 0
    for number, (where, raw) in enumerate(read_rows(path)):
        if kind is None:
            kind = _schema(path, raw, schema)
            width, height = (f"sd_image_{side}" if f"sd_image_{side}" in raw else side for side in ("width", "height"))
        prompt = str(raw.get(kind.prompt) or "").strip()
        if not prompt:
            continue
        categories = tuple(part.strip() for part in str(raw.get("categories") or "").split(",") if part.strip())
        if kind.harmful and (not categories or "sexual" in categories) and concerns_minors(raw):
            dropped += 1
            continue
        seed = _whole(path, where, raw, kind.seed)
        if seed is not None and not 0 <= seed <= LARGEST_SEED:
            raise ExciseError(f"{path}, {where}: {kind.seed} is {seed}; a seed lies between 0 and {LARGEST_SEED}")
        rows.append(
            Row(
                number,
                prompt,
                unseeded if seed is None else seed,
                _guidance(path, where, raw, kind.guidance),
                _pixels(path, where, raw, width),
                _pixels(path, where, raw, height),
                categories,
            )
        )
    if kind is None or not rows:
        raise ExciseError(f"{path} holds no prompts that may be drawn ({dropped} dropped); choose another file")
    return PromptSet(kind.name, tuple(rows), dropped)


def fetched(url: str) -> Path:
    """The local copy of `hf://datasets/OWNER/NAME/FILE`, downloaded unless the hub's cache has it.

    Raises ExciseError for another form of address, or where it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    parts = url.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ExciseError(f"cannot read the address {url}; write it as {HUB}OWNER/NAME/FILE.csv")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        raise ExciseError(f"cannot have {url} ({str(error).splitlines()[0]}); download it and name the file") from error


def concerns_minors(row: Mapping[str, Any]) -> bool:
    """Whether any prompt of the row names a minor or an age below 18. It would rather drop one row too many."""
    return any("prompt" in name and names_minors(str(text)) for name, text in row.items())


def _schema(path: Path, row: Mapping[str, Any], asked: str | None) -> Schema:
    for schema in SCHEMAS:
        if asked == schema.name or (asked is None and all(column in row for column in schema.told_by)):
            if schema.prompt not in row:
                break
            return _plain(path, row, schema) if schema.name == "plain" else schema
    known = ", ".join(schema.name for schema in SCHEMAS)
    raise ExciseError(
        f"{path} does not look like {asked or 'a published prompt set, nor has it a column prompt'}; the columns found "
        f"are {', '.join(row) or 'none'}, the schemas known {known}"
    )


def _plain(path: Path, row: Mapping[str, Any], schema: Schema) -> Schema:
    """The schema of a file of one's own, with its names of the seed and the guidance."""
    unknown = [column for column in row if column.strip() and column not in PLAIN]  # pandas writes an unnamed index
    if unknown:
        raise ExciseError(
            f"{path} has columns that are not known: {', '.join(map(repr, unknown))}; rename or remove them (a file of "
            f"your own has {', '.join(PLAIN)})"
        )
    names = {}
    for name in ("seed", "guidance"):
        present = [column for column in (name, f"evaluation_{name}") if column in row]
        if len(present) > 1:
            raise ExciseError(f"{path} has both {present[0]} and {present[1]}; remove one of them")
        names[name] = present[0] if present else ""
    return replace(schema, seed=names["seed"], guidance=names["guidance"])


def _cell(row: Mapping[str, Any], column: str) -> str:
    """A cell's text; empty where there is none."""
    cell = row.get(column) if column else None
    return "" if cell is None else str(cell).strip()


def _guidance(path: Path, where: str, row: Mapping[str, Any], column: str) -> float | None:
    if not (text := _cell(row, column)):
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}, not a number; mend that line") from error
    if not 0 <= value < math.inf:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}; a guidance scale is 0 or more; mend that line")
    return value


def _whole(path: Path, where: str, row: Mapping[str, Any], column: str) -> int | None:
    """A whole number, read as one: a float holds none above 2^53. `7.0` is 7, as spreadsheets write it."""
    if not (text := _cell(row, column)):
        return None
    match = re.fullmatch(r"([+-]?\d+)(\.0*)?", text)
    if match is None:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}, not a whole number; mend that line")
    return int(match[1])


def _pixels(path: Path, where: str, row: Mapping[str, Any], column: str) -> int | None:
    side = _whole(path, where, row, column)
    if side is not None and (side < 8 or side % 8):
        raise ExciseError(f"{path}, {where}: {column} is {side}; Stable Diffusion draws multiples of 8")
    return side
