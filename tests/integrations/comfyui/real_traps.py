"""Program that tries two traps in ComfyUI itself, on the bundled model: another device, and the cosine schedule.

It needs ComfyUI's tree as the current folder, and prints what it finds as a JSON object.
"""

# ruff: noqa: E402  ComfyUI reads its settings while it is imported.
from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, ".")

from comfy.cli_args import args

args.cpu = True  # read when the modules below are imported

import comfy.sample
import torch
from comfy.model_sampling import ModelSamplingDiscrete
from comfy_extras import nodes_multigpu

sys.path.remove(".")  # its package `tests` would hide ours
ROOT = Path(__file__).parents[3]
package = ModuleType("integrations.comfyui")  # without its `__init__`, which needs a server
package.__path__ = [str(ROOT / "integrations" / "comfyui")]
sys.modules["integrations.comfyui"] = package

from excise.erasers.artefact.record import Artefact
from excise.errors import EraserDidNotFire
from integrations.comfyui import demo_model
from integrations.comfyui.apply import applied
from integrations.comfyui.guard import guarded

GUN = "a gun on grass"


def sampled(model: Any, clip: Any, plain: Any) -> str:
    """Return "a picture", or why the guard refuses to sample from a CLIP's conditioning."""
    positive, negative = (
        each.encode_from_tokens_scheduled(each.tokenize(text)) for each, text in ((clip, GUN), (plain, ""))
    )
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    try:
        comfy.sample.sample(model, noise, 2, 4.0, "ddim", "simple", positive, negative, torch.zeros_like(noise), seed=0)
    except EraserDidNotFire as error:
        return str(error)
    return "a picture"


def elsewhere(clip: Any) -> Any:
    """Return what the node makes of a CLIP for a second GPU. A CPU with a number is another device to it."""
    made = clip.clone()
    made.patcher = nodes_multigpu._retarget_patcher(made.patcher, torch.device("cpu", 0), torch.device("cpu"))
    return made


def devices() -> dict[str, str]:
    """Return what a CLIP with an eraser encodes as, on this device and on another."""
    model, clip, _ = demo_model.load()
    clip.patcher.cached_patcher_init = (lambda: demo_model.load()[1].patcher, ())  # as ComfyUI's own loaders do
    eraser = Artefact.load(ROOT / "tests" / "erasers" / "old" / "snce")
    erased = applied(clip, eraser)

    def states(each: Any) -> torch.Tensor:
        made: torch.Tensor = each.encode_from_tokens(each.tokenize(GUN))
        return made

    kinds = {"plain": states(clip), "erased": states(erased)}

    def kind(each: Any) -> str:
        made = states(each)
        return next((name for name, wanted in kinds.items() if torch.equal(made, wanted)), "neither")

    found = {"the node, same device": kind(nodes_multigpu.SelectCLIPDeviceNode.execute(erased, "cpu").args[0])}
    moved, behind = elsewhere(erased), elsewhere(clip)
    assert moved.patcher.model is not moved.cond_stage_model
    found["another device"] = kind(moved)
    guard = guarded(model, erased)
    found |= {"sampled, erased": sampled(guard, erased, clip), "sampled, another device": sampled(guard, moved, clip)}
    try:
        applied(behind, eraser)
    except EraserDidNotFire as error:
        found["applied on another device"] = str(error)
    moved.cond_stage_model = moved.patcher.model  # as the node for VAEs does
    return {**found, "another device, wired": kind(moved)}


def own_schedule() -> str:
    """Return what ComfyUI's own cosine schedule raises."""
    try:
        ModelSamplingDiscrete()._register_schedule(beta_schedule="squaredcos_cap_v2")
    except Exception as error:
        return type(error).__name__
    return "nothing"


if __name__ == "__main__":
    sigmas = demo_model.load()[0].model.model_sampling.sigmas.tolist()
    print(json.dumps({"devices": devices(), "own schedule": own_schedule(), "sigmas": sigmas}))
