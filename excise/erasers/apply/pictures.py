"""Guidance by what a detector sees in the picture while it is generated (STG)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from excise.erasers.apply.conditioning import trust
from excise.erasers.apply.guidance import halves
from excise.erasers.edits.pictures import PictureEdit, clean, is_direction
from excise.erasers.hooks.unet_call import Proceed, UNetCall, UNetCallHook, predicted, with_prediction
from excise.errors import WrongModel
from excise.pipeline import Pipeline, as_diffusers

SCALES = (1.0, 2.0**12, 2.0**24, 2.0**-12)
"""Factors of the logit. In half precision, gradients of one can be too small or too large for any number."""


class PictureHook(UNetCallHook):
    """A detector's guidance in action. It keeps how far each picture's states were moved."""

    calls_alone: ClassVar[bool] = True
    edit: PictureEdit
    on_device: PictureEdit

    def begin(self) -> None:
        super().begin()
        self._here.moved, self._here.checked = None, False

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        self.step_of(call)
        if self.attachment.strength == 0:
            return proceed(call)
        without, prompts = halves(self, call)
        made = proceed(now := self._moved(call, prompts))
        looked = [n for n, time in enumerate(times_of(call)[prompts].tolist()) if self.edit.looks(time)]
        if not looked:
            return made
        if not self._here.checked:  # once an image, since it walks through all modules
            refuse_offloading(self.attachment.pipe)
            self._here.checked = True
        with torch.inference_mode(False):  # a copy that was made in inference mode has no gradients
            self.move(call.states.device)
        own = predicted(made)
        with torch.no_grad():
            rows, others = [prompts[n] for n in looked], [without[n] for n in looked]
            shown = self.on_device.shows(self._picture(now.only(rows), own[others], own[rows]))
        if not (found := [looked[n] for n in shown]):
            return made
        rows, others = [prompts[n] for n in found], [without[n] for n in found]
        step = self.on_device.step(now.states[rows], self._slope(now.only(rows), own[others].detach(), proceed))
        here = self._here
        if here.moved is None or len(here.moved) != len(prompts):
            here.moved = torch.zeros(len(prompts), *step.shape[1:], device=step.device)
        here.moved[found] += self.attachment.strength * step
        self.counters.add(len(rows), step.norm(dim=(1, 2)))
        guided = own.clone()
        guided[rows] = predicted(proceed(self._moved(call, prompts).only(rows)))
        return with_prediction(made, guided)

    def _moved(self, call: UNetCall, prompts: list[int]) -> UNetCall:
        """Return the call with the states as they were moved so far."""
        moved: Tensor | None = self._here.moved
        if moved is None or len(moved) != len(prompts):
            return call
        states = call.states.clone()
        states[prompts] = (states[prompts].float() + moved).to(states.dtype)
        trust(self, states[prompts])
        return call.with_states(states)

    def _slope(self, call: UNetCall, without: Tensor, proceed: Proceed) -> Tensor:
        """Return ∇_c l of the call's states c, of their shape, float32, each row up to a factor."""
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, since tensors that were made in inference mode have no gradients.
            given = {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.given.items()}
            call, without = UNetCall(given), without.clone()
            states = call.states.detach().clone().requires_grad_()
            made = predicted(proceed(call.with_states(states)))
            total = self.on_device.logits(self._picture(call, without, made)).sum()
            slope = torch.zeros_like(states, dtype=torch.float32)
            for scale in SCALES:
                (found,) = torch.autograd.grad(scale * total, states, retain_graph=True)
                slope = torch.where(is_direction(slope), slope, found.float())
                if bool(is_direction(slope).all()):
                    break
        return slope

    def _picture(self, call: UNetCall, without: Tensor, own: Tensor) -> Tensor:
        """Return the pictures `[B, 3, H, W]` that guidance predicts of the call's images."""
        guided = without + self.edit.guidance * (own - without)
        return decoded(self.attachment.pipe, call.given["sample"], guided, times_of(call))


def refuse_offloading(pipe: Pipeline) -> None:
    """Raise WrongModel if accelerate moves parts of the pipeline: the U-Net would be gone when gradients need it."""
    parts = (getattr(as_diffusers(pipe), name, None) for name in ("unet", "vae"))
    if any(hasattr(module, "_hf_hook") for part in parts if isinstance(part, nn.Module) for module in part.modules()):
        raise WrongModel("an eraser of stg needs the U-Net and the VAE on one device; do not offload them")


def times_of(call: UNetCall) -> Tensor:
    """Return the timestep of each image of a call, `[B]` on the CPU."""
    return torch.as_tensor(call.given["timestep"]).detach().flatten().float().cpu().expand(len(call))


def noise_of(pipe: Pipeline) -> tuple[Tensor, str]:
    """Return ᾱ of every timestep, and what the U-Net predicts.

    Raises WrongModel if the pipeline's scheduler does not say, or if it has no VAE.
    """
    scheduler: Any = getattr(as_diffusers(pipe), "scheduler", None)
    shares = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(shares, Tensor) or getattr(as_diffusers(pipe), "vae", None) is None:
        raise WrongModel(
            f"a picture cannot be looked at while {type(pipe).__name__} generates it: it needs a VAE, and a scheduler "
            "that says how much noise a timestep has, such as DDIM's"
        )
    return shares, str(scheduler.config.get("prediction_type", "epsilon"))


def decoded(pipe: Pipeline, noised: Tensor, made: Tensor, times: Tensor) -> Tensor:
    """Return the pictures `[B, 3, H, W]`, in -1..1, that predictions stand for, by the pipeline's VAE.

    `noised` `[B, C or more, h, w]` and `made` `[B, C, h, w]` are what the U-Net read and predicted at the timesteps
    `times` `[B]`; an inpainting U-Net reads a mask too. Raises WrongModel as `noise_of` does.
    """
    vae: Any = as_diffusers(pipe).vae
    shares, kind = noise_of(pipe)
    at = times.round().long().clamp(0, len(shares) - 1)
    share = shares.to(at.device)[at].to(noised.device, torch.float32)[:, None, None, None]
    latents = clean(noised[:, : made.shape[1]].float(), made.float(), share, kind)
    given = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    drawn: Tensor = vae.decode(given.to(next(vae.parameters()).dtype), return_dict=False)[0]
    return drawn
