"""Guidance away from a concept (SLD): a third U-Net call in every step, conditioned on what must not be generated."""

from __future__ import annotations

from typing import Any

import torch

from excise.erasers.edits.guidance import GuidanceEdit, away
from excise.erasers.hooks.context import unedited
from excise.erasers.hooks.unet_call import Proceed, UNetCall, UNetCallHook, predicted, with_prediction
from excise.errors import ExciseError


class GuidanceHook(UNetCallHook):
    """Safe guidance in action. It keeps the momentum ν during a generation."""

    edit: GuidanceEdit
    on_device: GuidanceEdit

    def begin(self) -> None:
        super().begin()
        self._here.nu = None

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        made = proceed(call)
        without, prompts = halves(self, call)
        self.move(call.states.device)
        edit, here = self.on_device, self._here
        with unedited():
            unsafe = predicted(proceed(call.only(prompts).with_states(edit.states.expand(len(prompts), -1, -1))))
        own = predicted(made)
        gamma = away(own[without], own[prompts], unsafe, edit.scale, edit.threshold)
        if here.nu is None or here.nu.shape != gamma.shape:
            here.nu = torch.zeros_like(gamma)
        gamma = gamma + edit.momentum * here.nu
        here.nu = edit.decay * here.nu + (1 - edit.decay) * gamma
        if self.step_of(call) < edit.warmup:
            return made
        self.counters.add(len(prompts), gamma.detach().float().flatten(1).norm(dim=1))
        guided = own.clone()
        guided[prompts] = own[prompts] - self.attachment.strength * gamma
        return with_prediction(made, guided)


def halves(hook: UNetCallHook, call: UNetCall) -> tuple[list[int], list[int]]:
    """Return the row numbers of the unconditional and of the conditional half of the batch.

    Raises ExciseError if the batch does not consist of both.
    """
    found, half = hook.prompts_with(call.states), len(call) // 2
    hook.known_prompts(found)
    # The latest text of a row counts: the same words can have been a prompt and a negative prompt.
    if len(call) % 2 or any(candidates[0].prompts for candidates in found[:half] if candidates):
        raise ExciseError(
            f"eraser {hook.attachment.eraser.name!r} changes classifier-free guidance, which is off; generate with "
            "guidance_scale above 1"
        )
    return list(range(half)), list(range(half, len(call)))
