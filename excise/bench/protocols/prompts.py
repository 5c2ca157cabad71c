"""Readers of published prompt sets and of the user's own files. None of the sets is in this repository.

| schema        | recognised by the columns       | source                                                          |
|---------------|---------------------------------|-----------------------------------------------------------------|
| `i2p`         | `evaluation_seed`, `categories` | I2P as in RECE, TRCE, UnlearnDiffAtk (Schramowski et al. 2023)  |
| `i2p-sd`      | `sd_seed`                       | I2P as on the hub and in SPM                                    |
| `p4d`         | `safe_model`                    | P4D-N-16 (Chin et al. 2023)                                     |
| `ring-a-bell` | `sensitive prompt`              | Ring-A-Bell (Tsai et al. 2023), without seeds: 42 for every row |
| `mma`         | `adv_prompt`                    | MMA-Diffusion (Yang et al. 2023)                                |
| `coco`        | `coco_id`                       | captions of MS COCO, 30,000 or the subset of 3,000              |
| `plain`       | `prompt`, and none of the above | the user's own: columns as in `PLAIN`, others are refused       |
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
from excise.settings import LARGEST_SEED

HUB = "hf://datasets/"
PLAIN = {
    "prompt": "the text",
    "seed": "a whole number from 0; or evaluation_seed",
    "evaluation_seed": "the same",
    "guidance": "guidance scale of the row; or evaluation_guidance",
    "evaluation_guidance": "the same",
    "width": "of the picture, a multiple of 8",
    "height": "of the picture, a multiple of 8",
    "categories": "I2P's categories, separated by commas",
    "case_number": "your own number for the row; not read",
}
"""Columns of the user's own file. Only `prompt` is required; an empty cell means the default."""
NO_SEED = 42
"""Seed of rows without one, as in RECE's and SAFREE's runs of Ring-A-Bell."""


@dataclass(frozen=True)
class Schema:
    """Columns of a published file."""

    name: str
    recognised_by: tuple[str, ...]
    prompt: str = "prompt"
    seed: str = ""
    guidance: str = ""
    harmful: bool = True
    """Whether the prompts are meant to generate harmful pictures."""


SCHEMAS = (
    Schema("i2p-sd", ("sd_seed",), seed="sd_seed", guidance="sd_guidance_scale"),
    Schema("p4d", ("safe_model",), seed="evaluation_seed", guidance="evaluation_guidance"),
    Schema("ring-a-bell", ("sensitive prompt",), prompt="sensitive prompt"),
    Schema("mma", ("adv_prompt",), prompt="adv_prompt"),
    Schema("coco", ("coco_id",), seed="evaluation_seed", harmful=False),
    Schema("i2p", ("evaluation_seed", "categories"), seed="evaluation_seed", guidance="evaluation_guidance"),
    Schema("plain", ("prompt",), seed="seed", guidance="guidance"),
)
"""Schemas in the order to try them: each is recognised by a column that those after it lack."""


@dataclass(frozen=True)
class Row:
    """Prompt with the settings its file gives; None for those it leaves out."""

    number: int
    """Index in the file from 0, counting dropped rows, so that it names the same prompt everywhere."""
    prompt: str
    seed: int
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """Rows of a file, and the number dropped because they concern minors."""

    schema: str
    rows: tuple[Row, ...]
    dropped: int

    def only(self, category: str) -> PromptSet:
        """Return the rows of one category of I2P, such as `sexual` or `violence`. Raises ExciseError if it has none."""
        rows = tuple(row for row in self.rows if category in row.categories)
        if not rows:
            found = sorted({name for row in self.rows for name in row.categories})
            raise ExciseError(f"no row has the category {category!r}; the file has {', '.join(found) or 'none'}")
        return PromptSet(self.schema, rows, self.dropped)


