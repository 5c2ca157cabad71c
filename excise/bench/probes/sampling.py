"""DDIM by hand, so that a probe can begin, steer and end a picture as the pipeline's own call cannot.

Song et al. 2021 (Denoising Diffusion Implicit Models), equations 12 and 16, with two constants that published probes
turn: η above 1, and a factor of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

Score = Callable[[Tensor, Tensor], Tensor]
"""Log-probability `[n]` of what guidance goes towards, of noised latents `[n, C, h, w]` and their ᾱ `[]`."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The timesteps of a picture, the noisiest first, and the share ᾱ of the signal's variance at each."""

    timesteps: Tensor
    """`[S]`."""
    shares: Tensor
    """ᾱ before each step and after the last, `[S + 1]`, float32."""
    velocity: bool
    """Whether the denoiser predicts v = √ᾱ ε - √(1 - ᾱ) x₀ instead of the noise ε."""

    @classmethod
    def of(cls, pipe: Pipeline, steps: int) -> Schedule:
        """Return the schedule of a pipeline with DDIM's sampler. Raises ExciseError for another sampler."""
        scheduler = deepcopy(as_diffusers(pipe).scheduler)
        kind = scheduler.config.get("prediction_type")
        if not hasattr(scheduler, "final_alpha_cumprod") or kind not in ("epsilon", "v_prediction"):
            raise ExciseError(f"probes sample by DDIM; {type(scheduler).__name__} predicting {kind} is not supported")
        scheduler.set_timesteps(steps)
        shares = [scheduler.alphas_cumprod[t] for t in scheduler.timesteps]
        return cls(
            scheduler.timesteps, torch.stack([*shares, scheduler.final_alpha_cumprod]).float(), kind != "epsilon"
        )

    def parts(self, step: int, latents: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean latents x₀ and the noise ε `[n, C, h, w]` that a prediction at a step implies."""
        signal, noise = self.shares[step].sqrt(), (1 - self.shares[step]).sqrt()
        if self.velocity:
            return signal * latents - noise * predicted, signal * predicted + noise * latents
        return self.clean(step, latents, predicted), predicted

    def clean(self, step: int, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the clean latents that latents with this noise imply; where there is no signal at all, zeros."""
        share = self.shares[step]
        made = (latents - (1 - share).sqrt() * noise) / share.sqrt()
        return made if share > 1e-4 else torch.zeros_like(latents)

    def noised(self, step: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Return clean latents with the noise that they have before a step."""
        return self.shares[step].sqrt() * clean + (1 - self.shares[step]).sqrt() * noise


@dataclass(frozen=True, eq=False)
class Sampler:
    """A pipeline under its erasers, n prompts, and the schedule. Guidance is classifier-free."""

    pipe: Pipeline
    states: Tensor
    """Text states of the empty prompt for each picture, then those of the prompts, `[2 n, T, d]`."""
    schedule: Schedule
    guidance: float

    @classmethod
    def of(cls, pipe: Pipeline, prompts: Sequence[str], steps: int, guidance: float) -> Sampler:
        """Encode the prompts."""
        with torch.no_grad():
            given, without = as_diffusers(pipe).encode_prompt(list(prompts), as_diffusers(pipe).device, 1, True)[:2]
        return cls(pipe, torch.cat([without, given]), Schedule.of(pipe, steps), guidance)

    @torch.no_grad()
    def predict(self, step: int, latents: Tensor) -> Tensor:
        """Return the denoiser's guided prediction `[n, C, h, w]` at a step, float32."""
        unet = as_diffusers(self.pipe).unet
        both = torch.cat([latents, latents]).to(unet.dtype)
        without, given = unet(both, self.schedule.timesteps[step], self.states).sample.float().chunk(2)
        made: Tensor = without + self.guidance * (given - without)
        return made

    def sample(
        self,
        latents: Tensor,
        first: int = 0,
        last: int | None = None,
        *,
        eta: float = 0.0,
        spread: float = 1.0,
        noise: Callable[[int], Tensor] | None = None,
        towards: tuple[Score, float] | None = None,
        after: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Denoise latents `[n, C, h, w]`, float32.

        Args:
            latents: They have the noise of step `first`.
            first: First step.
            last: Step before which to stop; None for all of them.
            eta: η. Where it asks for more noise than a step may have, the direction to x_t is left out.
            spread: Factor of the variance of the noise that η adds.
            noise: Returns the noise of a step `[n, C, h, w]`; needed with `eta`.
            towards: A score and its weight w: ε becomes ε - w √(1 - ᾱ) ∇ score(x_t) (Dhariwal and Nichol 2021).
            after: Called with the number of the next step and the latents; returns the latents to continue with.

        Returns:
            The latents, with the noise of step `last`.
        """
        shares = self.schedule.shares
        for step in range(first, len(self.schedule.timesteps) if last is None else last):
            clean, own = self.schedule.parts(step, latents, self.predict(step, latents))
            if towards is not None:
                own = own - towards[1] * (1 - shares[step]).sqrt() * self._slope(step, latents, towards[0])
                clean = self.schedule.clean(step, latents, own)
            before, now = shares[step], shares[step + 1]
            sigma = eta * ((1 - now) / (1 - before) * (1 - before / now)).sqrt()
            latents = now.sqrt() * clean + (1 - now - sigma**2).clamp(min=0).sqrt() * own
            if noise is not None:
                latents = latents + sigma * spread**0.5 * noise(step)
            if after is not None:
                latents = after(step + 1, latents)
        return latents

    def _slope(self, step: int, latents: Tensor, score: Score) -> Tensor:
        """Return the gradient `[n, C, h, w]` of a score at the latents of a step."""
        with torch.enable_grad():
            at = latents.detach().requires_grad_()
            (slope,) = torch.autograd.grad(score(at, self.schedule.shares[step]).sum(), at)
        return slope

    def invert(self, clean: Tensor) -> Tensor:
        """Return the noise `[n, C, h, w]` from which `sample` generates about these clean latents (DDIM inversion)."""
        latents, shares = clean, self.schedule.shares
        for step in reversed(range(len(self.schedule.timesteps))):
            predicted = self.predict(step, latents)
            start, own = self._at_less_noise(step, latents, predicted)
            latents = shares[step].sqrt() * start + (1 - shares[step]).sqrt() * own
        return latents

    def _at_less_noise(self, step: int, latents: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Return x₀ and ε of latents with the noise after a step, from the prediction at the step itself."""
        own = self.schedule.parts(step, latents, predicted)[1]
        now = self.schedule.shares[step + 1]
        return (latents - (1 - now).sqrt() * own) / now.sqrt(), own
