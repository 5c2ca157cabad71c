"""A denoiser's predictions for several prompts from the same latents."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.guard.canary import denoiser_predictions
from excise.erasers.hooks.wrapping import Passage, install, remove
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoiser_of

STEPS = 16
"""Number of denoising steps; the first half is predicted. At pure noise alone a concept hardly shows."""


def steps_for(edits: Iterable[Any]) -> int:
    """Return the number of denoising steps to test an eraser with: those it was measured at, if it refuses others."""
    denoiser = [edit for edit in edits if edit.site.part == "denoiser"]
    exact = [edit.trial_steps for edit in denoiser if isinstance(edit, BlockEdit) and edit.steps == "exact"]
    return max(exact) if exact else max([STEPS, *(getattr(edit, "trial_steps", 1) for edit in denoiser)])


class Replay:
    """Predictions of a pipeline's first denoiser. The first prompt's latents are those of all later ones."""

    def __init__(self, pipe: Pipeline, steps: int) -> None:
        self._pipe, self._steps = pipe, steps
        self._latents: list[Any] = []
        self._recorded = False

    def predict(self, prompt: str) -> list[Tensor]:
        """Return the denoiser's predictions for `prompt` at every step of the first half."""
        denoiser = denoiser_of(self._pipe)[1]
        hook = _Latents(self._latents, replay=self._recorded)
        install(denoiser, hook)
        try:
            predicted = denoiser_predictions(self._pipe, prompt, self._steps)
        finally:
            remove(denoiser, hook)
        self._recorded = True
        return predicted


class _Latents(Passage):
    """A hook that records a denoiser's latents, or replays the recorded ones."""

    def __init__(self, latents: list[Any], replay: bool) -> None:
        super().__init__()
        self._latents, self._replay, self._runs = latents, replay, 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = [*inspect.signature(type(module).forward).parameters][1]
        given = args[0] if args else kwargs[name]
        if not self._replay:
            self._latents.append(_copied(given))
            return args, kwargs
        latents = _copied(self._latents[self._runs])
        self._runs += 1
        return ((latents, *args[1:]), kwargs) if args else (args, {**kwargs, name: latents})


def _copied(latents: Any) -> Any:
    """Return a copy of a tensor, or of a list of tensors."""
    return latents.clone() if isinstance(latents, Tensor) else [part.clone() for part in latents]
