"""Scanning of a corpus for a few neurons on an engine: one file a part, merged at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from excise.app.models.loader import Loader
from excise.app.neurons.scan import Scan
from excise.concepts.parts import Part, read_part
from excise.engine import check_made, is_here, run
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.files import read_json, sha256, write_atomic
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load
from excise.sites import Site, capture_by_length
from excise.sites.site import encoder_of


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
        if self.loaded is not None:
            return partial(self._make, *self.loaded)
        pipe = self.load()
        device = next(encoder_of(pipe, self.site.component).parameters()).device
        return partial(self._make, pipe, load(Path(self.sae), device=device))

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
        found = scanned(pipe, sae, self.site, self.neurons, read_part(item, self.column), item.number, self)
        write_atomic(self.path(item), json.dumps(found.to_json()) + "\n")


@torch.no_grad()
def scanned(
    pipe: Pipeline,
    sae: TopKSAE,
    site: Site,
    neurons: Sequence[int],
    prompts: Sequence[tuple[int, str]],
    part: int,
    how: Scanning,
) -> Scan:
    """Return what the neurons do on the prompts of a part, each with its row, by the unedited model."""
    found, texts = Scan.empty(neurons, how.keep), [text for _, text in prompts]
    if not texts:
        return found
    with unedited():
        for numbers, batch in capture_by_length(pipe, [site], texts, how.batch_size):
            scored, h = batch.scored.cpu(), batch.states[site]
            codes = sae.encode(h[batch.scored.to(h.device)].to(sae.W_enc))
            chosen = torch.stack([(codes.values * (codes.indices == n)).sum(-1) for n in neurons], -1).cpu().float()
            whole = torch.zeros(*scored.shape, len(neurons))
            whole[scored] = chosen
            some = [texts[n] for n in numbers]
            found = found.with_codes(whole, scored, some, part, [prompts[n][0] for n in numbers])
    return found


def scan(
    stage: Scanning,
    parts: Sequence[Part],
    engine: str | None = None,
    workers: int = 1,
    retry: bool = False,
    progress: Callable[[int], Any] | None = None,
    loaded: tuple[Pipeline, TopKSAE] | None = None,
) -> Scan:
    """Scan the parts that are not done, and merge all.

    Args:
        loaded: The model and the SAE, for an engine that works in this process.
        progress: Called with the number of parts done since its last call.

    Raises:
        ItemsFailed: A part cannot be scanned.
        ExciseError: The engine cannot be used, or a part's file is damaged.
    """
    if is_here(engine, workers):
        stage = replace(stage, loaded=loaded)
    out = Path(stage.out)
    failures, outcomes = out.with_name(f"{out.name}.failures"), []
    how: dict[str, Any] = {"needs": stage.load.needs, "workers": workers, "failures": failures, "retry": retry}
    with closing(run(engine, stage, parts, **how)) as making:
        for outcome in making:
            outcomes.append(outcome)
            if progress is not None:
                progress(1)
    check_made(outcomes, stage.name, failures)
    return merged(stage, parts)


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
