"""The guard: sampling refuses conditionings that no erased CLIP made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from excise.erasers.hooks.known_vectors import UNKNOWN, KnownVectors
from excise.errors import EraserDidNotFire, InvalidSetting

from .injection import KEY, Injection

_STATES = ("cross_attn", "pooled_output", "cross_attn_controlnet", "pooled_output_controlnet")
"""What a sampler's conditioning holds of a prompt, for the model and for a ControlNet. GLIGEN has more."""


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
            foreign = sum(_foreign(state, ledgers) for state in _states(cond))
            if foreign:
                raise EraserDidNotFire(
                    f"{foreign} text states of the {branch} conditioning were not made by a CLIP with eraser {names}, "
                    "or were blended with others after encoding, as by ConditioningAverage or a style model; encode "
                    "every prompt, also a ControlNet's or GLIGEN's, with the CLIP from Apply Eraser"
                )


def _states(cond: Any) -> Iterator[Tensor]:
    """Iterate over the text states in a conditioning, and in its GLIGEN's boxes."""
    gligen = cond.get("gligen")
    for value in (*map(cond.get, _STATES), None if gligen is None else gligen[2]):
        yield from _tensors(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


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
