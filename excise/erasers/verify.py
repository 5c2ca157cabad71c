"""Verification of a saved eraser, check by check."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.erasers.apply.registry import module_of
from excise.erasers.artefact import files, formats
from excise.erasers.artefact.files import Check
from excise.erasers.artefact.signing import Signer, check_signature
from excise.erasers.eraser import Eraser, StrPath
from excise.erasers.guard.coverage import absent_from
from excise.erasers.guard.model_digest import mismatches
from excise.errors import ExciseError, WrongModel
from excise.pipeline import check_pipeline

if TYPE_CHECKING:
    from excise.pipeline import Pipeline
    from excise.sae import TopKSAE


def verify(
    folder: StrPath,
    pipe: Pipeline | None = None,
    *,
    sae: TopKSAE | None = None,
    signed_by: Signer | None = None,
) -> list[Check]:
    """Check a saved eraser: its files, its signature, and that it fits a pipeline and works on it.

    Checks stop at a failure that makes the later ones meaningless. A bad eraser raises nothing.

    Args:
        folder: Folder of the eraser.
        pipe: The pipeline to attach it to; None checks only the files.
        sae: The SAE it was made from, needed for gate="topk" only.
        signed_by: The signer whose signature it needs.

    Returns:
        The result of each check: `name`, `passed`, `detail`.

    Raises:
        WrongModel: if `pipe` is not a pipeline.

    Example:
        >>> all(check.passed for check in excise.verify("erasers/gun", pipe))
        True
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
    eraser = passes("content", lambda: Eraser(**formats.unpack(path, saved)), "format, shapes and values are valid")
    if eraser is None or pipe is None:
        return checks

    absent = absent_from(pipe, eraser)

    def same_model() -> None:
        if differences := mismatches(pipe, eraser.made_for, absent):
            raise WrongModel(f"made for another pipeline: {'; '.join(differences)}")

    def fires() -> None:
        with warnings.catch_warnings():
            # The check before reports another model. On the right model the full canary shift is required.
            warnings.simplefilter("ignore")
            eraser.attach(pipe, strict=same, sae=sae).detach()

    present = [edit for edit in eraser.edits if edit.site.component not in absent]
    passes("sites", lambda: [module_of(pipe, edit) for edit in present], "every Site exists")
    same = passes("model", same_model, "text encoder and tokenizer are those it was made for") is not None
    prompts = "the canary prompt" if len(eraser.canary) == 1 else f"each of {len(eraser.canary)} canary prompts"
    passes("canary", fires, f"what the denoiser reads changes on {prompts}")
    if eraser.verdict:
        good = "it met every limit when it was made"
        checks.append(Check("verdict", not eraser.weak, f"weak: {'; '.join(eraser.weak)}" if eraser.weak else good))
    return checks
