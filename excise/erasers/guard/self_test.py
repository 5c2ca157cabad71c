"""Proof that an attached eraser works: how far its edits move a canary prompt's states and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from excise.erasers.artefact.canary import shift
from excise.erasers.artefact.record import MOST_CANARIES
from excise.erasers.guard.canary import denoiser_inputs, denoiser_predictions, shifts, text_states
from excise.erasers.hooks.context import proving, unedited
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.sites.encoding import device_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

States = list[Tensor]
BATCH = 20
"""Canary prompts that are encoded at once, if there are more than `MOST_CANARIES`, as merged erasers have. A CPU is
slower with more, whose states leave its cache."""
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
    moved: dict[str, float] = {}
    if not attachment.eraser.text_edits:
        return moved
    for edited, plain, other, vectors in _states(attachment, prompts):
        for n in text_states(plain, other):
            for part, by in shifts(edited[n], plain[n], vectors if vectors.widths else None).items():
                moved[part] = min(by, moved.get(part, by))
    return moved


def _states(attachment: Host, prompts: Sequence[str]) -> Iterator[tuple[States, States, States, KnownVectors]]:
    """Yield each prompt's edited states, its plain ones, those of another prompt encoded in the same way, and the
    vectors that edited encoders made.

    Of more than `MOST_CANARIES` prompts, all but the first are encoded in batches and without the unconditional branch:
    which branch a pipeline takes for which is the same for every prompt. Edits of different `uncond` tell the branches
    apart in different ways, so their prompts are encoded one by one.
    """
    read = partial(denoiser_inputs, attachment.pipe, device=device_of(attachment.pipe))
    together = len(prompts) > MOST_CANARIES and len({edit.uncond for edit in attachment.eraser.text_edits}) == 1
    alone = 1 if together else len(prompts)
    yield from _one_by_one(attachment, read, prompts[:alone])
    for n in range(alone, len(prompts), BATCH):
        yield from _together(attachment, read, prompts[n : n + BATCH])


def _one_by_one(
    attachment: Host, read: Callable[..., States], prompts: Sequence[str]
) -> Iterator[tuple[States, States, States, KnownVectors]]:
    with unedited():
        other = read(_OTHER, True)
    for prompt in prompts:
        edited, plain, vectors = _encoded(attachment, partial(read, prompt, True))
        yield edited, plain, other, vectors


def _together(
    attachment: Host, read: Callable[..., States], prompts: Sequence[str]
) -> Iterator[tuple[States, States, States, KnownVectors]]:
    asked = [*prompts, _OTHER]
    hooks = [hook for hook in attachment.hooks if hook.edit.site.part == "text"]
    ran = [hook.runs for hook in hooks]
    edited, plain, vectors = _encoded(attachment, partial(read, asked, False))
    once = all(hook.runs == n + 2 for hook, n in zip(hooks, ran, strict=True))
    # A pipeline that encodes a prompt in chunks may take the second one for the unconditional prompt, with guidance.
    if not once or any(len(states) != len(asked) for states in plain):
        yield from _one_by_one(attachment, read, prompts)
        return
    for n in range(len(prompts)):
        now, before = ([states[n : n + 1] for states in made] for made in (edited, plain))
        yield now, before, [states[-1:] for states in plain], vectors


def _encoded(attachment: Host, read: Callable[[], States]) -> tuple[States, States, KnownVectors]:
    """Return the edited states, the plain ones, and the vectors that edited encoders made.

    Both runs read the same batch, so that what no edit moves keeps every bit.
    """
    with proving(attachment, "text") as vectors:
        edited = read()
    with unedited():
        return edited, read(), vectors


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
