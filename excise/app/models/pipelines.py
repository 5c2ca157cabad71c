"""Loading of diffusion pipelines, from a folder or the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.app.models.single_file import load_single_file
from excise.errors import ExciseError, InvalidSetting, NotFound
from excise.files import read_json

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")
_CHECKPOINTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_TO_FOLDER = (
    'python -c "from diffusers import DiffusionPipeline as P; '
    "P.from_pretrained('{0}'{1}, use_safetensors=False).save_pretrained('{2}')\""
)
"""Command that converts a folder or a model of the hub with .bin weights to a folder of safetensors."""


@dataclass(frozen=True)
class Weights:
    """Which weights of a model to load, and in which precision.

    dtype: one of `DTYPES`; "auto" is float32, or on a CUDA device the precision of most of the denoiser's weights.
    revision: branch, tag or commit of a model on the hub. variant: variant in the file names, such as fp16.
    """

    dtype: str = "auto"
    revision: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidSetting(f"--dtype cannot be {self.dtype!r}; choose from {', '.join(DTYPES)}")

    def torch_dtype(self) -> torch.dtype | None:
        """Return the torch dtype, or None for "auto"."""
        import torch

        dtype: torch.dtype | None = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return dtype


DEFAULT = Weights()


class Unreachable(NotFound):
    """A model that is not on this machine, while the hub cannot be reached."""


def must_be_local(model: str) -> bool:
    """Return whether a name can only be a path, because it is not a valid name on the hub."""
    return not _HUB_NAME.fullmatch(model) or model.endswith((*_CHECKPOINTS, ".gguf"))


def check_name(model: str | None, weights: Weights) -> None:
    """Check a model's name before any work.

    Raises:
        ExciseError: A path does not exist, or a revision or variant is given for the bundled model.
    """
    if model is None:
        if weights.revision is not None or weights.variant is not None:
            raise ExciseError("--revision and --variant are for another model; name it with --model")
    elif must_be_local(model) and not Path(model).expanduser().exists():
        raise NotFound(f"there is no {model} on this machine; name a folder with model_index.json")


def check_path(model: str) -> None:
    """Check that a path on the disk, if it is one, is a pipeline's folder or a safetensors file.

    Raises:
        ExciseError: It is another file, or a folder of something else.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        if path.suffix in _CHECKPOINTS:
            raise ExciseError(
                f"{path} is a pickle, which can run code when it is read; take the model's .safetensors file, or a "
                "folder with model_index.json"
            )
        raise ExciseError(f"{path} is a file; name the folder with model_index.json, or a .safetensors checkpoint")
    if path.is_dir() and not (path / "model_index.json").exists():
        inside = sorted(path.glob("*/model_index.json"))
        hint = f"; did you mean {inside[0].parent}?" if inside else "; name the folder of a whole pipeline"
        raise NotFound(f"{path} has no model_index.json{hint}")


def load_diffusion_pipeline(model: str, device: str, weights: Weights) -> Any:
    """Load the pipeline in a folder or on the hub onto `device`.

    Raises:
        ExciseError: There is no such pipeline, or its weights are incomplete or only available as pickles.
    """
    import torch
    from safetensors import SafetensorError

    from excise import loading

    loading.check_versions()
    check_path(model)
    path = Path(model).expanduser()
    local = path.exists()
    if local and weights.revision is not None:
        what = "a folder" if path.is_dir() else "one file"
        raise ExciseError(f"{model} is {what}; --revision is for a model of the hub")
    if path.is_file() and weights.variant is not None:
        raise ExciseError(f"{model} is one file, which has no variants; leave out --variant")
    try:
        if path.is_file():
            return load_single_file(path, weights.torch_dtype(), device).to(device)
        folder = path if local else _fetch(model, weights)
        dtype = weights.torch_dtype()
        if dtype is None:
            dtype = loading.own_dtype(folder, weights.variant) if device.startswith("cuda") else torch.float32
        pipe = loading.load_folder(folder, dtype, weights.variant)
    except loading.PickledWeights as error:
        given = {"revision": weights.revision, "variant": error.variant}
        more = "".join(f", {name}='{value}'" for name, value in given.items() if value)
        convert = _TO_FOLDER.format(model, more, f"{path.name}-safetensors")
        raise ExciseError(
            f"cannot load {model}: {error}; if you trust it, convert it to safetensors once: {convert}"
        ) from error
    except ExciseError as error:
        raise type(error)(f"cannot load {model}: {error}") from error
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, ImportError, SafetensorError) as error:
        raise ExciseError(f"cannot load {model}: {first_line(error)}") from error
    if not local:
        # Erasers record this name as their model. For a revision the cache folder's name holds the exact commit.
        pipe.register_to_config(_name_or_path=model if weights.revision is None else str(folder))
    return pipe.to(device)


def _fetch(model: str, weights: Weights) -> Path:
    """Return the cache folder of a model of the hub, downloading it if necessary.

    Raises:
        PickledWeights: Its weights are only available as pickles; raised before any large download.
        ExciseError: There is no such model.
    """
    from diffusers import DiffusionPipeline
    from huggingface_hub import errors, hf_hub_download, model_info

    from excise import loading

    revision, variant = weights.revision, weights.variant
    unreachable: Exception | None = None
    try:
        files = [sibling.rfilename for sibling in model_info(model, revision=revision).siblings or ()]
        index = read_json(Path(hf_hub_download(model, "model_index.json", revision=revision)))
        loading.refuse_foreign_modules(index)
        chosen = loading.variant_of(files, loading.components_of(index), variant)
        variant = next(filter(None, chosen.values()), None)
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"it has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            "there is no such folder here, and no model of that name on the hub that you may read (for a private "
            "model, log in with `hf auth login`)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ExciseError("it is on the hub, but is not a diffusion pipeline: it has no model_index.json") from error
    except ExciseError:
        raise
    except Exception as error:  # of a dozen kinds without a network; the model may be in the cache
        unreachable = error
    try:
        with loading.quiet():
            folder = DiffusionPipeline.download(
                model,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                local_files_only=unreachable is not None,
            )
    except Exception as error:  # diffusers and the hub raise a dozen kinds here
        if unreachable is None:
            raise ExciseError(f"it could not be downloaded from the hub ({first_line(error)})") from error
        raise Unreachable(
            f"there is no such folder here, and the hub cannot be reached ({first_line(unreachable)})"
        ) from unreachable
    return Path(folder)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
