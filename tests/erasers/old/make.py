"""Erasers that the code before the redesign made, with the images it generated under them.

Run it with that code to make the fixture again:

    git worktree add --detach OLD c4545aa
    cd OLD && PYTHONPATH=. OMP_NUM_THREADS=1 python TODAY/tests/erasers/old/make.py

`tests/erasers/test_old_erasers.py` loads the result with today's code and generates with the functions below. They use
only names that are the same before and after the redesign.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import excise
from excise import reference
from excise.concepts import Concept, builtin, from_templates
from excise.erasers import Eraser, verify
from excise.methods import method
from excise.sites import default_site, to_cover
from tests import tiny
from tests.planted import planted

HERE = Path(__file__).parent
COMMIT = "c4545aae972f1b7eeb343d5e0581b9e8f894a709"
"""The last commit before files began to move (issue 25)."""
PROMPTS = ("a picture of a gun on grass", "a picture of a cat on grass")
"""One with the concept, one without."""
TOKENS = 10
"""Positions of the text states that are kept: all words, the end token and some padding."""
SETTINGS_OF_DRAWING = {"bundled": {"num_inference_steps": 4, "guidance_scale": 4.0}}
TRAINED = {"iterations": 2, "steps": 2}


@dataclass(frozen=True)
class Made:
    """How one eraser is made: the model, the method, and its settings."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "bundled"
    """The bundled model, or a family of `tests.tiny` where the bundled model's eraser would take megabytes."""
    saes: dict[str, str] = field(default_factory=dict)
    """By setting: the method whose bundled SAE it names."""


BLOCK = {"steps": 4, "guidance": 4.0, "pictures": 6, "batch_size": 6}
ERASERS = {
    "snce": Made("snce", saes={"sae": "snce"}),
    "snce-paper": Made(
        "snce", {"source": "concept", "lam": 0.8, "gate": "relu", "uncond": "flip"}, saes={"sae": "snce"}
    ),
    "saemnesia": Made("saemnesia", BLOCK, saes={"sae": "saemnesia"}),
    "saemnesia-text": Made("saemnesia-text", saes={"sae": "saemnesia-text"}),
    "saeuron": Made("saeuron", {**BLOCK, "k": 26}, saes={"sae": "saeuron"}),
    "snce+saemnesia": Made(
        "snce+saemnesia",
        {f"saemnesia.{key}": value for key, value in BLOCK.items()},
        saes={"snce.sae": "snce", "saemnesia.sae": "saemnesia"},
    ),
    "itd": Made("itd", {"factor": -3.0, "features": 32}, saes={"sae": "snce"}),
    "concept-steerers": Made("concept-steerers", {"lam": 0.5}, saes={"sae": "snce"}),
    "uce": Made("uce", {"guide": "thing"}),
    "rece": Made("rece", {"guide": "thing", "rounds": 2}),
    "spm": Made("spm", {"iterations": 2, "steps": 4, "anchors": 1, "lr": 3e-3}),
    "dumo": Made("dumo", {"iterations": 2, "steps": 4, "pairs": 2, "bins": 2, "alpha_iterations": 2, "lr": 2e-3}),
    "sld": Made("sld", {"level": "strong", "warmup": 1, "scale": 5000.0}),
    "safree": Made("safree", {"most": 0}),
    "casteer": Made("casteer", {"steps": 4, "guidance": 4.0, "pairs": 4}),
    "safety-filter": Made("safety-filter", {"threshold": 0.45}),
    "esd-x": Made("esd-x", TRAINED, "sd1"),
    "esd-u": Made("esd-u", TRAINED, "sd1"),
    "ca": Made("ca", {**TRAINED, "pictures": 2, "batch": 2}, "sd1"),
    "sa": Made("sa", {**TRAINED, "pictures": 2, "fisher": 2, "timesteps": 1, "batch": 2}, "sd1"),
    "mace": Made("mace", {**TRAINED, "pictures": 2}, "sd1"),
    "advunlearn": Made("advunlearn", {**TRAINED, "attack_steps": 2, "retain": 2, "layers": 1}, "sd1"),
    "snce-sdxl": Made("snce", {"permutations": 20, "examine": 2}, "sdxl"),
}


