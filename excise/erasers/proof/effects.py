"""How much attached erasers change what the denoiser reads of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline
from excise.sites.encoding import conditional, encode_prompt

BATCH = 64
Progress = Callable[[int], Any]


@torch.no_grad()
def text_changes(pipe: Pipeline, prompts: Sequence[str], progress: Progress = lambda done: None) -> list[float]:
    """Return, for each prompt, how much the attached erasers change what `encode_prompt` gives the denoiser.

    The change is |edited - plain| / |plain| (L2) of the tensor that changes most. It is exactly 0 if all values are
    equal.
    """
    found: list[float] = []
    size = _at_once(pipe, prompts)
    for start in range(0, len(prompts), size):
        some = list(prompts[start : start + size])
        edited = _states(pipe, some)
        with unedited():
            plain = _states(pipe, some)
        changes = torch.zeros(len(some), dtype=torch.float64)
        for new, old in zip(edited, plain, strict=True):
            after, before = new.cpu().double(), old.cpu().double()  # MPS has no float64
            moved, norm = (x.flatten(1).norm(dim=1) for x in (after - before, before))
            changes = torch.maximum(changes, moved / norm.clamp(min=1e-12))
        found += changes.tolist()
        progress(len(some))
    return found


def _at_once(pipe: Pipeline, prompts: Sequence[str]) -> int:
    """Return how many prompts to encode at once: 1 if the pipeline returns a list of states instead of rows."""
    some = list(prompts[:3])
    with unedited():
        rows = [t for t in conditional(pipe, encode_prompt(pipe, some)) if t.ndim > 1 and len(t) == len(some)]
    return BATCH if len(some) == 3 and rows else 1


def conditional_states(pipe: Pipeline, prompts: list[str]) -> list[Tensor]:
    """Return the floating-point tensors of the conditional branch, of all prompts or of parts of them."""
    return [t for t in conditional(pipe, encode_prompt(pipe, prompts)) if t.is_floating_point() and t.ndim > 1]


def _states(pipe: Pipeline, prompts: list[str]) -> list[Tensor]:
    """Return the tensors of the conditional branch, one row a prompt."""
    made = conditional_states(pipe, prompts)
    return [t[None] for t in made] if len(prompts) == 1 else [t for t in made if len(t) == len(prompts)]
