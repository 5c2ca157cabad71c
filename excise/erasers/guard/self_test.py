"""Proof that an attached eraser works: how far its edits move a canary prompt's states and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from excise.erasers.artefact.canary import shift
from excise.erasers.guard.canary import denoiser_inputs, denoiser_predictions, shifts, text_states
from excise.erasers.hooks.context import proving, unedited

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

_OTHER = "a plain grey wall"
"""A prompt to find text states with: tensors equal to a canary prompt's hold no text."""


def moved(attachment: Host, prompts: Sequence[str] = ()) -> dict[str, float]:
    """Return, for each part of states and prediction, the smallest relative change over the prompts, at strength 1.

    The prompts default to the eraser's canaries.
    """
    prompts = prompts or attachment.eraser.canary
    return {**moved_prediction(attachment, prompts), **moved_text(attachment, prompts)}


def moved_text(attachment: Host, prompts: Sequence[str]) -> dict[str, float]:
    """Return, for each part of what the denoiser reads, the smallest relative change by the text edits."""
    pipe, eraser = attachment.pipe, attachment.eraser
    moved: dict[str, float] = {}
    if not eraser.text_edits:
        return moved
    with unedited():
        other = denoiser_inputs(pipe, _OTHER)
    for prompt in prompts:
        with proving(attachment, "text") as vectors:
            edited = denoiser_inputs(pipe, prompt)
        with unedited():
            plain = denoiser_inputs(pipe, prompt)
        for n in text_states(plain, other):
            for part, by in shifts(edited[n], plain[n], vectors if vectors.widths else None).items():
                moved[part] = min(by, moved.get(part, by))
    return moved


def moved_prediction(attachment: Host, prompts: Sequence[str]) -> dict[str, float]:
    """Return how far the edits of a denoiser move its prediction, at the step where they move it most."""
    pipe, eraser = attachment.pipe, attachment.eraser
    steps = [getattr(edit, "trial_steps", 1) for edit in eraser.edits if edit.site.part == "denoiser"]
    moved: dict[str, float] = {}
    for prompt in prompts if steps else ():
        with proving(attachment, "denoiser"), torch.no_grad():
            edited = denoiser_predictions(pipe, prompt, max(steps))
        with unedited(), torch.no_grad():
            plain = denoiser_predictions(pipe, prompt, max(steps))
        by = max(shift(*pair) for pair in zip(edited, plain, strict=True))
        moved["the prediction"] = min(by, moved.get("the prediction", by))
    return moved
