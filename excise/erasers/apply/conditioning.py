"""Replacement of a prompt's text states before the U-Net reads them, for blocklists, classifiers and projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from excise.erasers.edits.blocklist import FilterEdit
from excise.erasers.edits.guidance import ClassifierEdit
from excise.erasers.edits.projection import ProjectionEdit
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.hooks.context import unedited
from excise.erasers.hooks.prompt_texts import EncodedPrompt
from excise.erasers.hooks.unet_call import Proceed, UNetCall, UNetCallHook
from excise.sentences import sentence_vectors
from excise.sites import encode_prompt
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import tensors_of
from excise.sites.pooled import eos_without_each


@dataclass(frozen=True, eq=False)
class Replacement:
    """Text states that replace a prompt's."""

    states: Tensor
    """`[T, d]`."""
    steps: int | None = None
    """Number of first steps to replace them in; None for all."""


class ConditionHook(UNetCallHook):
    """Gives the U-Net other states for some prompts. The unconditional branch is not changed."""

    def begin(self) -> None:
        super().begin()
        self._here.replacements = dict[str, Replacement | None]()

    def replacement(self, prompt: EncodedPrompt) -> Replacement | None:
        """Return the replacement of a prompt, or None if it is harmless."""
        raise NotImplementedError

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        step, states, rows = self.step_of(call), call.states, list[int]()
        for row, prompt in enumerate(self.prompts_of(call)):
            found = None if prompt is None else self._of(prompt)
            if found is None or (found.steps is not None and step >= found.steps):
                continue
            if not rows:
                states = states.clone()
            before = states[row].float()
            change = (found.states.to(before) - before) * self.attachment.strength
            states[row] = (before + change).to(states.dtype)
            rows.append(row)
            self.counters.add(1, change.norm())
        if not rows:
            return proceed(call)
        trust(self, states[rows])
        return self.call_with(call, states, rows, proceed)

    def call_with(self, call: UNetCall, states: Tensor, rows: list[int], proceed: Proceed) -> Any:
        """Call the U-Net with `states`, which differ from the call's own in these rows."""
        return proceed(call.with_states(states))

    def _of(self, prompt: EncodedPrompt) -> Replacement | None:
        if prompt.text not in self._here.replacements:
            with unedited():
                self._here.replacements[prompt.text] = self.replacement(prompt)
        found: Replacement | None = self._here.replacements[prompt.text]
        return found


def trust(hook: UNetCallHook, states: Tensor) -> None:
    """Declare states that a hook replaced known to the guard of a text-encoder eraser that is attached too."""
    guard = DenoiserGuard.of(denoiser_of(hook.attachment.pipe, hook.edit.site.component)[1])
    if guard is not None:
        guard.add([states])


class FilterHook(ConditionHook):
    """A blocklist in action."""

    edit: FilterEdit

    def replacement(self, prompt: EncodedPrompt) -> Replacement | None:
        near = sentence_vectors([prompt.text]) @ self.edit.sentences.float().T
        if float(near.max()) < self.edit.threshold:
            return None
        return Replacement(next(iter(tensors_of(encode_prompt(self.attachment.pipe, ""))))[0])


class ClassifierHook(ConditionHook):
    """A classifier's guidance in action."""

    edit: ClassifierEdit

    def replacement(self, prompt: EncodedPrompt) -> Replacement | None:
        states = self.edit.to(prompt.states.device).guided(prompt.states)
        return None if states is None else Replacement(states)


class ProjectionHook(ConditionHook):
    """A projection in action."""

    edit: ProjectionEdit

    def replacement(self, prompt: EncodedPrompt) -> Replacement | None:
        without = eos_without_each(self.attachment.pipe, prompt.text)
        if not len(without):
            return None
        states, hit = self.edit.projected(prompt.states.float(), without)
        return Replacement(states, self.edit.steps(prompt.states.float(), without)) if bool(hit.any()) else None

    def call_with(self, call: UNetCall, states: Tensor, rows: list[int], proceed: Proceed) -> Any:
        if self.edit.reattention == 1.0:
            return super().call_with(call, states, rows, proceed)
        unet: Any = denoiser_of(self.attachment.pipe, self.edit.site.component)[1]
        plain: dict[int, tuple[Tensor, ...]] = {}

        def keep(n: int, skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            plain[n] = skips
            return skips

        def attend(n: int, skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changed = tuple(skip.clone() for skip in skips)
            for skip, before in zip(changed, plain[n], strict=True):
                skip[rows] = reattended(skip[rows], before[rows], self.edit.reattention)
            return changed

        with skipping(unet, keep):
            proceed(call)
        with skipping(unet, attend):
            return proceed(call.with_states(states))


def reattended(safe: Tensor, plain: Tensor, share: float) -> Tensor:
    """Return the features `[B, C, h, w]` of the projected prompt with some low frequencies scaled by `share`: those
    stronger than in `plain`, the features of the prompt itself (SAFREE, eqs. 8-10). Low frequencies are the constant
    one and its neighbours, as in FreeU."""
    changed, before = (torch.fft.fft2(features.float()) for features in (safe, plain))
    # Frequencies 0 and -1 of both axes, since the transform is not shifted.
    low = torch.zeros(changed.shape[-2:], dtype=torch.bool, device=changed.device)
    low[0, 0] = low[0, -1] = low[-1, 0] = low[-1, -1] = True
    changed = torch.where(low & (changed.abs() > before.abs()), share * changed, changed)
    made: Tensor = torch.fft.ifft2(changed).real.to(safe.dtype)
    return made


@contextmanager
def skipping(unet: Any, change: Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]) -> Iterator[None]:
    """Replace each up block's skip connections by `change` of its number and skip connections."""

    def before(n: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "res_hidden_states_tuple": change(n, kwargs["res_hidden_states_tuple"])}

        return hook

    handles = [block.register_forward_pre_hook(before(n), with_kwargs=True) for n, block in enumerate(unet.up_blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
