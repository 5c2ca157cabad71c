"""The bundled model as a user meets it: it loads in silence, draws what it is asked and fits its size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from excise import reference
from excise.errors import ExciseError
from excise.reference import bundle
from excise.reference.world import OBJECTS, STYLES


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return reference.load()


def test_it_loads_without_a_warning() -> None:
    """By the first lines in Python, which print nothing, and as any other pipeline."""
    code = (
        "from excise import list_erasers, load_eraser, reference, set_erasers; reference.load();"
        "import sys; print('loaded', file=sys.stderr);"
        "from diffusers import StableDiffusionPipeline;"
        f"StableDiffusionPipeline.from_pretrained({str(reference.MODEL)!r}).set_progress_bar_config(disable=True)"
    )
    ran = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    bars = ("Loading", "torchvision")  # progress bars, and transformers on a package that nothing here needs
    silent, _, rest = ran.stderr.partition("loaded\n")
    assert not silent
    said = [line for line in rest.splitlines() if line.strip() and not any(b in line for b in bars)]
    assert not said, said


def test_it_is_stable_diffusions_anatomy_and_small(pipe: StableDiffusionPipeline) -> None:
    kinds = {name: type(part).__name__ for name, part in pipe.components.items() if part is not None}
    assert kinds["text_encoder"] == "CLIPTextModel"
    assert kinds["tokenizer"].startswith("CLIPTokenizer")
    assert (kinds["unet"], kinds["vae"]) == ("UNet2DConditionModel", "AutoencoderKL")
    assert {p.dtype for n in ("text_encoder", "unet", "vae") for p in getattr(pipe, n).parameters()} == {torch.float32}
    files = [p for p in Path(reference.MODEL).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 100e6
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_picture_depends_on_its_prompt_and_seed_alone(pipe: StableDiffusionPipeline) -> None:
    prompts = ["a flat gun on grass", "a bold cat on sand", "an ink rocket on a pink background"]
    together = reference.generate(pipe, prompts, [3, 4, 5], steps=3, batch_size=4)
    again = reference.generate(pipe, prompts[1:2], [4], steps=3, batch_size=4)
    assert together.shape == (3, 64, 64, 3)
    assert together.dtype == np.uint8
    assert np.array_equal(together[1], again[0])
    assert not np.array_equal(together[1], reference.generate(pipe, prompts[1:2], [9], steps=3, batch_size=4)[0])


def test_it_draws_what_it_is_asked(pipe: StableDiffusionPipeline) -> None:
    """A floor, not the figure of the model card: most of 16 plain prompts are recognised by the judge."""
    names = OBJECTS[::5]
    prompts = [f"a picture of a {n} on a white background, {s} style" for n in names for s in STYLES[1:3]]
    verdicts = reference.judge()(
        reference.generate(pipe, prompts, range(len(prompts)), steps=8, batch_size=len(prompts))
    )
    hits = [verdicts.objects[i, OBJECTS.index(names[i // 2])] for i in range(len(prompts))]
    assert np.mean(hits) >= 0.5
    assert np.mean(verdicts.style == np.tile([1, 2], len(names))) >= 0.7


def test_the_card_holds_the_figures_beside_it() -> None:
    facts = json.loads((reference.MODEL / "figures.json").read_text())
    card = (reference.MODEL / "README.md").read_text()
    for family, figures in facts["drawing"].items():
        assert f"| {family.replace('_', ' ')} | {100 * figures['objects']['value']:.1f} (" in card
    assert str(facts["text_encoder"]["held_out_cosine"]) in card


def test_broken_or_missing_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="no reference model in"):
        bundle.load(tmp_path)
    copy = tmp_path / "model"
    shutil.copytree(reference.MODEL, copy)
    weights = next((copy / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExciseError, match="cannot be read"):
        bundle.load(copy)


def test_prompts_and_seeds_must_match(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ExciseError, match="2 prompts but 1 seeds"):
        reference.generate(pipe, ["a", "b"], [1])


def test_no_file_names_the_machine_that_trained_it() -> None:
    for config in reference.MODEL.rglob("*.json"):
        assert "_name_or_path" not in config.read_text(), config


def test_every_version_of_transformers_in_bounds_finds_its_weights() -> None:
    """5.0 to 5.5 drew a text encoder with flat names at random; 4.57 has a slow tokenizer that wants other files."""
    index = json.loads((reference.MODEL / "text_encoder/model.safetensors.index.json").read_text())
    assert all(name.startswith("text_model.") for name in index["weight_map"])
    assert json.loads((reference.MODEL / "model_index.json").read_text())["tokenizer"][1] == "CLIPTokenizerFast"


def test_a_model_that_is_saved_again_is_portable_too(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, max_shard_size="18MB")
    bundle.make_portable(tmp_path)
    for name in ("model_index.json", "text_encoder/model.safetensors.index.json"):
        ours, again = (json.loads((folder / name).read_text()) for folder in (reference.MODEL, tmp_path))
        assert ours.get("tokenizer") == again.get("tokenizer")
        assert set(ours.get("weight_map", ())) == set(again.get("weight_map", ()))
    again = bundle.load(tmp_path).text_encoder.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in pipe.text_encoder.state_dict().items())
