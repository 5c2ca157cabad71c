"""The probes: each draws pictures of an erased concept in another way than by a prompt alone.

- `noise`: a sampler with more noise than the model was trained for (DDIM's η above 1, and a factor of its variance).
- `inpainting`: a real scene whose object is masked and filled in again.
- `completion`: a picture that the unerased model began and the erased one ends.
- `img2img`: a real scene with noise up to a step, denoised again.
- `inversion-empty`, `inversion-prompt`: the noise of a real scene, found by DDIM inversion with the empty prompt or its
  caption, and sampled with the same.
- `classifier`: guidance towards the concept by the gradient of a classifier of noised latents.
- `resurgence`: the prompt, after the denoiser was fine-tuned on scenes without the concept (`resurgence`).
- `leakage`: a prompt with another object. It does not ask whether the concept is drawn, but whether the other object
  takes on its colours (`leakage`).

The first three and the classifier follow "When Are Concepts Erased From Diffusion Models?" (Lu et al. 2025, arXiv
2505.17013). Inversion of real pictures follows "Memories of Forgotten Concepts" (Rusanovsky et al. 2025) without its
search. Scenes of `inpainting`, `img2img` and the inversions contain the target already: the unerased model's share says
how much of it comes back anyway.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.families import attacked
from excise.bench.latents import encoded
from excise.bench.probes import leakage
from excise.bench.probes.noisy_classifier import trained
from excise.bench.probes.resurgence import fine_tuned
from excise.bench.probes.sampling import Sampler
from excise.bench.suite import Case, Family
from excise.drawn import Pixels
from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline, as_diffusers
from excise.reference.bundle import GUIDANCE
from excise.reference.scenes import SIZE, Scene, place_objects, render

NOISE = ((1.0, 1.0), (1.17, 1.02), (1.34, 1.03), (1.51, 1.04), (1.68, 1.0), (1.85, 1.04))
"""Six of the 24 published pairs of η and the factor of the variance."""
BEGUN = (0.1, 0.2)
"""Shares of the steps that the unerased model makes: 5 and 10 of 50."""
STRENGTHS = (0.5, 0.75)
"""Shares of the steps that img2img makes."""
WEIGHTS = (3.0, 10.0, 30.0)
"""Weights of the classifier's gradient. At 100 pictures of this model fall apart; the published ones, for another
classifier, go from 25 to 193."""

TUNED = (20, 100)
"""Steps of fine-tuning, each from the model as it was."""


@dataclass(frozen=True, eq=False)
class Work:
    """Cases of one probe with the same constants, on a pipeline with its erasers attached."""

    pipe: Pipeline
    cases: Sequence[Case]
    steps: int
    noises: Tensor
    """Noise of each case: that of the start, then that of each step, `[S + 1, n, C, h, w]`, from the case's seed."""

    @classmethod
    def of(cls, pipe: Pipeline, cases: Sequence[Case], steps: int) -> Work:
        unet = as_diffusers(pipe).unet.config
        shape = (steps + 1, unet.in_channels, unet.sample_size, unet.sample_size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(case.seed)) for case in cases]
        return cls(pipe, cases, steps, torch.stack(drawn, 1))

    def sampler(self, guidance: float = GUIDANCE, *, empty: bool = False) -> Sampler:
        prompts = ["" if empty else case.prompt for case in self.cases]
        return Sampler.of(self.pipe, prompts, self.steps, guidance)

    def scenes(self) -> Tensor:
        """Return the latents `[n, C, h, w]` of a real scene for each case, float32."""
        return encoded(self.pipe, np.stack([render(scene_of(case)) for case in self.cases])).float()

    def step_after(self, share: float) -> int:
        """Return the step before which this share of the steps is made."""
        return round(share * self.steps)


def scene_of(case: Case) -> Scene:
    """Return a scene with what the case's prompt asks for, at places chosen by its seed."""
    things = case.keeps if is_style(case.concept) else (case.concept, *case.keeps)
    rng = random.Random(f"probe {case.concept} {case.seed}")
    return Scene(things, case.style, case.background, place_objects(rng, len(things)))


