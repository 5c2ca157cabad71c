"""Telling a U-Net other text states than a prompt's own: what blocklists and projections do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from excise.erasers.guard.denoiser import Witness
from excise.erasers.guard.encode_prompt import unedited
from excise.erasers.hooks.unet_call import Proceed, Run, RunHook, Said
from excise.sites.blocks import denoiser_of


@dataclass(frozen=True, eq=False)
class Instead:
    """What a prompt's states are replaced by."""

    states: Tensor
    """`[T, d]`."""
    steps: int | None = None
    """For so many first steps; all of them where it is None."""


class ConditionHook(RunHook):
    """Tells the U-Net other states for some prompts; the unconditional half of guidance is left alone."""

    def begin(self) -> None:
        super().begin()
        self._here.instead = dict[str, Instead | None]()

    def instead(self, said: Said) -> Instead | None:
        """What a prompt is replaced by; None where it is harmless."""
        raise NotImplementedError

    def around(self, run: Run, proceed: Proceed) -> Any:
        step, states, rows = self.step_of(run), run.states, list[int]()
        for row, prompt in enumerate(self.prompts_of(run)):
            found = None if prompt is None else self._of(prompt)
            if found is None or (found.steps is not None and step >= found.steps):
                continue
            if not rows:
                states = states.clone()
            before = states[row].float()
            change = (found.states.to(before) - before) * self.attachment.strength
            states[row] = (before + change).to(states.dtype)
            rows.append(row)
            self.rows += 1
            self.norm += float(change.norm())
        if not rows:
            return proceed(run)
        self._trust(states)
        return self.drawn(run, states, rows, proceed)

    def drawn(self, run: Run, states: Tensor, rows: list[int], proceed: Proceed) -> Any:
        """The run, told `states` that differ from its own in these pictures."""
        return proceed(run.told(states))

    def _of(self, prompt: Said) -> Instead | None:
        if prompt.text not in self._here.instead:
            with unedited():
                self._here.instead[prompt.text] = self.instead(prompt)
        found: Instead | None = self._here.instead[prompt.text]
        return found

    def _trust(self, states: Tensor) -> None:
        """An eraser of the text encoder that is attached too would not know these."""
        witness = Witness.of(denoiser_of(self.attachment.pipe, self.edit.site.component)[1])
        if witness is not None:
            witness.add([states], witness.epoch)
