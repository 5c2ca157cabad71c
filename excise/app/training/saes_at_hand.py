"""The SAEs that an eraser was made from, as far as this machine has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        return [load(place) for place in folders_of(given)]
    return list(recognised(eraser, places(pipe, bundled=bundled)).values())


def recognised(eraser: Artefact, folders: Iterable[Path]) -> dict[str, TopKSAE]:
    """Return the SAEs of these folders whose rows the eraser has, by digest. Loads no more than it needs."""
    wanted = {edit.sae_digest for edit in eraser.edits if isinstance(edit, Rows)}
    found: dict[str, TopKSAE] = {}
    for place in dict.fromkeys(folders) if wanted else ():
        if wanted <= set(found):
            break
        sae = load(place)
        if (digest := sae_digest(sae)) in wanted:
            found[digest] = sae
    return found


def folders_of(given: Path) -> list[Path]:
    """Return the folders of SAEs in `given`, or `given` itself."""
    return list(saes_in(given).values()) or [given]


def places(pipe: Pipeline | None, *, bundled: bool) -> Iterator[Path]:
    """Yield where SAEs are looked for: the bundled model's, and those that were trained for `pipe`, if there is one."""
    if bundled:
        from excise.reference.bundle import SAES, sae_folder

        yield from (sae_folder(method) for method in SAES)
    if pipe is None:
        return
    try:
        cached = cached_sae(pipe)
    except ExciseError:  # a pipeline without a text encoder has no such cache
        cached = None
    if cached is not None:
        yield from folders_of(cached)
