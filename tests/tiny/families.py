"""Parts of each family, and the smallest call of its pipeline."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny import clip_and_t5, language
from tests.tiny.copies import Copies


@dataclass(frozen=True)
class Family:
    pipeline: str
    """Its class in diffusers."""
    encoders: tuple[str, ...]
    """Its text encoders' classes in transformers."""
    parts: Callable[[], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    """Options that `call` passes in addition to prompt, generator, steps and output type."""


_SMALL = {"height": 16, "width": 16}
_SMALLER = {"height": 8, "width": 8}
_LARGER = {"height": 32, "width": 32}
_QWEN_VL = "Qwen2_5_VLForConditionalGeneration"
_BY_NAME = {
    "sd1": Family(
        "StableDiffusionPipeline", ("CLIPTextModel",), lambda: clip_and_t5.stable_diffusion(64, "epsilon"), _SMALL
    ),
    "sd2": Family(
        "StableDiffusionPipeline", ("CLIPTextModel",), lambda: clip_and_t5.stable_diffusion(48, "v_prediction"), _SMALL
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline", ("CLIPTextModel", "CLIPTextModelWithProjection"), clip_and_t5.sdxl, _SMALL
    ),
    "sd3": Family(
        "StableDiffusion3Pipeline", ("CLIPTextModelWithProjection", "T5EncoderModel"), clip_and_t5.sd3, _SMALL
    ),
    "flux": Family("FluxPipeline", ("CLIPTextModel", "T5EncoderModel"), clip_and_t5.flux, _SMALLER),
    "flux2": Family("Flux2Pipeline", ("Mistral3ForConditionalGeneration",), language.flux2, _SMALLER),
    "flux2-klein": Family("Flux2KleinPipeline", ("Qwen3ForCausalLM",), language.flux2_klein, _SMALLER),
    "sana": Family("SanaPipeline", ("Gemma2Model",), language.sana, {**_LARGER, "use_resolution_binning": False}),
    "lumina2": Family("Lumina2Pipeline", ("Gemma2Model",), language.lumina2, _LARGER),
    "qwen-image": Family("QwenImagePipeline", (_QWEN_VL,), language.qwen_image, {**_SMALL, "negative_prompt": " "}),
    "z-image": Family("ZImagePipeline", ("Qwen3Model",), language.z_image, _SMALL),
    "pixart": Family(
        "PixArtSigmaPipeline",
        ("T5EncoderModel",),
        clip_and_t5.pixart,
        {**_SMALL, "use_resolution_binning": False, "clean_caption": False},
    ),
    "kandinsky5": Family(
        "Kandinsky5T2IPipeline", (_QWEN_VL, "CLIPTextModel"), language.kandinsky5, {"height": 64, "width": 64}
    ),
    "hunyuan-image": Family("HunyuanImagePipeline", (_QWEN_VL, "T5EncoderModel"), language.hunyuan_image, _SMALL),
    "wan": Family("WanPipeline", ("UMT5EncoderModel",), clip_and_t5.wan, {**_SMALL, "num_frames": 1}),
}
FAMILIES: tuple[str, ...] = tuple(_BY_NAME)
_made: dict[str, Copies] = {}
"""Parts by family; tests get copies."""


def missing(family: str) -> str | None:
    """Return which class of `family` the installed diffusers or transformers lacks, or None."""
    wanted = _BY_NAME[family]
    for library, names in (("diffusers", (wanted.pipeline,)), ("transformers", wanted.encoders)):
        for name in names:
            try:
                found = getattr(importlib.import_module(library), name)
            except (AttributeError, ImportError, RuntimeError) as error:
                return f"{library} has no {name} ({error})"
            # A placeholder for a class whose requirements are not installed.
            if backends := getattr(found, "_backends", None):
                return f"{library}'s {name} needs {', '.join(backends)}"
    return None


def build(family: str) -> Any:
    """Return a new pipeline on the CPU in float32, with the same weights every time."""
    import diffusers

    wanted = _BY_NAME[family]
    pipe = getattr(diffusers, wanted.pipeline)(**_parts(family))
    pipe.set_progress_bar_config(disable=True)
    if family == "kandinsky5":
        # The pipeline rounds any size to the nearest of these; its defaults start at 1024x1024.
        pipe.resolutions = [(64, 64)]
    return pipe


def _parts(family: str) -> dict[str, Any]:
    """Return a copy of the pipeline's parts, which are made once."""
    if family not in _made:
        _made[family] = Copies(_BY_NAME[family].parts())
    return _made[family]()


def options(family: str) -> dict[str, Any]:
    """Return the options of `call` for this family: sizes that it can generate."""
    return dict(_BY_NAME[family].options)


def call(family: str, pipe: Any, prompt: Any, seed: int = 0, **options: Any) -> Any:
    """Run two steps of `pipe` and return latents, or pictures with `output_type="np"`.

    `options` replace the family's.
    """
    generator = torch.Generator().manual_seed(seed)
    given = {"num_inference_steps": 2, "output_type": "latent", **_BY_NAME[family].options, **options}
    with torch.no_grad():
        return pipe(prompt=prompt, generator=generator, return_dict=False, **given)[0]
