"""Prompts encoded by another function than `pipe.encode_prompt`, under the erasers on the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from excise.erasers.attachment import Attachment
from excise.erasers.guard.encode_prompt import Guard
from excise.erasers.guard.near import attachments_near
from excise.erasers.hooks import context, setting
from excise.erasers.hooks.context import ERASED, SPARED
from excise.erasers.hooks.edit_hook import EditHook
from excise.errors import EraserDidNotFire
from excise.pipeline import Pipeline
from excise.sites.encoding import encode_prompt, tensors_of


def encode(pipe: Pipeline, how: Callable[..., Any] | str, *args: Any, negative: bool = False, **kwargs: Any) -> Any:
    """Encode a prompt with another function than `pipe.encode_prompt`, such as a prompt weighting (compel), under the
    loaded erasers, so that their guards accept the result.

    Args:
        pipe: The pipeline.
        how: A function that runs the pipeline's own text encoders, or a prompt for `pipe.encode_prompt`.
        *args: Arguments of the function.
        **kwargs: Arguments of the function by name.
        negative: Treat the text as a negative prompt: by default nothing is erased from it, and its states are accepted
            only in a batch with a prompt.

    Returns:
        The function's result.

    Raises:
        EraserDidNotFire: if the edit of an active eraser did not run meanwhile.
    """
    with context.negative(pipe) if negative else nullcontext():
        if isinstance(how, str):
            return encode_prompt(pipe, how, *args, **kwargs)
        if isinstance(how, Guard):  # it knows the branch of every state
            return how(*args, **kwargs)
        with setting.Fixed():
            return _encoded(pipe, lambda: how(*args, **kwargs))


def _encoded(pipe: Pipeline, how: Callable[[], Any]) -> Any:
    near = [a for a in attachments_near(pipe) if isinstance(a, Attachment) and a.acts_on(pipe)]
    active = [attachment for attachment in near if attachment.active]  # detached ones too, if this image keeps them
    before = [(a, [(hook, hook.runs) for hook in a.encoding.text_hooks]) for a in active]
    spared, erased = getattr(SPARED, "runs", 0), getattr(ERASED, "runs", 0)
    made = how()
    for attachment, runs in before:
        _refuse_unedited(attachment, runs, made)
    # States that one eraser spared count as spared for all, since they share one set of known vectors.
    uncond = {edit.uncond for attachment in active for edit in attachment.eraser.text_edits}
    spares = getattr(SPARED, "runs", 0) > spared or (context.is_negative() and bool(uncond - {"same"}))
    touched = getattr(ERASED, "runs", 0) > erased and not spares
    for attachment, _ in before:
        attachment.trust(tensors_of(made), spared=spares, erased=touched)
    return made


def _refuse_unedited(attachment: Attachment, runs: list[tuple[EditHook, int]], made: Any) -> None:
    """Raise EraserDidNotFire unless all text edits ran since `runs`, and nothing in `made` is of an absent encoder."""
    name, encoding = attachment.name, attachment.encoding
    if attachment.eraser.text_edits and not (runs and encoding.active):
        raise EraserDidNotFire(
            f"eraser {name!r} edits no text encoder of this pipeline or of the one that encodes for it; encode on a "
            "pipeline where it is attached and active"
        )
    for hook, n in runs:
        if hook.runs == n:
            raise EraserDidNotFire(
                f"eraser {name!r} saw no text-encoder run at {hook.edit.site.key}; encode with the pipeline's own text "
                "encoders, so that it can act"
            )
    if encoding.absent and not attachment.knows(tensors_of(made)):
        raise EraserDidNotFire(
            f"eraser {name!r} is attached without {', '.join(encoding.absent)}, so these states may come from encoders "
            "that it does not edit; encode the prompt without weights on words"
        )
