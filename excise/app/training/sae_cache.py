"""Cache of SAEs, keyed by the model's weights, the Site and the training."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from excise.app.reading.vectors import features, no_prompts
from excise.app.training.text import places_of, train_on, train_sae
from excise.concepts import read_prompts
from excise.erasers.guard.model_digest import text_encoder_digests
from excise.files import sha256, write_atomic
from excise.pipeline import Pipeline
from excise.sae import Progress, TrainConfig, saes_in
from excise.sae.storage import is_sae
from excise.sites import LanguageModel, Site

HELD_OUT = "held_out.txt"
"""File in a training's folder with prompts that it did not read, one per line."""
LEAST_CORPUS, MOST_HELD_OUT = 20_000, 1000
"""Smallest corpus that prompts are held out of, and their number: every hundredth prompt, up to that many."""
PROBE = 64
"""Prompts that are read, and trained on for two steps, to estimate a training's cost."""
LONG, SHORT = 16, 12
"""Digits of the digests in folder names."""


def cache_folder() -> Path:
    """Return the cache's folder: `$EXCISE_CACHE`, else `excise` in `$XDG_CACHE_HOME`, else `~/.cache/excise`."""
    if given := os.environ.get("EXCISE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "excise"


@dataclass(frozen=True)
class Training:
    """A training: its Sites, prompts, settings and folder."""

    places: dict[Path, Site]
    """The Site of each SAE by the SAE's folder, from `places_of`."""
    prompts: list[str]
    config: TrainConfig
    card: dict[str, Any]
    folder: Path
    held_out: tuple[str, ...] = ()
    """Prompts of the corpus that are not trained on, for calibrating erasers."""

    @property
    def left(self) -> dict[Path, Site]:
        """The SAEs that are not trained yet."""
        return {folder: site for folder, site in self.places.items() if not is_sae(folder)}


@dataclass(frozen=True)
class Cost:
    """A training's cost, estimated from a few prompts and two training steps."""

    prompts: int
    minutes: float
    bytes: int
    """Size of the trained SAEs."""

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} prompts, about {max(1, round(self.minutes)):,} min, {self.bytes / 1e6:,.0f} MB on disk"
        )


def cached_sae(pipe: Pipeline, site: Site | None = None) -> Path | None:
    """Return the newest cached SAE for this model and Site, or the newest folder with SAEs of all text encoders.

    Returns None if there is none.
    """
    folder = _of_model(pipe, site)
    known = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    wanted = len(places_of(pipe, folder, site))
    whole = [path for path in known if is_sae(path) or (wanted > 1 and len(saes_in(path)) == wanted)]
    return whole[-1] if whole else None


def planned(
    pipe: Pipeline, prompts: Sequence[str], config: TrainConfig, card: dict[str, Any], site: Site | None = None
) -> Training:
    """Return the training of an SAE for every text encoder of a pipeline, or at one Site, in the cache.

    The folder's name depends on the model's weights, the Sites, the prompts and the settings, so that the same call
    finds finished SAEs and resumes an interrupted training.
    """
    texts, held_out = list(prompts), list[str]()
    if not texts:
        raise no_prompts()
    if len(texts) >= LEAST_CORPUS:
        held_out = texts[:: max(100, -(-len(texts) // MOST_HELD_OUT))]
        kept_out = set(held_out)
        texts = [text for text in texts if text not in kept_out]
    recipe = _sha256([asdict(config), texts])[:SHORT]
    folder = _of_model(pipe, site) / recipe
    return Training(places_of(pipe, folder, site), texts, config, card, folder, tuple(held_out))


def held_out(folder: Path) -> list[str]:
    """Return the prompts of its corpus that the SAE in a folder was not trained on; empty if they were not kept."""
    file = folder / HELD_OUT
    return list(read_prompts(file)) if file.is_file() else []


def cost_of(pipe: Pipeline, training: Training, device: str = "cpu") -> Cost:
    """Estimate a training by reading `PROBE` of its prompts and training on them for two steps."""
    few = training.prompts[:: -(-len(training.prompts) // PROBE)]
    seconds, size = 0.0, 0
    for site in training.left.values():
        start = time.perf_counter()
        read = features(pipe, [site], few)[site]
        seconds += (time.perf_counter() - start) * len(training.prompts) / len(few)
        short = replace(training.config, tokens=2 * training.config.batch)
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            train_on(pipe, site, few, read, short, Path(scratch) / "sae", card={}, device=device)
            two = time.perf_counter() - start
            size += sum(file.stat().st_size for file in (Path(scratch) / "sae").iterdir())
        seconds += two / 2 * training.config.tokens / training.config.batch
    return Cost(len(training.prompts), seconds / 60, size)


def train_planned(
    pipe: Pipeline,
    training: Training,
    folder: Path,
    *,
    device: str = "cpu",
    captured: Callable[[int], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Train one SAE of the training: the one in `folder`, which must be among those `left`.

    Raises:
        ExciseError: As `excise.app.training.text.train_sae`.
    """
    how: dict[str, Any] = {"card": training.card, "captured": captured, "progress": progress, "device": device}
    folder.parent.mkdir(parents=True, exist_ok=True)
    train_sae(pipe, training.places[folder], training.prompts, training.config, folder, **how)
    if training.held_out:
        lines = "".join(" ".join(text.split()) + "\n" for text in training.held_out)
        write_atomic(training.folder / HELD_OUT, lines.encode())


def _of_model(pipe: Pipeline, site: Site | None) -> Path:
    """Return the folder of all trainings for this model's weights and these Sites."""
    sites = list(places_of(pipe, Path(), site).values())
    every = text_encoder_digests(pipe)
    digests = {s.component: every[s.component] for s in sites if s.component in every}
    kind = type(pipe).__name__ if isinstance(pipe, LanguageModel) else ""
    return cache_folder() / "saes" / _sha256([kind, digests, [asdict(s) for s in sites]])[:LONG]


def _sha256(data: Any) -> str:
    return sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode())
