"""The bundled pipeline, SAEs and judges: assembling, loading and generating."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from excise import loading
from excise.drawn import Drawn
from excise.errors import ExciseError, NotFound
from excise.files import put_folder, read_json, temporary_beside, write_atomic
from excise.reference import classifier, data
from excise.reference.scenes import Pixels
from excise.step_progress import by_steps

if TYPE_CHECKING:
    from excise.reference.classifier import Verdicts

STEPS, GUIDANCE = 20, 4.0
SAES = {
    "snce": "model/sae",
    "saemnesia": "saes/block",
    "saeuron": "saes/block_unsupervised",
    "saemnesia-text": "saes/text",
}
"""Folders of the bundled SAEs below `data.folder()`, by method."""
EXTRA_FILES = (
    *(f"{name}.{kind}" for name in classifier.JUDGES for kind in ("safetensors", "json")),
    "text_head.safetensors", "text_encoder.json", "training.txt",
)  # fmt: skip
"""Files next to the pipeline: the judges, the text encoder's head, their measurements, and notes on the training."""


def sae_folder(method: str = "snce") -> Path:
    """Return the folder of the bundled SAE for a method. Load it with `excise.sae.load`.

    Raises:
        ExciseError: No SAE is bundled for the method, or the bundled model is not installed.
    """
    if method not in SAES:
        raise NotFound(f"no SAE is bundled for {method!r}; there is one for {', '.join(SAES)}")
    return data.folder() / SAES[method]


def assemble(parts: Path, unet: UNet2DConditionModel, out: Path) -> None:
    """Assemble the trained `parts` and write them to `out` atomically, as fp16 safetensors in shards of 18 MB.

    One tensor, the 25 MB of token embeddings, has its own shard. An SAE in `out` is kept.
    """
    from excise.reference.training.unet import scheduler

    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.half()
    fresh = temporary_beside(out)
    try:
        pipe.save_pretrained(fresh, max_shard_size="18MB")
        make_portable(fresh)
        for config in fresh.glob("*/config.json"):
            settings = read_json(config)
            settings.pop("_name_or_path", None)  # a folder on the machine that trained it
            if config.parent.name == "text_encoder":
                # transformers loads the config's dtype, diffusers float32. Without this they would differ.
                settings["dtype"] = "float32"
            write_atomic(config, json.dumps(settings, indent=2) + "\n")
        for name in EXTRA_FILES:
            if (parts / name).exists():
                shutil.copy(parts / name, fresh / name)
        if (out / "sae").exists():
            shutil.copytree(out / "sae", fresh / "sae")
        put_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def make_portable(folder: Path) -> None:
    """Rewrite a saved model so that all supported versions of transformers can read it.

    Names of CLIP's layers begin with `text_model`, as in every published Stable Diffusion. From 5.6 on, transformers
    reads names with or without it but saves them without; earlier versions initialise such layers at random. The
    tokenizer is the fast one, which reads tokenizer.json; the slow one of transformers 4 needs other files.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    index["tokenizer"] = ["transformers", "CLIPTokenizerFast"]
    write_atomic(path, json.dumps(index, indent=2) + "\n")

    def wrapped(name: str) -> str:
        return name if name.startswith("text_model.") else f"text_model.{name}"

    for path in (folder / "text_encoder").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {wrapped(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        save_file(tensors, path, metadata)
    for path in (folder / "text_encoder").glob("*.index.json"):
        shards = read_json(path)
        shards["weight_map"] = {wrapped(name): shard for name, shard in shards["weight_map"].items()}
        write_atomic(path, json.dumps(shards, indent=2) + "\n")


def load(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load the bundled reference model, or the one in `folder`, onto the CPU, without a progress bar.

    Args:
        folder: Folder of another reference model.
        dtype: Precision of the weights.

    Returns:
        The pipeline.

    Raises:
        ExciseError: The weights are missing or broken, or the installed diffusers or transformers is not supported.
    """
    loading.check_versions()
    folder = data.folder() / "model" if folder is None else folder
    if not (folder / "model_index.json").exists():
        raise NotFound(
            f"no reference model in {folder}; reinstall excise-reference, or train one with `excise reference train`"
        )
    try:
        pipe: StableDiffusionPipeline = loading.load_folder(folder, dtype)
    except (ExciseError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"the model in {folder} cannot be read ({error}); reinstall excise-reference") from error
    pipe.unet.to(memory_format=torch.channels_last)  # in which a CPU convolves faster
    return pipe


@lru_cache
def _judge(name: str) -> classifier.Judge:
    return classifier.load(data.folder() / "model", name)


def judge(name: str = "classifier") -> Callable[[Pixels], Verdicts]:
    """Load a bundled judge, "classifier" or "second_classifier".

    Returns:
        A function from pictures `[N, 64, 64, 3]` uint8 to `Verdicts`.

    Raises:
        ExciseError: The judge cannot be read.
    """
    try:
        model = _judge(name)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"the bundled judge cannot be read ({error}); reinstall excise-reference") from error
    return lambda images: classifier.judge(model, images)


def judge_figures(name: str = "classifier") -> dict[str, float]:
    """Return a bundled judge's accuracy on real scenes that it was not trained on, and its largest threshold."""
    figures: dict[str, float] = read_json(data.folder() / "model" / f"{name}.json")
    return figures


def denoising_steps(pictures: int, steps: int = STEPS, batch_size: int = 32) -> int:
    """Return how many denoising steps `draw` takes. Steps count once for a whole batch."""
    return -(-pictures // batch_size) * steps


def generate(pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Pixels:
    """Generate pictures `[N, 64, 64, 3]` uint8, one for each prompt and seed, with the options of `draw`.

    Raises:
        ExciseError: A picture is broken: flagged by a safety checker, not finite, or of a single colour.
    """
    return draw(pipe, prompts, seeds, **options).sound(seeds)


def draw(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float | None = GUIDANCE,
    batch_size: int = 32,
    progress: Callable[[float], Any] | None = None,
) -> Drawn:
    """Generate pictures `[N, 64, 64, 3]`, with their faults, each from a CPU generator with its own seed.

    Args:
        pipe: The pipeline.
        prompts: N prompts.
        seeds: N seeds.
        steps: Denoising steps.
        guidance: Guidance scale; None uses the pipeline's default.
        batch_size: Pictures in a batch. Batches are always padded to this size, so that a picture's bits do not depend
            on how many are generated with it.
        progress: Called with 1 after each denoising step of a batch, `denoising_steps` times in all.

    Raises:
        ExciseError: There are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise ExciseError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    options = {} if guidance is None else {"guidance_scale": guidance}
    parts = []
    for start in range(0, len(prompts), batch_size):
        some = list(prompts[start : start + batch_size])
        numbers = list(seeds[start : start + batch_size])
        fill = batch_size - len(some)
        with by_steps(pipe, progress, steps):
            made = pipe(
                some + [""] * fill,
                num_inference_steps=steps,
                generator=[torch.Generator("cpu").manual_seed(s) for s in numbers + [0] * fill],
                output_type="np",
                **options,
            )
        parts.append(Drawn.by(made)[: len(some)])
    return Drawn.joined(parts)
