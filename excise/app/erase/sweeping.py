"""A sweep over the Sites of a text encoder: a small SAE at each, and the best neuron it has for a concept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from excise.app.erase.finding import find_neurons
from excise.app.training.text import BUNDLED, train_sae
from excise.concepts import Concept
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.pipeline import Pipeline
from excise.sae import card
from excise.sites import Site, sites_of

SWEEP_PROMPTS = 2000
"""Prompts that a sweep trains its SAEs on."""


def swept_sites(pipe: Pipeline) -> list[Site]:
    """Return the Sites of a sweep: those of the first text encoder. Raises ExciseError without a text encoder."""
    sites = sites_of(pipe)
    if not sites:
        raise ExciseError(f"{type(pipe).__name__} has no text encoder to sweep; name a pipeline with a text encoder")
    return [s for s in sites if s.component == sites[0].component]


def sweep(
    pipe: Pipeline,
    concept: Concept,
    prompts: list[str],
    *,
    tokens: int,
    device: str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Find the best neuron at each Site of the first text encoder, with a small SAE trained there.

    Returns:
        Rows in the order of layers. `dominance` is the first score divided by the second.

    Raises:
        ExciseError: As training and finding.
    """
    rows = []
    for site in swept_sites(pipe):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "sae"
            corpus = {"corpus": f"sweep over {len(prompts)} prompts"}
            train_sae(pipe, site, prompts, replace(BUNDLED, tokens=tokens), folder, card=corpus, device=device)
            findings = find_neurons(pipe, concept, SNCEConfig(sae=str(folder)), top=1)
            metrics = card(folder)["metrics"]["train"]
        best: dict[str, Any] = findings.rows[0] if findings.rows else {}
        dominance = findings.ranking.dominance
        rows.append(
            {
                "site": site.key,
                **{name: best.get(name) for name in ("neuron", "score", "auroc", "control_share")},
                "dominance": dominance if 0 < dominance < float("inf") else None,
                "fvu": metrics["fvu"],
            }
        )
        if progress is not None:
            progress(1)
    return rows
