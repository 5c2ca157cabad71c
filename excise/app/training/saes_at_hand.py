"""The SAEs that an eraser was made from, as far as this machine has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from excise.app.training.sae_cache import cached_sae
from excise.erasers.artefact.record import Artefact
from excise.erasers.edits.sae_rows import Rows, sae_digest
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load, saes_in


def saes_at_hand(
    eraser: Artefact, pipe: Pipeline, given: Path | None = None, *, bundled: bool = False
) -> list[TopKSAE]:
    """Return the SAEs by whose rows the eraser can be checked, of any that are at hand.

    They are looked for among the bundled model's and among those trained for this model, never where the eraser says:
    a file must not choose what is opened. What counts is the digest.

    Args:
        eraser: The eraser.
        pipe: The pipeline that it is checked on.
        given: Folder of the SAE, or of several. Then these are returned, whether or not the eraser names them.
        bundled: Whether `pipe` is the bundled model.

    Raises:
        ExciseError: if `given` cannot be read.
    """
    if given is not None:
        return [load(place) for place in saes_in(given).values()] or [load(given)]
    wanted = {edit.sae_digest for edit in eraser.edits if isinstance(edit, Rows)}
    found: dict[str, TopKSAE] = {}
    for place in _places(pipe, bundled) if wanted else ():
        if wanted <= set(found):
            break
        sae = load(place)
        if (digest := sae_digest(sae)) in wanted:
            found[digest] = sae
    return list(found.values())


def _places(pipe: Pipeline, bundled: bool) -> Iterator[Path]:
    if bundled:
        from excise.reference.bundle import SAES, sae_folder

        yield from (sae_folder(method) for method in SAES)
    try:
        cached = cached_sae(pipe)
    except ExciseError:  # a pipeline without a text encoder has no such cache
        cached = None
    if cached is not None:
        yield from saes_in(cached).values() or (cached,)
