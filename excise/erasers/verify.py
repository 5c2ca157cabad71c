"""Verification of a saved eraser, check by check."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.concepts import builtin, names
from excise.concepts.concept import Kind, mentioned
from excise.concepts.words import OBJECTS, STYLES
from excise.erasers.apply.registry import module_of
from excise.erasers.artefact import files, formats
from excise.erasers.artefact.files import Check
from excise.erasers.artefact.pins import check_pins
from excise.erasers.artefact.signing import Signer, check_signature
from excise.erasers.attachment import Attachment
from excise.erasers.edits.merged_sae import parts_of, words_instead
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit
from excise.erasers.edits.sae_rows import Rows, altered_rows, sae_digest
from excise.erasers.eraser import Eraser, StrPath
from excise.erasers.guard.coverage import absent_from
from excise.erasers.guard.model_digest import mismatches
from excise.erasers.proof.removal import (
    MOST_MENTIONS,
    MOST_PREDICTED,
    Floor,
    Removal,
    can_measure_prediction,
    can_measure_text,
    measured_words,
    removed_from_prediction,
    removed_from_text,
)
from excise.erasers.proof.solved import Solved, altered_weights
from excise.errors import ExciseError, Tampered, WrongModel
from excise.pipeline import check_pipeline
from excise.sae import TopKSAE

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.pipeline import Pipeline

SAEs = TopKSAE | Iterable[TopKSAE] | Callable[[Eraser], Iterable[TopKSAE]] | None
"""SAEs whose rows an eraser's are compared with, or a function that finds them for an eraser."""
Solve = Callable[["Pipeline", Eraser], Solved | None]
"""Function that solves again for an eraser's edits on a pipeline (`excise.methods.solving`)."""
TRUSTED = "trusted as signed"
"""The check that names what only the signer can vouch for."""


def verify(
    folder: StrPath,
    pipe: Pipeline | None = None,
    *,
    sae: SAEs = None,
    solve: Solve | None = None,
    signed_by: Signer | None = None,
    digest: str | None = None,
    concept: str | None = None,
) -> list[Check]:
    """Check a saved eraser as `excise.verify` does, except that no SAE is looked for.

    `sae` may also be a function, which gets the eraser as it was read and returns the SAEs. It is called at most once,
    if the files are sound and there is a pipeline. `solve` solves again for an eraser's weights; without it they are
    not compared.
    """
    if pipe is not None:
        check_pipeline(pipe)
    path = Path(folder)
    checks: list[Check] = []

    def passes(name: str, step: Any, detail: str) -> Any:
        try:
            result = step()
        except ExciseError as error:
            checks.append(Check(name, False, str(error)))
            return None
        checks.append(Check(name, True, detail))
        return result if result is not None else True

    saved = passes("files", lambda: files.read(path), "all three files are there")
    if saved is None:
        return checks
    if signed_by is not None and not passes(
        "signature", lambda: check_signature(path, saved, signed_by), f"signed by {signed_by}"
    ):
        return checks
    if passes("manifest", lambda: files.check_manifest(path, saved), "no byte was altered") is None:
        return checks
    pinned = digest is not None or concept is not None
    if pinned and not passes("pins", lambda: check_pins(path, saved, digest, concept), "the eraser that was asked for"):
        return checks
    eraser = passes("content", lambda: Eraser(**formats.unpack(path, saved)), "format, shapes and values are valid")
    if eraser is None or pipe is None:
        return checks

    given = sae(eraser) if callable(sae) and not isinstance(sae, TopKSAE) else sae
    saes = [given] if isinstance(given, TopKSAE) else list(given or ())
    by_digest = {sae_digest(each): each for each in saes}
    absent = absent_from(pipe, eraser)

    def same_model() -> None:
        if differences := mismatches(pipe, eraser.made_for, absent):
            raise WrongModel(f"made for another pipeline: {'; '.join(differences)}")

    present = [edit for edit in eraser.edits if edit.site.component not in absent]
    passes("sites", lambda: [module_of(pipe, edit) for edit in present], "every Site exists")
    fits = passes("model", same_model, "text encoder and tokenizer are those it was made for")
    trusted = compared_rows(eraser, by_digest, passes)
    trusted += compared_weights(eraser, lambda: solve(pipe, eraser) if solve is not None and fits else None, passes)
    prompts = "the canary prompt" if len(eraser.canary) == 1 else f"each of {len(eraser.canary)} canary prompts"
    attachment = passes(
        "canary", lambda: _attached(eraser, pipe, by_digest), f"what the denoiser reads changes on {prompts}"
    )
    if attachment is not None:
        with attachment:
            trusted += _removal(attachment, checks)
    trusted += [f"{name}, which this pipeline was built without" for name in absent]
    if trusted:
        checks.append(Check(TRUSTED, True, "; ".join(trusted)))
    if eraser.verdict:
        good = "it met every limit when it was made"
        checks.append(Check("verdict", not eraser.weak, f"weak: {'; '.join(eraser.weak)}" if eraser.weak else good))
    return checks