def concept_of(model: str) -> Concept:
    """Return the concept that is erased from a model."""
    if model == "bundled":
        return builtin("gun")
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:6], controls=full.controls[:4])


def pipeline(model: str) -> tuple[Any, dict[Any, Any]]:
    """Return a pipeline, and for SDXL an SAE for each of its text encoders, whose words are made to stand out."""
    if model == "bundled":
        pipe = reference.load()
        pipe.unet.to(memory_format=torch.contiguous_format)  # as it was loaded when these were made
        return pipe, {}
    pipe = tiny.build(model)
    if model != "sdxl":
        return pipe, {}
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    return pipe, {site: planted(pipe, site, concept_of(model)) for site in sites}


def generate(pipe: Any, model: str) -> dict[str, Tensor]:
    """Return the images of `PROMPTS` `[2, H, W, 3]` uint8 and the text states `[2, TOKENS, d]` that they come from."""
    options = SETTINGS_OF_DRAWING.get(model) or {"num_inference_steps": 2, **tiny.options(model)}
    with torch.no_grad():
        made = pipe(
            list(PROMPTS),
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
            output_type="np",
            **options,
        ).images
        states = pipe.encode_prompt(
            list(PROMPTS), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    pictures = torch.from_numpy((255 * made).round().astype("uint8")).contiguous()
    return {"pictures": pictures, "states": states[0][:, :TOKENS].float().contiguous()}


def fit(pipe: Any, made: Made, saes: dict[Any, Any]) -> Eraser:
    """Return the eraser that `made` describes."""
    chosen = method(made.method)
    # Some methods save the whole path; a relative one says nothing about this machine.
    folders = {key: os.path.relpath(reference.sae_folder(owner)) for key, owner in made.saes.items()}
    more = {"sae": saes} if saes else {}
    eraser: Eraser = chosen.fit(pipe, concept_of(made.model), chosen.Config(**made.settings, **folders), **more)
    return eraser


def sha256(tensor: Tensor) -> str:
    """Return the digest of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def checks(folder: Path, pipe: Any) -> list[list[Any]]:
    """Return the name and outcome of each check that `excise verify` makes."""
    return [[check.name, check.passed] for check in verify(folder, pipe)]


def main() -> None:
    home = Path(excise.__file__).parent.parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True).stdout
    if commit.strip() != COMMIT:
        raise SystemExit(
            f"excise is imported from {home} at {commit.strip()}; set PYTHONPATH to a checkout of {COMMIT}"
        )
    torch.set_num_threads(1)
    tensors: dict[str, Tensor] = {}
    erasers: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for model in dict.fromkeys(made.model for made in ERASERS.values()):
        pipe, saes = pipeline(model)
        before = generate(pipe, model)
        tensors |= {f"plain-{model}.{key}": tensor for key, tensor in before.items()}
        plain[model] = {key: sha256(tensor) for key, tensor in before.items()}
        for name, made in ERASERS.items():
            if made.model != model:
                continue
            if not (HERE / name).exists():  # an interrupted run goes on
                fit(pipe, made, saes).save(HERE / name)
            with Eraser.load(HERE / name).attach(pipe):
                after = generate(pipe, model)
            for key, tensor in after.items():
                if not torch.equal(tensor, before[key]):
                    tensors[f"{name}.{key}"] = tensor
            if f"{name}.pictures" not in tensors:
                raise SystemExit(f"{name} changes no image")
            eraser = Eraser.load(HERE / name)
            erasers[name] = {
                "model": model,
                "kinds": sorted({edit.kind for edit in eraser.edits}),
                "weak": len(eraser.weak),
                "sha256": {key: sha256(tensor) for key, tensor in after.items()},
                "verify": checks(HERE / name, pipe),
            }
            size = sum(file.stat().st_size for file in (HERE / name).iterdir())
            print(f"{name}: {size / 1000:.0f} kB, {erasers[name]['kinds']}, weak: {eraser.weak}", flush=True)
    save_file(tensors, HERE / "generated.safetensors")
    told = {
        "commit": COMMIT,
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "prompts": list(PROMPTS),
        "plain": plain,
        "erasers": erasers,
    }
    (HERE / "generated.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
