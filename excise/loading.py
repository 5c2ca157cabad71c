"""Silent loading of a pipeline's folder, in one dtype, with every weight accounted for.

A library that finds no tensor of a name fills it at random and continues, so each model's loading report is checked.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.errors import ExciseError, MissingExtra, shown
from excise.files import SMALL, open_regular, parse_json, read_json
from excise.pipeline import Pipeline, as_diffusers

if TYPE_CHECKING:
    import torch

_DENOISERS = ("transformer", "unet", "prior", "decoder")
_FILE = re.compile(
    r"(?:model|diffusion_pytorch_model|pytorch_model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<old>\w+))?"
    r"\.(?P<format>safetensors|bin)"
)
"""Name of a file of weights. `old` is where earlier versions of diffusers put the variant in the names of shards."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@cache
def check_versions() -> None:
    """Raise ExciseError for versions of diffusers and transformers outside the bounds that the package declares."""
    from packaging.requirements import Requirement

    try:
        bounds = [Requirement(line) for line in requires("excise") or ()]
    except PackageNotFoundError:  # a source tree that was never installed declares no bounds
        return
    for bound in bounds:
        if bound.name not in ("diffusers", "transformers"):
            continue
        try:
            found = version(bound.name)
        except PackageNotFoundError as error:
            raise MissingExtra(f"{bound.name} is not installed; pip install '{bound}'") from error
        if not bound.specifier.contains(found, prereleases=True):
            raise MissingExtra(f"excise needs {bound}, and {bound.name} {found} is installed; pip install '{bound}'")


@contextmanager
def quiet(*, always: bool = False) -> Iterator[None]:
    """Silence progress bars and advice of diffusers and transformers within this context, but not their errors.

    It imports both libraries. A verbosity that a user chose in the environment stays, unless `always`: diffusers logs
    the ends of prompts.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = ((diffusers_logging, "DIFFUSERS_VERBOSITY"), (transformers_logging, "TRANSFORMERS_VERBOSITY"))
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library, _ in libraries]
    for library, chosen in libraries:
        library.disable_progress_bar()
        if always or chosen not in os.environ:
            library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level, bars in before:
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


class PickledWeights(ExciseError):
    """Weights that are stored only in pickled files, of `variant`."""

    def __init__(self, component: str, variant: str | None) -> None:
        super().__init__(f"{component} has its weights as .bin alone, which can run code when it is read")
        self.variant = variant


def variant_of(files: Iterable[str], components: Iterable[str], wanted: str | None = None) -> dict[str, str | None]:
    """Return the variant to load of each component with weights in safetensors.

    It is the wanted one if it exists, else the plain weights, else the only variant. `files` are paths below the
    pipeline's folder, such as `unet/diffusion_pytorch_model.fp16.safetensors`. Raises ExciseError if none of a
    component's weights can be read, or no component has the wanted variant.
    """
    variants: dict[str, dict[str, set[str | None]]] = {}
    for path in files:
        component, _, name = path.partition("/")
        if found := _FILE.fullmatch(name):
            kinds = variants.setdefault(component, {"safetensors": set(), "bin": set()})
            kinds[found["format"]].add(found["variant"] or found["old"])
    chosen: dict[str, str | None] = {}
    for component in components:
        if component not in variants:
            continue
        safe = variants[component]["safetensors"]
        if not safe:
            bins = variants[component]["bin"]
            raise PickledWeights(component, None if None in bins else min(map(str, bins)))
        if wanted in safe:
            chosen[component] = wanted
        elif None in safe or len(safe) == 1:
            chosen[component] = None if None in safe else next(iter(safe))
        else:
            raise ExciseError(f"{component} has the variants {_list(safe)}; choose one with --variant")
    if wanted is not None and wanted not in chosen.values():
        known = _list({v for c in chosen for v in variants[c]["safetensors"] if v is not None})
        raise ExciseError(f"there is no variant {wanted!r}; {f'there is {known}' if known else 'leave out --variant'}")
    return chosen


def _list(variants: Iterable[str | None]) -> str:
    return ", ".join(sorted(str(variant or "(plain)") for variant in variants))


def components_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class of every component in a model_index.json."""
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[0] and entry[1]
    }


def own_dtype(folder: Path, variant: str | None = None) -> torch.dtype:
    """Return the dtype that most of the denoiser's weights are stored in, by the headers of its files.

    float32, float16 or bfloat16, which also stands for narrower ones. Raises ExciseError as `variant_of` does.
    """
    import torch

    chosen = variant_of(_files(folder), components_of(_index(folder)), variant)
    names = [name for name in _DENOISERS if name in chosen] or list(chosen)
    counted: Counter[str] = Counter()
    for name in names:
        for path in (folder / name).glob("*.safetensors"):
            found = _FILE.fullmatch(path.name)
            if found is None or (found["variant"] or found["old"]) != chosen[name]:
                continue
            for tensor in _header(path).values():
                start, end = tensor["data_offsets"]
                counted[tensor["dtype"]] += end - start
    most = counted.most_common(1)
    found_dtype: torch.dtype = getattr(torch, _DTYPES.get(most[0][0], "bfloat16") if most else "float32")
    return found_dtype


