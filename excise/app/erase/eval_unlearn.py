"""Erasers as a technique for the package eval-unlearn, registered by the entry point `eval_unlearn.techniques`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from excise.app.models.pipelines import Weights
from excise.app.models.resolve import load_pipeline
from excise.drawn import Drawn, without_checker
from excise.erasers import Eraser
from excise.errors import ExciseError


class ExciseTechnique:
    """An eraser attached to its model. The configuration in eval-unlearn's JSON or YAML gives these arguments.

    Args:
        eraser: Folder of the eraser.
        model_id: Folder or hub name of a pipeline; by default the bundled model.
        erase_concept: The concept that eval-unlearn's metrics test.
        strength: Strength of the eraser.
        device: Device to run on; by default CUDA if available.
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance scale; by default the pipeline's own.
        dtype: As in `excise.app.models.pipelines.Weights`.
        revision: As in `excise.app.models.pipelines.Weights`.
        variant: As in `excise.app.models.pipelines.Weights`.

    Raises:
        ExciseError: The eraser does not fit the model, does not fire, or erases another concept than `erase_concept`.
    """

    def __init__(
        self,
        eraser: str,
        model_id: str | None = None,
        erase_concept: str | None = None,
        strength: float = 1.0,
        device: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        variant: str | None = None,
    ) -> None:
        loaded = Eraser.load(Path(eraser))
        if erase_concept is not None and erase_concept.lower() != loaded.concept.lower():
            raise ExciseError(f"{eraser} erases {loaded.concept!r}, not {erase_concept!r}; name the right eraser")
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # The eraser is to be measured, not what a safety checker hides.
        self.pipe = without_checker(load_pipeline(model_id, where, Weights(dtype, revision, variant)))
        self.attachment = loaded.attach(self.pipe, strength)
        self.options: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if guidance_scale is not None:
            self.options["guidance_scale"] = guidance_scale

    def generate(self, prompts: Sequence[str], seed: int | None = None, **options: Any) -> list[Any]:
        """Generate one PIL picture for each prompt, the n-th with a CPU generator seeded with `seed` + n.

        Raises:
            ExciseError: A picture is broken; eval-unlearn would count it as erased.
        """
        images = []
        for n, prompt in enumerate(prompts):
            generator = None if seed is None else torch.Generator("cpu").manual_seed(seed + n)
            made = self.pipe(prompt, generator=generator, **{**self.options, "output_type": "np", **options})
            drawn = Drawn.of([np.asarray(made.images[0])], getattr(made, "nsfw_content_detected", None))
            images.append(Image.fromarray(drawn.sound([(seed or 0) + n])[0]))
        return images
