"""The guard: sampling refuses conditionings that no erased CLIP made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from excise.erasers.hooks.known_vectors import UNKNOWN, KnownVectors
from excise.errors import EraserDidNotFire, InvalidSetting

from .injection import KEY, Injection

_STATES = ("cross_attn", "pooled_output")
"""What a sampler's conditioning holds of a prompt."""


def guarded(model: Any, clip: Any) -> Any:
    """Return a copy of a MODEL that refuses to sample from conditionings that `clip` did not make.

    Raises InvalidSetting if the CLIP has no eraser.
    """
    injection = clip.patcher.get_attachment(KEY)
    if not isinstance(injection, Injection) or not injection.items:
        raise InvalidSetting("this CLIP has no eraser; wire it from Apply Eraser")
    made = model.clone()
    names = ", ".join(each.eraser.name for each in injection.items)

    def sampled(executor: Any, *args: Any, **kwargs: Any) -> Any:
        check(executor.class_obj, [injection.known], names)
        return executor(*args, **kwargs)

    made.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    made.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampled)
    return made


def check(guider: Any, known: Iterable[KnownVectors], names: str) -> None:
    """Raise EraserDidNotFire if a conditioning of the guider holds a state that no erased CLIP made.

    With ordinary guidance, a negative prompt only pushes away from what it says, so it may come from any CLIP.
    """
    ledgers = list(known)
    for branch, conds in guider.conds.items():
        if branch == "negative" and _pushes_away(guider):
            continue
        for cond in conds:
            if states := [cond[name] for name in _STATES if isinstance(cond.get(name), Tensor)]:
                foreign = sum(_foreign(state, ledgers) for state in states)
                if foreign:
                    raise EraserDidNotFire(
                        f"{foreign} text states of the {branch} conditioning were not made by a CLIP with eraser "
                        f"{names}, or were blended with others after encoding; encode every prompt with the CLIP "
                        "from Apply Eraser"
                    )


def _pushes_away(guider: Any) -> bool:
    """Whether the guider computes u + c (p - u) with c of at least 1, so that the negative branch u is subtracted."""
    options = getattr(guider, "model_options", {})
    usual = type(guider).__name__ == "CFGGuider" and "sampler_cfg_function" not in options
    return usual and getattr(guider, "cfg", 0.0) >= 1


def _foreign(state: Tensor, known: list[KnownVectors]) -> int:
    """Return the number of rows of `state` `[..., d]` that none of `known` knows. Rows of zeros hold no text."""
    rows = state.reshape(-1, state.shape[-1])
    foreign = rows.any(-1)
    for vectors in known:
        foreign &= vectors.marks(rows).to(foreign.device) == UNKNOWN
    return int(foreign.sum())


Check = Callable[[Any], None]


def guard_every_sampling(samplers: Any, check_guider: Check) -> None:
    """Have ComfyUI call `check_guider` before every sampling, whatever nodes a workflow has."""
    guider = samplers.CFGGuider
    inner = guider.outer_sample

    def outer_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_guider(self)
        with torch.no_grad():
            return inner(self, *args, **kwargs)

    guider.outer_sample = outer_sample
