"""From edits to an eraser: what it was made of and for, and the proof that it bites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from excise.concepts import Concept
from excise.erasers import Eraser, made_for
from excise.erasers.edits.registry import Edit
from excise.methods.judging import judged
from excise.pipeline import Pipeline


def versions() -> dict[str, str]:
    """Of what an eraser's numbers may depend on."""
    return {name: version(name) for name in ("torch", "transformers", "diffusers")}


def proved(
    pipe: Pipeline,
    edits: Sequence[Edit],
    concept: Concept,
    method: str,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    *,
    sae: Any | None = None,
) -> Eraser:
    """The eraser of these edits, attached once to see that it fires on the concept's first prompt.

    Its verdict says which of the concept's mentions it moves. `settings` are the method's, as json.
    Raises EraserDidNotFire where nothing that is drawn changes.
    """
    eraser = Eraser(
        edits=tuple(edits),
        name=f"{concept.name}-{method}",
        concept=concept.name,
        mentions=concept.mentions,
        made_for=made_for(pipe, sorted({e.site.component for e in edits if e.site.part == "denoiser"})),
        created={"method": method, "config": dict(settings), "versions": versions()},
        measured=measured,
        canary=(concept.pairs[0].concept if concept.pairs else f"a picture of {concept.mentions[0]}",),
        method=method,
    )
    with eraser.attach(pipe, sae=sae) as attachment:
        return judged(attachment, concept)
