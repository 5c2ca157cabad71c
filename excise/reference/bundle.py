"""Putting the trained parts together as one Stable Diffusion pipeline, and loading what ships with the package."""

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
from excise.files import put_folder, temporary_beside, write_atomic
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
"""Folders of the bundled SAEs, below `data.folder()`, by the method that needs them."""
BESIDE = (
    *(f"{name}.{kind}" for name in classifier.JUDGES for kind in ("safetensors", "json")),
    "text_head.safetensors", "text_encoder.json", "training.txt",
)  # fmt: skip
"""What lies beside the pipeline: the judges, the text encoder's head, their figures, how these weights were made."""


def sae_folder(method: str = "snce") -> Path:
    """Where the bundled SAE that a method needs lies (read it with `excise.sae.load`).

    Raises ExciseError for a method that needs none, and where the bundled model is not installed.
    """
    if method not in SAES:
        raise NotFound(f"no SAE is bundled for {method!r}; there is one for {', '.join(SAES)}")
    return data.folder() / SAES[method]


def assemble(parts: Path, unet: UNet2DConditionModel, out: Path) -> None:
    """Write the bundled model to `out`, fp16 safetensors in shards of 18 MB, from the trained `parts`, in one step.

    (One tensor, the 25 MB of token embeddings, has a shard to itself.) An SAE that lies in `out` already is kept.
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
            settings = json.loads(config.read_text())
            settings.pop("_name_or_path", None)  # a folder on the machine that trained it
            if config.parent.name == "text_encoder":
                # transformers loads what the config says, diffusers float32: without this the dtypes would differ.
                settings["dtype"] = "float32"
            write_atomic(config, json.dumps(settings, indent=2) + "\n")
        for name in BESIDE:
            if (parts / name).exists():
                shutil.copy(parts / name, fresh / name)
        if (out / "sae").exists():
            shutil.copytree(out / "sae", fresh / "sae")
        put_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def make_portable(folder: Path) -> None:
    """Write a saved model's names as every version of transformers in the package's bounds reads them.

    CLIP's layers lie under `text_model`, as in every published Stable Diffusion: transformers from 5.6 on reads either
    but saves them flat, and before that it drew flat ones at random. The tokenizer is the fast one, which is read from
    tokenizer.json; transformers 4 has a slow one beside it that wants other files.
    """
    index = folder / "model_index.json"
    said = json.loads(index.read_text())
    said["tokenizer"] = ["transformers", "CLIPTokenizerFast"]
    write_atomic(index, json.dumps(said, indent=2) + "\n")

    def wrapped(name: str) -> str:
        return name if name.startswith("text_model.") else f"text_model.{name}"

    for path in (folder / "text_encoder").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {wrapped(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        save_file(tensors, path, metadata)
    for path in (folder / "text_encoder").glob("*.index.json"):
        shards = json.loads(path.read_text())
        shards["weight_map"] = {wrapped(name): shard for name, shard in shards["weight_map"].items()}
        write_atomic(path, json.dumps(shards, indent=2) + "\n")


def load(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The bundled reference model, or the one in `folder`, on the CPU, without a progress bar.

    Raises ExciseError where the weights are missing or broken, or the versions of diffusers and transformers are not
    among those that the package takes.
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
    return pipe


@lru_cache
def _judge(name: str) -> classifier.Judge:
    return classifier.load(data.folder() / "model", name)


def judge(name: str = "classifier") -> Callable[[Pixels], Verdicts]:
    """A bundled judge, "classifier" or "second_classifier": call it on pictures `[N, 64, 64, 3]` uint8.

    Raises ExciseError where it cannot be read.
    """
    try:
        model = _judge(name)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"the bundled judge cannot be read ({error}); reinstall excise-reference") from error
    return lambda images: classifier.judge(model, images)


def judge_figures(name: str = "classifier") -> dict[str, float]:
    """A bundled judge's own accuracy on real scenes that it was not trained on, and its largest threshold."""
    figures: dict[str, float] = json.loads((data.folder() / "model" / f"{name}.json").read_text())
    return figures


def denoising_steps(pictures: int, steps: int = STEPS, batch_size: int = 32) -> int:
    """How many denoising steps `draw` takes for that many pictures: those of each batch count once."""
    return -(-pictures // batch_size) * steps


def generate(pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Pixels:
    """Pictures `[N, 64, 64, 3]` uint8, with `draw`'s options.

    Raises ExciseError where one of them is broken: flagged by a safety checker, not finite, or of one colour.
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
    """Pictures `[N, 64, 64, 3]` with their faults, each from a CPU generator seeded with its own seed.

    Batches are always padded to `batch_size`, so that a picture's bits do not depend on its neighbours in the batch
    having been asked for. `guidance` None leaves the scale to the pipeline's own default. `progress` is called after
    each denoising step of a batch with 1, `denoising_steps` times in all.
    """
    if len(prompts) != len(seeds):
        raise ExciseError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
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
