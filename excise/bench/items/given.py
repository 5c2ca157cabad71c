"""What a batch's denoiser is given: whether an attached eraser changes anything of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers import Eraser
from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline
from excise.sae.data import as_bytes
from excise.sites.families import family_of
from excise.sites.site import DENOISERS


def acts_on_text_alone(eraser: Eraser) -> bool:
    """Return whether every edit of an eraser declares that it acts on a text encoder alone."""
    return all(edit.text_only and edit.site.part == "text" for edit in eraser.edits)


def is_given_at_once(pipe: Pipeline) -> bool:
    """Return whether one call of the denoiser shows all that it is given in a step, both branches of guidance too."""
    family = family_of(pipe)
    return family is not None and family.one_call


def is_untouched(pipe: Pipeline, draws: Sequence[Callable[[], object]]) -> bool:
    """Return whether the attached eraser leaves every bit that the denoiser is given in the first step of each draw.

    `draws` generate pictures, in one call of the pipeline each. They are ended before the denoiser runs.
    """
    for draw in draws:
        edited = given(pipe, draw)
        with unedited():
            plain = given(pipe, draw)
        if edited is None or edited != plain:
            return False
    return True


@torch.no_grad()
def given(pipe: Pipeline, draw: Callable[[], object]) -> str | None:
    """Return a digest of all that the denoiser is given in its first step in `draw`, which ends there.

    That is the noise, the time step, the prompts' and the unconditional states, pooled states, masks and sizes of the
    whole batch, in families that run both branches in one call (`is_given_at_once`). The number of steps and the
    guidance may not be part of it; they are settings of a run.

    Return None if the denoiser does not run, or is given an object whose bits cannot be read.
    """
    found: list[str | None] = []

    def end(module: nn.Module, args: Any, kwargs: Any) -> None:
        digest = hashlib.sha256()
        found.append(digest.hexdigest() if _add(digest, [args, kwargs]) else None)
        raise _Ended

    named = (getattr(pipe, name, None) for name in DENOISERS)
    hooks = [
        module.register_forward_pre_hook(end, with_kwargs=True) for module in named if isinstance(module, nn.Module)
    ]
    try:
        draw()
    except _Ended:
        return found[0]
    finally:
        for hook in hooks:
            hook.remove()
    return None


class _Ended(BaseException):
    """Ends a draw before the denoiser runs. No code that handles errors may take it for one."""


def _add(digest: Any, value: Any) -> bool:
    """Add a value's kind and bits to a digest. Return whether they can be read."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + as_bytes(value))
        return True
    if isinstance(value, Mapping):
        return all(_add(digest, [str(key), value[key]]) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        digest.update(f"{len(value)} parts".encode())
        return all(_add(digest, part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return _add(digest, [getattr(value, field.name) for field in fields(value)])
    digest.update(repr(value).encode())
    return value is None or isinstance(value, bool | int | float | str)
