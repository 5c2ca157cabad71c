"""Proof that an attached eraser bites: by how much its edits move what a canary prompt becomes, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from excise.erasers.guard.canary import shift, shifts, text_states, what_denoiser_predicts, what_denoiser_reads
from excise.erasers.hooks.context import proving, unedited

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

_OTHER = "a plain grey wall"
"""A prompt to tell text states by: what it shares with a canary prompt holds no text."""


def moved(attachment: Host, prompts: Sequence[str] = ()) -> dict[str, float]:
    """By part of what becomes of the prompts, the eraser's canaries unless others are given: the smallest relative
    change over all of them, at strength 1."""
    prompts = prompts or attachment.eraser.canary
    return {**moved_prediction(attachment, prompts), **moved_text(attachment, prompts)}


def moved_text(attachment: Host, prompts: Sequence[str]) -> dict[str, float]:
    """By part of what the denoiser reads: the smallest relative change that the edits of text encoders make of it."""
    pipe, eraser = attachment.pipe, attachment.eraser
    moved: dict[str, float] = {}
    for prompt in prompts if eraser.text_edits else ():
        with proving(attachment, "text") as vectors:
            edited = what_denoiser_reads(pipe, prompt)
        with unedited():
            plain, other = (what_denoiser_reads(pipe, text) for text in (prompt, _OTHER))
        for n in text_states(plain, other):
            for part, by in shifts(edited[n], plain[n], vectors if vectors.widths else None).items():
                moved[part] = min(by, moved.get(part, by))
    return moved


def moved_prediction(attachment: Host, prompts: Sequence[str]) -> dict[str, float]:
    """By how much the edits of a denoiser move its prediction, at the step where that is most."""
    pipe, eraser = attachment.pipe, attachment.eraser
    steps = [getattr(edit, "trial_steps", 1) for edit in eraser.edits if edit.site.part == "denoiser"]
    moved: dict[str, float] = {}
    for prompt in prompts if steps else ():
        with proving(attachment, "denoiser"), torch.no_grad():
            edited = what_denoiser_predicts(pipe, prompt, max(steps))
        with unedited(), torch.no_grad():
            plain = what_denoiser_predicts(pipe, prompt, max(steps))
        by = max(shift(*pair) for pair in zip(edited, plain, strict=True))
        moved["the prediction"] = min(by, moved.get("the prediction", by))
    return moved
