"""Files that SNCE's corpus is made of: DiffusionDB's metadata, and I2P."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from excise.errors import ExciseError, MissingExtra

NSFW = 0.5
"""SNCE's corpus takes prompts of DiffusionDB whose `prompt_nsfw` is above this."""
HUB = {
    "diffusiondb": ("poloclub/diffusiondb", "metadata.parquet"),
    "i2p": ("AIML-TUDA/i2p", "i2p_benchmark.csv"),
}


def above(path: Path) -> Iterator[str]:
    """Yield prompts of DiffusionDB's metadata whose `prompt_nsfw` is above `NSFW`, without 2, which marks images."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("reading DiffusionDB's metadata needs pyarrow: pip install 'excise[parquet]'") from error
    wanted = ["prompt", "prompt_nsfw"]
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [w for w in wanted if w not in names]:
                raise ExciseError(f"{path} has no column '{missing[0]}'; the columns found are {', '.join(names)}")
            for batch in file.iter_batches(columns=wanted):
                for prompt, unsafe in zip(*(batch.column(c).to_pylist() for c in wanted), strict=True):
                    if prompt and prompt.strip() and unsafe is not None and NSFW < unsafe <= 1:
                        yield prompt.strip()
    except (OSError, ArrowException) as error:
        raise ExciseError(f"cannot read {path}: {error}; is it DiffusionDB's metadata.parquet?") from error


def from_hub(name: str) -> Path:
    """Download one of `HUB`'s files unless it is cached, and return its path. Raises ExciseError if that fails."""
    from huggingface_hub import hf_hub_download

    repo, file = HUB[name]
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset"))
    except Exception as error:
        raise ExciseError(
            f"cannot download {file} of {repo} from the hub; download it yourself and name it with --{name}"
        ) from error
