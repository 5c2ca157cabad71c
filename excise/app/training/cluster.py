"""Training of one SAE by ranks on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from excise.app.models.loader import Loader
from excise.app.reading.vectors import Prompts
from excise.app.training.text import train_sae
from excise.engine.ranks import run_ranks
from excise.sae import Progress, TrainConfig
from excise.sae.parallel import Mesh
from excise.sae.storage import is_sae
from excise.sites import Site

_BEGUN = "begun"
"""What the first rank says before it reads."""


@dataclass(frozen=True)
class Rank:
    """What each rank does. It is pickled, and the model is not."""

    load: Loader
    site: Site
    prompts: Prompts
    config: TrainConfig
    out: Path
    data: int
    latents: int
    how: Mapping[str, Any]
    """Further arguments of `train_sae`."""

    def __call__(self, say: Callable[[Any], None]) -> None:
        """Train, and say what the first rank reports: `_BEGUN`, numbers of prompts, and lines of the log."""
        mesh = Mesh.join(self.data, self.latents)
        if mesh.any(is_sae(self.out)):  # a rank was lost after the SAE was saved
            return
        device = self.load.device
        if device == "cuda":  # the GPU that Ray has given it
            device = f"cuda:{torch.cuda.current_device()}"
        pipe = mesh.together(replace(self.load, device=device))
        if mesh.rank == 0:
            say(_BEGUN)

        def captured(read: int) -> None:
            say(0 if mesh.rank else read)  # every rank asks whether to stop

        train_sae(
            pipe, self.site, self.prompts, self.config, self.out, mesh=mesh, device=device, captured=captured,
            progress=say, **self.how,
        )  # fmt: skip


def train_on_cluster(
    load: Loader,
    site: Site,
    prompts: Prompts,
    config: TrainConfig,
    out: Path,
    *,
    engine: str,
    mesh: Mesh,
    captured: Callable[[int], Any],
    progress: Callable[[Progress], None],
    restarted: Callable[[], None],
    **how: Any,
) -> None:
    """Train as `train_sae` does, by ranks that Ray Train starts on a cluster. Each loads the model.

    Args:
        load: How a rank loads the model. With the device `cuda` it gets a GPU of its own.
        site: The Site.
        prompts: The corpus: texts, or tokens.
        config: Settings of the training.
        out: Folder of the SAE, on a disk that all nodes see.
        engine: `ray` or `ray://HOST:PORT`.
        mesh: The division; its ranks are not joined here.
        captured: Called with the prompts read since its last call.
        progress: Called with the lines of the training's log.
        restarted: Called when a process was lost, and all go on from the last checkpoint.
        how: Further arguments of `train_sae`.

    Raises:
        ExciseError: As `train_sae` and `excise.engine.ranks.run_ranks`.
    """
    starts = 0

    def received(message: Any) -> None:
        nonlocal starts
        if message == _BEGUN:
            starts += 1
            if starts > 1:
                restarted()
        elif isinstance(message, Progress):
            progress(message)
        else:
            captured(message)

    rank = Rank(load, site, prompts, config, out, mesh.data, mesh.latents, how)
    run_ranks(engine, rank, mesh.size, needs=load.needs, received=received)
