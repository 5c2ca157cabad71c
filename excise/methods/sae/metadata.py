"""Metadata of an SNCE eraser: how it was made and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.erasers import SAEEdit
from excise.methods.build import versions
from excise.methods.prompt_codes import Reading
from excise.methods.sae.calibrate import Calibration
from excise.sites import Site

if TYPE_CHECKING:
    from excise.methods.configs.sae import SNCEConfig
    from excise.methods.sae.finding import Found


def created(config: SNCEConfig, sites: Sequence[Site]) -> dict[str, Any]:
    """Return every setting, and the versions of the libraries."""
    settings = {
        **asdict(config),
        "neurons": list(config.neurons),
        "sae": sae_name(config.sae),
        "site": "+".join(site.path if len(sites) == 1 else site.key for site in sites),
    }
    return {"method": "snce", "config": settings, "versions": versions()}


def sae_name(folder: str) -> str:
    """Return what an eraser saves of its SAE's folder: the last part, since the rest is about the maker's machine."""
    return Path(folder).name


def measured(found: Found, edit: SAEEdit, levels: Calibration, sides: Mapping[str, Reading | None]) -> dict[str, Any]:
    """Return the measurements of the eraser's calibration, as json; None if a value is not finite.

    `sides` holds the codes of the prompts by what they are: concept, deconcept, controls, benign.
    """
    entries = {entry.index: entry for entry in found.ranking.entries}
    checks = {check.index: check for check in found.validation}
    neurons = []
    for n, index in enumerate(edit.indices.tolist()):
        entry, check = entries.get(index), checks.get(index)
        figures: dict[str, Any] = {name: _number(getattr(levels, name)[n]) for name in levels._fields}
        figures["separable"] = bool(levels.separable[n])
        if entry is not None:
            figures |= {"score": entry.score, "frequency": entry.frequency, "deconcept_score": entry.deconcept_score}
        if check is not None:
            figures |= {
                "auroc": check.auroc,
                "p_value": check.p_value,
                "control_share": check.control_share,
                "structural": check.structural,
            }
        neurons.append({"index": index, **figures})

    fires = {
        side: None if read is None else float(read.acting(edit).double().mean())
        for side, read in sides.items()
        if read is not None or side != "benign"
    }
    positives = sides["concept"]
    return {
        "neurons": neurons,
        "dominance": _number(found.ranking.dominance),
        "pairs": len(positives.preacts) if positives is not None else 0,
        "fires": fires,
    }


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