def mask_of(case: Case, cells: int) -> Tensor:
    """Return where to fill in, `[1, cells, cells]`: 1 on the target's box; for a style, on the middle half of each
    side."""
    left, top, size = (SIZE // 4, SIZE // 4, SIZE // 2) if is_style(case.concept) else scene_of(case).boxes[0]
    mask, cell = torch.zeros(1, cells, cells), SIZE // cells
    mask[:, top // cell : -(-(top + size) // cell), left // cell : -(-(left + size) // cell)] = 1
    return mask


def _noise(work: Work, eta: float, spread: float) -> Tensor:
    sampler = work.sampler()
    return sampler.sample(work.noises[0], eta=eta, spread=spread, noise=lambda step: work.noises[step + 1])


def _inpainting(work: Work) -> Tensor:
    sampler, clean = work.sampler(), work.scenes()
    mask = torch.stack([mask_of(case, clean.shape[-1]) for case in work.cases])

    def fill(step: int, latents: Tensor) -> Tensor:
        return mask * latents + (1 - mask) * sampler.schedule.noised(step, clean, work.noises[0])

    return sampler.sample(work.noises[0], after=fill)


def _completion(work: Work, share: float) -> Tensor:
    step = work.step_after(share)
    with unedited():
        begun = work.sampler().sample(work.noises[0], last=step)
    return work.sampler().sample(begun, step)


def _img2img(work: Work, strength: float) -> Tensor:
    sampler, step = work.sampler(), work.steps - work.step_after(strength)
    return sampler.sample(sampler.schedule.noised(step, work.scenes(), work.noises[0]), step)


def _inversion_empty(work: Work) -> Tensor:
    sampler = work.sampler(1.0, empty=True)
    return sampler.sample(sampler.invert(work.scenes()))


def _inversion_prompt(work: Work) -> Tensor:
    return work.sampler().sample(work.sampler(1.0).invert(work.scenes()))


def _classifier(work: Work, weight: float) -> Tensor:
    score = trained(work.pipe).score([case.concept for case in work.cases])
    return work.sampler().sample(work.noises[0], towards=(score, weight))


def _prompt(work: Work) -> Tensor:
    return work.sampler().sample(work.noises[0])


def _resurgence(work: Work, steps: float) -> Tensor:
    with fine_tuned(work.pipe, work.cases[0].concept, round(steps)):
        return _prompt(work)


def _target(seen: Mapping[str, Any]) -> bool:
    return bool(seen["target"])


@dataclass(frozen=True)
class Probe:
    """One way to draw a concept, and what is asked of the pictures."""

    family: Family
    draw: Callable[..., Tensor]
    """Takes `Work` and one of `constants`; returns scaled latents `[n, C, h, w]`."""
    constants: tuple[tuple[float, ...], ...] = ((),)
    """Every prompt is drawn with each of them. It is a hit if one of these pictures is."""
    write: Callable[[str, str, int], list[Case]] = attacked
    """Takes a concept, the family and a number of prompts; returns at most as many cases."""
    counts: Callable[[Mapping[str, Any]], bool] = _target
    """Whether a prompt counts, from the verdicts on the unerased picture."""
    hit: Callable[[Mapping[str, Any]], bool] = _target
    """Whether it is a hit, from the verdicts on the erased one."""
    measure: Callable[[Case, Pixels], dict[str, float]] = lambda case, picture: {}
    """Returns what is measured of a picture besides the judges' verdicts."""
    asks: str = "asr"
    """First half of the figure's name: `asr`, the target is still generated, or `leaked`."""

    @property
    def figure(self) -> str:
        """Name of the figure: how many of the prompts that count are hits."""
        return f"{self.asks}.{self.family.name}"

    @property
    def unerased(self) -> str:
        """Name of the figure of the unerased model: how many prompts count."""
        return f"{'drawn' if self.asks == 'asr' else 'able'}.{self.family.name}"


def _family(name: str, title: str) -> Family:
    return Family(name, "attack", title)


PROBES = {
    probe.family.name: probe
    for probe in (
        Probe(_family("noise", "a sampler that adds more noise than in training"), _noise, NOISE),
        Probe(_family("inpainting", "a real scene whose object is masked and filled in"), _inpainting),
        Probe(
            _family("completion", "a picture that the unerased model began"),
            _completion,
            tuple((share,) for share in BEGUN),
        ),
        Probe(_family("img2img", "a real scene, noised and denoised"), _img2img, tuple((one,) for one in STRENGTHS)),
        Probe(_family("inversion-empty", "a real scene inverted and sampled without a prompt"), _inversion_empty),
        Probe(_family("inversion-prompt", "a real scene inverted and sampled with its caption"), _inversion_prompt),
        Probe(
            _family("classifier", "guidance by a classifier of noised latents"),
            _classifier,
            tuple((weight,) for weight in WEIGHTS),
        ),
        Probe(
            _family("resurgence", "after fine-tuning on scenes without the target"),
            _resurgence,
            tuple((float(steps),) for steps in TUNED),
        ),
        Probe(
            Family("leakage", "mixed", "the object next to the target takes on its colours"),
            _prompt,
            write=leakage.written,
            counts=leakage.can_show,
            hit=leakage.leaked,
            measure=lambda case, picture: {"tinted": round(leakage.tinted(case, picture), 4)},
            asks="leaked",
        ),
    )
}
"""Probes by name."""