def compared_rows(eraser: Eraser, saes: dict[str, TopKSAE], passes: Any) -> list[str]:
    """Check that the rows of every edit are its SAE's, and return what could not be compared, a clause each.

    `saes` are those at hand by digest. Where there are some and the eraser was made from none of them, that fails.
    """
    edits = [edit for edit in eraser.edits if isinstance(edit, Rows)]
    at_hand = [edit for edit in edits if edit.sae_digest in saes]

    def same_rows() -> None:
        if saes and not at_hand:
            raise WrongModel("the SAE given is not the one this eraser names; give that one")
        for edit in at_hand:
            if altered := altered_rows(edit, saes[edit.sae_digest]):
                raise Tampered(
                    f"{', '.join(altered)} of {edit.site.key} are not those of the SAE that the eraser names; "
                    "do not use it"
                )

    if not edits:
        return []
    missing = [edit.site.key for edit in edits if edit not in at_hand]
    absent = [f"not compared, since the SAE of {', '.join(missing)} was not at hand (sae=, --sae)"] if missing else []
    same = f"the rows of {len(at_hand)} of {len(edits)} edits are their SAE's, bit for bit"
    if any(isinstance(edit, OrthogonalSAEEdit) for edit in at_hand):
        same += ", and projected directions what they give"
    passes("rows", same_rows, "; ".join([*([same] if at_hand else []), *absent]))
    rows = [f"that the rows of {', '.join(missing)} are an SAE's"] if missing else []
    moved = [(edit.site.key, words_instead(edit)) for edit in edits]
    spared = [edit for edit in edits if isinstance(edit, OrthogonalSAEEdit)]
    rows += [f"that the {len(edit.coupled)} coupled neurons of {edit.site.key} are those to spare" for edit in spared]
    said = [(key, ", ".join(f"“{word}”" for word in words)) for key, words in moved if words]
    return rows + [f"that {key} is moved to the states of {words}" for key, words in said]


def compared_weights(eraser: Eraser, solve: Callable[[], Solved | None], passes: Any) -> list[str]:
    """Check that weights are what their method gives again, and return what was taken from the file, a clause each."""
    try:
        solved = solve()
    except ExciseError:  # a model without such weights; the check of Sites says so
        solved = None
    if solved is None:
        return [*_uncompared(eraser)]
    edits = solved.edits

    def same_weights() -> None:
        if altered := altered_weights(eraser.edits, edits):
            raise Tampered(
                f"{', '.join(altered)} are not what {eraser.method} gives with the settings that the eraser states; "
                "do not use it"
            )

    passes("weights", same_weights, f"{eraser.method}, solved again, changes the {len(edits)} layers in the same way")
    return [f"the settings that its weights follow from ({solved.stated})"]


