"""A pipeline's folder is loaded completely or not at all, in one dtype, and without output."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from excise import loading
from excise.app.models.pipelines import Weights
from excise.app.models.resolve import load_pipeline
from excise.errors import ExciseError
from excise.reference import bundle
from tests import tiny

MODELS = ("text_encoder", "unet", "vae")


@pytest.fixture
def folder(build_pipe: Callable[..., Any], tmp_path: Path) -> Path:
    """Return the folder of a tiny pipeline."""
    build_pipe().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a component's only file with `edit`."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("component", MODELS)
def test_weights_that_are_missing_are_refused_by_name(folder: Path, component: str) -> None:
    gone = []
    change(folder / component, lambda tensors: gone.append(min(tensors)) or tensors.pop(gone[0]))
    with pytest.raises(ExciseError, match=f"{component} lacks .*at random") as error:
        loading.load_folder(folder, torch.float32)
    assert gone[0].removeprefix("text_model.") in str(error.value)


@pytest.mark.parametrize("component", MODELS)
def test_weights_that_are_left_over_are_refused_by_name(folder: Path, component: str) -> None:
    change(folder / component, lambda tensors: tensors.update({"something.else.weight": torch.ones(2)}))
    with pytest.raises(ExciseError, match=rf"{component} has weights that .* does not have: something\.else\.weight"):
        loading.load_folder(folder, torch.float32)


def test_a_text_encoder_under_other_names_is_not_drawn_at_random(folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [*tensors]:
            tensors[f"other.{name}"] = tensors.pop(name)

    change(folder / "text_encoder", rename)
    with pytest.raises(ExciseError, match=r"text_encoder lacks .* and \d+ more weights"):
        loading.load_folder(folder, torch.float32)


def test_the_head_of_another_class_may_be_left_over(folder: Path) -> None:
    settings = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps({**settings, "architectures": ["CLIPModel"]}))
    change(folder / "text_encoder", lambda tensors: tensors.update({"visual_projection.weight": torch.ones(2)}))
    loading.load_folder(folder, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_parameter_is_as_diffusers_loads_it_in_that_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.build("flux").save_pretrained(tmp_path)
    ours = loading.load_folder(tmp_path, dtype)
    theirs = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    for name, part in theirs.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        expected, loaded = part.state_dict(), getattr(ours, name).state_dict()
        assert {key: value.dtype for key, value in loaded.items()} == {k: v.dtype for k, v in expected.items()}, name
        assert all(torch.equal(loaded[key], expected[key]) for key in expected), name
        assert not getattr(ours, name).training
    if dtype == torch.float16:  # in which T5 overflows
        kept = {p.dtype for name, p in ours.text_encoder_2.named_parameters() if ".wo." in name}
        assert kept == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_its_own_dtype_is_the_one_its_denoiser_is_stored_in(
    build_pipe: Callable[..., Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    pipe = build_pipe()
    pipe.unet.to(dtype)
    pipe.save_pretrained(tmp_path)
    assert loading.own_dtype(tmp_path) == dtype


def test_a_variant_is_taken_where_there_is_no_other_or_where_it_is_wanted(folder: Path) -> None:
    for file in [*folder.glob("*/*.safetensors")]:
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    loading.load_folder(folder, torch.float32)
    loading.load_folder(folder, torch.float32, "fp16")
    with pytest.raises(ExciseError, match="no variant 'ema'; there is fp16"):
        loading.load_folder(folder, torch.float32, "ema")


def test_which_variant_each_component_has() -> None:
    files = [f"unet/diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16", ".ema")]
    sharded = [f"text_encoder/model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    old = ["vae/diffusion_pytorch_model-00001-of-00001.fp16.safetensors", "vae/config.json"]
    parts = ("unet", "text_encoder", "vae", "tokenizer")
    plain = loading.variant_of([*files, *sharded, *old], parts)
    assert plain == {"unet": None, "text_encoder": "fp16", "vae": "fp16"}
    assert loading.variant_of([*files, *sharded], parts, "ema") == {"unet": "ema", "text_encoder": "fp16"}
    with pytest.raises(ExciseError, match="unet has the variants ema, fp16; choose one with --variant"):
        loading.variant_of(files[1:], parts)
    with pytest.raises(loading.PickledWeights, match=r"vae has its weights as \.bin alone") as error:
        loading.variant_of([*files, "vae/diffusion_pytorch_model.fp16.bin"], parts)
    assert error.value.variant == "fp16"


def test_a_version_outside_the_declared_bounds_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "version", lambda name: "4.40.0" if name == "transformers" else "0.42.1")
    loading.check_versions.cache_clear()
    with pytest.raises(ExciseError, match=r"excise needs transformers>=4\.57, and transformers 4\.40\.0 is installed"):
        loading.check_versions()
    monkeypatch.undo()
    loading.check_versions.cache_clear()
    loading.check_versions()


def test_the_libraries_verbosity_is_its_users_own(folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        loading.load_folder(folder, torch.float32)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])


def evil(folder: Path, how: str) -> Path:
    """Make a pipeline's folder run a file of its own when it is loaded. Return what that file writes."""
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nfrom diffusers import *\n"
    index = json.loads((folder / "model_index.json").read_text())
    if how == "module":
        (folder / "evil_module.py").write_text(code)
        index["vae"] = ["evil_module", "AutoencoderKL"]
    elif how == "pipeline":
        (folder / "evil_module.py").write_text(code)
        index["_class_name"] = ["evil_module", "StableDiffusionPipeline"]
    else:
        (folder / "vae" / "diffusers.py").write_text(code)
    (folder / "model_index.json").write_text(json.dumps(index))
    return ran


@pytest.mark.parametrize("how", ["module", "pipeline", "component"])
def test_no_way_to_load_a_model_runs_its_code(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = evil(folder, how)
    monkeypatch.syspath_prepend(folder)
    ways: dict[str, Callable[[], Any]] = {
        "the loader": lambda: loading.load_folder(folder, torch.float32),
        "commands and a run's workers": lambda: load_pipeline(str(folder), "cpu", Weights()),
        "the bundled model's": lambda: bundle.load(folder),
    }
    for name, load in ways.items():
        with pytest.raises(ExciseError, match=r"model_index\.json takes|holds code"):
            load()
        assert not ran.exists(), name


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"_class_name": null}', '{"_class_name": "Nope", "vae": ["diffusers", 3]}']
)
def test_an_index_that_names_no_pipeline_is_refused(folder: Path, index: str) -> None:
    (folder / "model_index.json").write_text(index)
    with pytest.raises(ExciseError, match=r"names no pipeline class|Nope"):
        load_pipeline(str(folder), "cpu", Weights())


def test_pipelines_are_loaded_in_one_place_where_the_index_is_checked() -> None:
    """A download is elsewhere, and is checked too."""
    package = Path(loading.__file__).parent
    loads = re.compile(r"Pipeline\w*\.(from_pretrained|from_single_file|download)$")
    found = {
        (path.relative_to(package).as_posix(), called)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and loads.search(called := ast.unparse(node.func))
    }
    assert found == {
        ("loading.py", "diffusers.DiffusionPipeline.from_pretrained"),
        ("app/models/pipelines.py", "DiffusionPipeline.download"),
    }
