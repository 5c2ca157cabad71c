"""Our erasers as a technique of the package eval-unlearn, found there by its entry point `eval_unlearn.techniques`."""

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
    """An eraser attached to its model. The configuration in eval-unlearn's JSON or YAML is this class's arguments.

    `eraser` is the eraser's folder; `model_id` a pipeline's folder or hub name, the bundled model where there is none;
    `dtype`, `revision` and `variant` are those of `excise.app.models.pipelines.Weights`.
    Raises ExciseError for an eraser that does not fit the model or does not fire, or where `erase_concept`, which
    eval-unlearn's metrics ask for, is not what the eraser erases.
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
        # What the eraser does is measured, not what a filter hides.
        self.pipe = without_checker(load_pipeline(model_id, where, Weights(dtype, revision, variant)))
        self.attachment = loaded.attach(self.pipe, strength)
        self.options: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if guidance_scale is not None:
            self.options["guidance_scale"] = guidance_scale

    def generate(self, prompts: Sequence[str], seed: int | None = None, **options: Any) -> list[Any]:
        """One PIL picture a prompt; the n-th is drawn with `seed` + n, from a generator on the CPU.

        Raises ExciseError where a picture is broken: eval-unlearn would count it as erased.
        """
        images = []
        for n, prompt in enumerate(prompts):
            generator = None if seed is None else torch.Generator("cpu").manual_seed(seed + n)
            made = self.pipe(prompt, generator=generator, **{**self.options, "output_type": "np", **options})
            drawn = Drawn.of([np.asarray(made.images[0])], getattr(made, "nsfw_content_detected", None))
            images.append(Image.fromarray(drawn.sound([(seed or 0) + n])[0]))
        return images
