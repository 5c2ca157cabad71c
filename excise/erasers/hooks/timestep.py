"""TimestepHook: passes the denoiser's timestep to the edits of its blocks, and checks that each of them ran."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers.edits.base import StepInfo
from excise.erasers.hooks.context import is_muted
from excise.erasers.hooks.edit_hook import EditHook, Shared, did_not_run, not_finite
from excise.erasers.hooks.wrapping import Passage, Watch
from excise.errors import ExciseError
from excise.sites.denoiser import timestep_of


class TimestepHook(Shared, Watch):
    """A hook on a denoiser, shared by all edits within it."""

    def __init__(self) -> None:
        super().__init__()
        self.after = AfterDenoiser(self)

    @property
    def now(self) -> StepInfo:
        """The step of the denoiser's call in this thread. Raises ExciseError outside of one."""
        step: StepInfo | Tensor | None = getattr(self._here, "step", None)
        if step is None:
            raise ExciseError(
                "a block of the denoiser ran by itself; its edit needs the timestep, so call the denoiser"
            )
        if isinstance(step, Tensor):  # read once a call, and only if an edit needs it
            timesteps = tuple(step.tolist())
            same = len(set(timesteps)) == 1
            step = self._here.step = StepInfo(timesteps[:1] if same else timesteps, same and self._here.drawing)
        return step

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        if not torch.compiler.is_compiling():
            self.passed(timestep_of(module, args, kwargs)[1])

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        super().pre_forward(module)
        at, given = timestep_of(module, args, kwargs)
        timestep = self.through(given)
        if isinstance(at, int):
            return (*args[:at], timestep, *args[at + 1 :]), kwargs
        return args, {**kwargs, at: timestep}

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return self.after.through_prediction(output)

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.check()

    def passed(self, state: Tensor) -> Tensor:
        # If the parts of an image have their own timesteps (the given frame of a video has 0), the highest counts.
        self._here.step = state.detach().reshape(len(state) if state.ndim else 1, -1).amax(1)
        # A call with gradients does not belong to a generation, since pipelines disable them.
        self._here.drawing = not torch.is_grad_enabled()
        self._here.before = {id(hook): hook.runs for hook in self.hooks}
        self._here.finite = []
        return state

    def ask_later(self, hook: EditHook, finite: Tensor) -> None:
        """Raise ExciseError at the end of the denoiser's call if `finite` is False. The device answers only once for
        all layers."""
        self._here.finite.append((hook, finite))

    def check(self) -> None:
        """Raise EraserDidNotFire if an edited module has not run in this call of the denoiser, or ExciseError if its
        states were not finite."""
        self._here.step = None
        asked: list[tuple[EditHook, Tensor]] = getattr(self._here, "finite", [])
        self._here.finite = []
        if asked and not bool(torch.stack([finite.to(asked[0][1].device) for _, finite in asked]).all()):
            raise not_finite(next(hook for hook, finite in asked if not bool(finite)))
        for hook in self.hooks:
            attachment = hook.attachment
            ran = hook.runs > self._here.before.get(id(hook), hook.runs)
            if attachment.active and not is_muted(attachment, "denoiser") and not ran:
                raise did_not_run(hook)


class AfterDenoiser(Passage):
    """The part of `TimestepHook` that runs after the denoiser."""

    def __init__(self, timesteps: TimestepHook) -> None:
        super().__init__()
        self.timesteps = timesteps

    def passed(self, state: Tensor) -> Tensor:
        self.timesteps.check()
        return state
