"""Building an eraser from edits, with its metadata and a self-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from excise.concepts import Concept
from excise.erasers import Attachment, Eraser, made_for
from excise.erasers.edits.registry import Edit
from excise.methods.judging import Figures, with_verdict
from excise.pipeline import Pipeline


def versions() -> dict[str, str]:
    """Return the versions of the libraries that an eraser's numbers may depend on."""
    return {name: version(name) for name in ("torch", "transformers", "diffusers")}


def build_eraser(
    pipe: Pipeline,
    edits: Sequence[Edit],
    concept: Concept,
    method: str,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    *,
    sae: Any | None = None,
    canary: str = "",
    figures: Figures | None = None,
) -> Eraser:
    """Build an eraser of `edits`, and attach it on trial to check that it fires on the concept's first prompt.

    Its verdict lists which of the concept's mentions it affects, and `figures`. `settings` are the method's, as json.
    `canary` replaces the concept's first prompt.
    Raises EraserDidNotFire if no prediction changes.
    """
    eraser = Eraser(
        edits=tuple(edits),
        name=f"{concept.name}-{method}",
        concept=concept.name,
        mentions=concept.mentions,
        made_for=made_for(pipe, sorted({e.site.component for e in edits if e.site.part == "denoiser"})),
        created={"method": method, "config": dict(settings), "versions": versions()},
        measured=measured,
        canary=(canary or (concept.pairs[0].concept if concept.pairs else f"a picture of {concept.mentions[0]}"),),
        method=method,
    )
    with Attachment(eraser, pipe, sae=sae, trial=True) as attachment:
        return with_verdict(attachment, concept, figures=figures)