def _removal(attachment: Attachment, checks: list[Check]) -> list[str]:
    """Add the check of what is removed, where that can be measured. Return what could not be, a clause each."""
    try:
        found, unmeasured = removals(attachment)
    except ExciseError as error:
        checks.append(Check("removal", False, str(error)))
        return []
    if found:
        kept = [removal for removal in found if not removal.enough]
        checks.append(Check("removal", not kept, _kept(kept) if kept else _removed(found)))
    return unmeasured


def removals(attachment: Attachment) -> tuple[list[Removal], list[str]]:
    """What the attached eraser removes of each of its mentions, and what could not be measured, a clause each."""
    kind, words = words_of(attachment.eraser)
    found, unmeasured = list[Removal](), list[str]()
    parts = parts_of(attachment.eraser.created)  # a merged eraser's mentions begin with one of each part
    ways = (
        (can_measure_text, removed_from_text, max(MOST_MENTIONS, len(parts))),
        (can_measure_prediction, removed_from_prediction, MOST_PREDICTED),
    )
    for can_measure, measure, most in ways:
        if can_measure(attachment):
            chosen = measured_words(words, most)
            found += [measure(attachment, word, kind, words) for word in chosen]
            if len(chosen) < len(measured_words(words, len(words))):
                unmeasured.append(f"the mentions after “{chosen[-1]}”")
    concepts = [part.get("concept") for part in parts if isinstance(part, dict)]
    if others := [f"“{name}”" for name in concepts if isinstance(name, str) and not mentioned(name, words)]:
        unmeasured.append(f"what it removes of {', '.join(others)}, which it does not mention")
    if any(removal.floor.lead is None for removal in found):
        unmeasured.append("that it removes more of its concept than of other words")
    if not found:
        unmeasured.append("what it removes: neither text states nor predictions can be compared in this pipeline")
    return found, unmeasured


def words_of(eraser: Artefact) -> tuple[Kind, tuple[str, ...]]:
    """The kind of an eraser's concept, and the words it has to remove: its mentions, and a built-in concept's name."""
    name = eraser.concept
    kind = builtin(name, n=5).kind if name in names() else "object"
    own = tuple(mention for mention in eraser.mentions if mention.strip())
    return kind, (*((name,) if name in (*OBJECTS, *STYLES) or not own else ()), *own)


def _attached(eraser: Eraser, pipe: Pipeline, saes: dict[str, TopKSAE]) -> Attachment:
    """The eraser on the pipeline, whatever shift its file names and whether the pipeline is the one it was made for."""
    whole = next((saes[edit.sae_digest] for edit in eraser.edits if edit.needs_sae and edit.sae_digest in saes), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = whole if whole is not None else next(iter(saes.values()), None)
        return Attachment(eraser, pipe, strict=False, sae=whole, trial=True)


def _kept(kept: list[Removal]) -> str:
    return (
        f"it does not remove {', '.join(map(str, kept))}: the share of the concept's own difference that is removed "
        f"must be {_needed(kept[0].floor)}; do not use it"
    )


def _removed(found: list[Removal]) -> str:
    floors = dict.fromkeys(_needed(r.floor) for r in found)
    shares = ", ".join(map(str, found))
    return f"share of the concept's own difference that is removed: {shares}; needed: {', '.join(floors)}"


def _needed(floor: Floor) -> str:
    lead = "" if floor.lead is None else f", lead {floor.lead:g}"
    return f"at least {floor.share:g} (cosine {floor.cosine:g}{lead})"


def _uncompared(eraser: Eraser) -> Iterator[str]:
    """Edits whose tensors nothing can be compared with."""
    kinds: dict[str, int] = {}
    for edit in eraser.edits:
        if not isinstance(edit, Rows):
            kinds[edit.kind] = kinds.get(edit.kind, 0) + 1
    if kinds:
        listed = ", ".join(f"{count} of kind {kind}" for kind, count in kinds.items())
        yield f"the tensors of its edits ({listed}) in every prompt without the concept"
