"""Scanning of a corpus for a few neurons on an engine: one file a part, merged at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from excise.app.models.loader import Loader
from excise.app.neurons.scan import Scan
from excise.concepts.parts import Part, read_part
from excise.engine import is_here, make_all
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.files import read_json, sha256, write_atomic
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import Site, capture_by_length


@dataclass(frozen=True, eq=False)
class Scanning:
    """Stage that scans parts of a corpus, with the model that each worker loads."""

    load: Loader
    sae: str
    """Folder of the SAE."""
    digest: str
    """Digest of the SAE."""
    site: Site
    neurons: tuple[int, ...]
    column: str
    keep: int
    """Prompts to keep per neuron."""
    out: str
    """File of the merged scan. The parts' files are next to it."""
    batch_size: int = 64
    loaded: tuple[Pipeline, TopKSAE] | None = field(default=None, repr=False)
    """The model and the SAE, if they are in this process; they are not pickled."""

    def open(self) -> Callable[[Part], None]:
        return partial(self._make, *(self.loaded or self.load.with_sae(self.sae, self.site.component)))

    @property
    def folder(self) -> Path:
        """The folder of the parts' files."""
        out = Path(self.out)
        return out.with_name(f"{out.name}.parts")

    def path(self, item: Part) -> Path:
        model = f"{self.load.model} {self.load.weights}"
        own = f"{model} {self.digest} {self.site.key} {self.neurons} {self.column} {self.keep} {self.batch_size}"
        key = sha256(f"{own} {item}".encode())[:16]
        return self.folder / f"{item.number:06d}-{key}.json"

    def name(self, item: Part) -> str:
        return f"part-{item.number:06d}"

    def _make(self, pipe: Pipeline, sae: TopKSAE, item: Part) -> None:
        write_atomic(self.path(item), json.dumps(self._scanned(pipe, sae, item).to_json()) + "\n")

    @torch.no_grad()
    def _scanned(self, pipe: Pipeline, sae: TopKSAE, item: Part) -> Scan:
        """Return what the neurons do on the prompts of a part, by the unedited model."""
        prompts = read_part(item, self.column)
        found, texts = Scan.empty(self.neurons, self.keep), [text for _, text in prompts]
        if not texts:
            return found
        with unedited():
            for numbers, batch in capture_by_length(pipe, [self.site], texts, self.batch_size):
                scored, h = batch.scored.cpu(), batch.states[self.site]
                codes = sae.encode(h[batch.scored.to(h.device)].to(sae.W_enc))
                own = [(codes.values * (codes.indices == n)).sum(-1) for n in self.neurons]
                whole = torch.zeros(*scored.shape, len(self.neurons))
                whole[scored] = torch.stack(own, -1).cpu().float()
                some = [texts[n] for n in numbers]
                found = found.with_codes(whole, scored, some, item.number, [prompts[n][0] for n in numbers])
        return found


def scan(
    stage: Scanning,
    parts: Sequence[Part],
    engine: str | None = None,
    workers: int = 1,
    retry: bool = False,
    progress: Callable[[int], Any] | None = None,
    loaded: tuple[Pipeline, TopKSAE] | None = None,
) -> Scan | None:
    """Scan the parts that are not done, and merge all.

    Return None in a slice other than the first, if another slice failed at a part.

    Args:
        loaded: The model and the SAE, for an engine that works in this process.
        progress: Called with the number of parts done since its last call.

    Raises:
        ItemsFailed: A part cannot be scanned.
        ExciseError: The engine cannot be used, or a part's file is damaged.
    """
    if is_here(engine, workers):
        stage = replace(stage, loaded=loaded)
    failures = Path(stage.out).with_name(f"{Path(stage.out).name}.failures")
    how: dict[str, Any] = {"needs": stage.load.needs, "workers": workers, "failures": failures, "retry": retry}
    done = make_all(engine, stage, parts, then=lambda _: progress and progress(1), **how)
    return merged(stage, parts) if done else None


def merged(stage: Scanning, parts: Sequence[Part]) -> Scan:
    """Return the scan of all parts. Only one is in memory at a time. Raises ExciseError if one is damaged."""
    found = Scan.empty(stage.neurons, stage.keep)
    for one in _saved(stage, parts):
        found = found.merged(one)
    return found


def _saved(stage: Scanning, parts: Sequence[Part]) -> Iterator[Scan]:
    for part in parts:
        path = stage.path(part)
        try:
            yield Scan.from_json(read_json(path))
        except (OSError, ValueError, ExciseError) as error:
            raise ExciseError(f"cannot read {path} ({error}); delete it and repeat the command") from error