def refuse_foreign_modules(index: Mapping[str, Any], folder: Path | None = None) -> None:
    """Raise ExciseError if a component's class is not in a library that diffusers loads from, or already imported.

    Until 0.42 diffusers imports any module that a model_index.json names, which runs it. It also runs a pipeline's own
    file, and a component's in `folder`, which some versions ask leave for.
    """
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    if not isinstance(index, Mapping) or index.get("_class_name") is None:
        raise ExciseError("model_index.json names no pipeline class; copy or download the model again")
    if not isinstance(index["_class_name"], str):
        raise ExciseError(
            "model_index.json takes its pipeline from a file of code, which is not run; use another model"
        )
    for name, (library, _) in components_of(index).items():
        if folder is not None and (folder / name / f"{library}.py").exists():
            raise ExciseError(f"{name} holds code, {shown(library + '.py')}, which is not run; use another model")
    for name, (library, _) in components_of(index).items():
        caller_imported = library in sys.modules and library.partition(".")[0] not in sys.stdlib_module_names
        if not (library in LOADABLE_CLASSES or hasattr(pipelines, library) or caller_imported):
            raise ExciseError(
                f"model_index.json takes {name} from the module {shown(library)}, which importing would run; if you "
                "trust it, import it before loading, or use a model whose components are diffusers' or transformers'"
            )


def _header(path: Path) -> dict[str, Any]:
    """Return a safetensors file's entries for its tensors."""
    with open_regular(path) as file:
        header: dict[str, Any] = parse_json(file.read(min(struct.unpack("<Q", file.read(8))[0], SMALL)))
    header.pop("__metadata__", None)
    return header


def load_folder(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Load the diffusers pipeline in a folder, each model in `dtype` on the CPU, without a progress bar.

    What a class of transformers keeps in float32 (T5's `wo`) stays so. Raises ExciseError if a model's weights are
    missing, left over or of another shape, or can only be read by unpickling.
    """
    with quiet():
        import diffusers

        index = _index(folder)
        refuse_foreign_modules(index, folder)
        chosen = variant_of(_files(folder), components_of(index), variant)
        models = {
            name: _load_model(kind, folder / name, dtype, chosen[name])
            for name, where in components_of(index).items()
            if name in chosen and (kind := _class(*where)) is not None
        }
        pipe: Pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **in_dtype(dtype), **models
        )
    as_diffusers(pipe).set_progress_bar_config(disable=True)
    return pipe


def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = read_json(folder / "model_index.json")
    return index


def _files(folder: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*")]


def _class(library: str, name: str) -> Any:
    """Return the class of a model whose loading can be checked; None for all other components."""
    import diffusers
    import transformers

    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    home = getattr(diffusers.pipelines, library, None) if home is None else home
    kind = getattr(home, name, None)
    checkable = (diffusers.ModelMixin, transformers.PreTrainedModel)
    return kind if isinstance(kind, type) and issubclass(kind, checkable) else None


def _load_model(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    from transformers import PreTrainedModel

    options: dict[str, Any] = {"variant": variant, "use_safetensors": True, "local_files_only": True}
    options |= {"dtype": dtype} if issubclass(kind, PreTrainedModel) else in_dtype(dtype)
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    refuse_gaps(model, report, folder)
    return model.eval()


def in_dtype(dtype: torch.dtype) -> dict[str, Any]:
    """Return the dtype as an argument of the installed version of diffusers."""
    from packaging.version import Version

    return {"dtype" if Version(version("diffusers")) >= Version("0.40") else "torch_dtype": dtype}


def load_whole(kind: Any, source: Path | str, **options: Any) -> Any:
    """Load a transformers model by `kind.from_pretrained`, silently.

    Raises ExciseError as `refuse_gaps` does, and whatever the library raises if there is no model.
    """
    with quiet():
        model, report = kind.from_pretrained(source, output_loading_info=True, **options)
    refuse_gaps(model, report, Path(source))
    return model.eval()


def refuse_gaps(model: Any, report: Mapping[str, Iterable[Any]], folder: Path) -> None:
    """Raise ExciseError if a library's loading info lists weights that are missing, of another shape or left over.

    A checkpoint whose configuration names another class may have weights left over: its head's. Positions are constants
    that old checkpoints contain.
    """
    for reason, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        if gap := sorted(str(key if isinstance(key, str) else key[0]) for key in report.get(reason) or ()):
            raise ExciseError(
                f"{folder.name} {what} {_some(gap)} of a {type(model).__name__}: they would be filled at random. The "
                "folder is incomplete, or was saved by a version of the library that names its weights otherwise"
            )
    made_by = getattr(model.config, "architectures", None) or [type(model).__name__]
    over = sorted(str(key) for key in report.get("unexpected_keys") or () if not str(key).endswith("position_ids"))
    if over and type(model).__name__ in made_by:
        raise ExciseError(
            f"{folder.name} has weights that a {type(model).__name__} does not have: {_some(over)}. Its configuration "
            "does not match its weights"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")