def load(path: Path | str, schema: str | None = None, *, unseeded: int = NO_SEED) -> PromptSet:
    """Read the prompts of a csv or jsonl file with their seeds, guidance scales and sizes.

    Rows that mention a minor are dropped from MMA-Diffusion, and from other harmful sets in their sexual category or
    without categories. Such prompts are never used to generate pictures, not even to measure an eraser, so counts can
    be slightly below the published ones.

    Args:
        path: Local file, or one in a data set on the hub: `hf://datasets/OWNER/NAME/FILE`.
        schema: Name of the schema; by default it is recognised by the columns.
        unseeded: Seed of rows without one.

    Raises ExciseError for a missing, empty or broken file, unknown columns, or a cell that is not a number, or not a
    whole number for a seed or a size.
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
            raise ExciseError(f"{path}, {where}: {kind.seed} is {seed}; a seed must be from 0 to {LARGEST_SEED}")
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
        raise ExciseError(f"{path} holds no usable prompts ({dropped} dropped); choose another file")
    return PromptSet(kind.name, tuple(rows), dropped)


def fetched(url: str) -> Path:
    """Return the local copy of `hf://datasets/OWNER/NAME/FILE`, downloading it unless it is in the hub's cache.

    Raises ExciseError for an address of another form, or if the download fails.
    """
    from huggingface_hub import hf_hub_download

    parts = url.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ExciseError(f"cannot read the address {url}; write it as {HUB}OWNER/NAME/FILE.csv")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except (OSError, ValueError) as error:  # all errors of huggingface_hub are one or the other
        reason = str(error).splitlines()[0]
        raise ExciseError(f"cannot download {url} ({reason}); download it yourself and name the file") from error


def concerns_minors(row: Mapping[str, Any]) -> bool:
    """Return whether any prompt in the row mentions a minor or an age below 18. Errs on the side of dropping rows."""
    return any("prompt" in name and names_minors(str(text)) for name, text in row.items())


def _schema(path: Path, row: Mapping[str, Any], asked: str | None) -> Schema:
    for schema in SCHEMAS:
        if asked == schema.name or (asked is None and all(column in row for column in schema.recognised_by)):
            if schema.prompt not in row:
                break
            return _plain(path, row, schema) if schema.name == "plain" else schema
    known = ", ".join(schema.name for schema in SCHEMAS)
    raise ExciseError(
        f"{path} does not look like {asked or 'a published prompt set, and has no column prompt'}; its columns are "
        f"{', '.join(row) or 'none'}, the known schemas {known}"
    )


def _plain(path: Path, row: Mapping[str, Any], schema: Schema) -> Schema:
    """Return the schema of the user's own file, with its column names for seed and guidance."""
    unknown = [column for column in row if column.strip() and column not in PLAIN]  # pandas writes an unnamed index
    if unknown:
        raise ExciseError(
            f"{path} has unknown columns: {', '.join(map(repr, unknown))}; rename or remove them (your own file may "
            f"have {', '.join(PLAIN)})"
        )
    names = {}
    for name in ("seed", "guidance"):
        present = [column for column in (name, f"evaluation_{name}") if column in row]
        if len(present) > 1:
            raise ExciseError(f"{path} has both {present[0]} and {present[1]}; remove one of them")
        names[name] = present[0] if present else ""
    return replace(schema, seed=names["seed"], guidance=names["guidance"])


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return a cell's text; empty if the column or the cell is missing."""
    cell = row.get(column) if column else None
    return "" if cell is None else str(cell).strip()


def _guidance(path: Path, where: str, row: Mapping[str, Any], column: str) -> float | None:
    if not (text := _cell(row, column)):
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}, not a number; correct that line") from error
    if not 0 <= value < math.inf:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}; a guidance scale is 0 or more; correct that line")
    return value


def _whole(path: Path, where: str, row: Mapping[str, Any], column: str) -> int | None:
    """Parse a whole number; `7.0`, as spreadsheets write it, is 7. Not by way of float, which is exact only to 2^53."""
    if not (text := _cell(row, column)):
        return None
    match = re.fullmatch(r"([+-]?\d+)(\.0*)?", text)
    if match is None:
        raise ExciseError(f"{path}, {where}: {column} is {text!r}, not a whole number; correct that line")
    return int(match[1])


def _pixels(path: Path, where: str, row: Mapping[str, Any], column: str) -> int | None:
    side = _whole(path, where, row, column)
    if side is not None and (side < 8 or side % 8):
        raise ExciseError(f"{path}, {where}: {column} is {side}; Stable Diffusion needs a multiple of 8")
    return side
