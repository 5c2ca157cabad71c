"""Run the extension on SD.Next's own prompt parser, embedder and callbacks; the other modules of SD.Next are stubs.

    python -m tests.integrations.sdnext.real TREE MODEL ERASERS

`TREE` is a checkout of SD.Next. `MODEL` is `bundled`, and `ERASERS` a folder of erasers of it; or `sdxl`, a tiny random
SDXL, for which an eraser is written into `ERASERS`. What it prints last is JSON: for each case, how the picture drawn
with the extension compares to the one without it, twice.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import excise
from excise import reference
from excise.concepts import from_templates
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.reference.world import OBJECTS
from excise.sites import default_site, to_cover
from tests.integrations.sdnext.double import load_script
from tests.planted import planted
from tests.tiny import clip_and_t5, denoisers, encoders

STEPS = 4
LONG = ", ".join(["a cat on grass"] * 20)
CASES: dict[str, dict[str, Any]] = {
    "cat": {"prompt": "a (cat:1.3) on grass"},
    "gun": {"prompt": "a (gun:1.3) on grass"},
    "gun, compel": {"prompt": "a (gun:1.3) on grass", "attention": "compel"},
    "gun, a1111": {"prompt": "a (gun:1.3) on grass", "attention": "a1111"},
    "gun, fixed": {"prompt": "a gun on grass", "attention": "fixed"},
    "cat, not gun": {"prompt": "a (cat:1.3) on grass", "negative": "a (gun:1.4)"},
    "cat, zeros": {"prompt": "a (cat:1.3) on grass", "zeros": True},
    "gun, zeros": {"prompt": "a (gun:1.3) on grass", "zeros": True},
    "cat BREAK sky": {"prompt": "a (cat:1.3) BREAK blue sky"},
    "gun BREAK sky": {"prompt": "a (gun:1.3) BREAK blue sky"},
    "long cat": {"prompt": LONG},
    "long gun": {"prompt": f"{LONG}, a (gun:1.3)"},
    "cat to dog": {"prompt": "a [cat:dog:0.5] on grass"},
    "cat to gun": {"prompt": "a [cat:gun:0.5] on grass"},
    "cat and long cat": {"prompt": ["a (cat:1.3) on grass", LONG]},
    "cat and gun": {"prompt": ["a (cat:1.3) on grass", "a (gun:1.3) on grass"]},
    "gun, clip skip 2": {"prompt": "a (gun:1.3) on grass", "clip_skip": 2},
    "gun, clip skip 6": {"prompt": "a (gun:1.3) on grass", "clip_skip": 6},
    "cat, xhinker": {"prompt": "a (cat:1.3) on grass", "attention": "xhinker"},
    "gun, xhinker": {"prompt": "a (gun:1.3) on grass", "attention": "xhinker"},
}
TWO: dict[str, dict[str, Any]] = {
    "cat, weighted pool": {"prompt": "a (cat:1.3) on grass", "pooled": True},
    "gun, weighted pool": {"prompt": "a (gun:1.3) on grass", "pooled": True},
    "cat, then gun": {"prompt": "a (cat:1.3) TE2: a (gun:1.3)"},
    "cat, then cat": {"prompt": "a (cat:1.3) TE2: a picture of a cat"},
}
"""Cases of a model with two text encoders; `TE2:` begins the prompt of the second one."""


def install(tree: Path, pipe: Any) -> SimpleNamespace:
    """Import SD.Next's modules that the embedder is made of, on stubs of the others."""
    log = logging.getLogger("sdnext")
    log.trace = log.debug  # type: ignore[attr-defined]
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    opts = SimpleNamespace(
        prompt_attention="native", prompt_mean_norm=False, diffusers_zeros_prompt_pad=False, te_pooled_embeds=False,
        sd_textencoder_cache_size=4, sd_textencder_linebreak=True, lora_apply_te=False,
    )  # fmt: skip
    stubs: dict[str, Any] = {
        "shared": SimpleNamespace(
            opts=opts, log=log, sd_model=pipe, sd_loaded=True, sd_model_type="sd", readfile=lambda *_, **__: {},
            state=SimpleNamespace(begin=nothing, end=nothing),
        ),
        "devices": SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, torch_gc=nothing),
        "sd_models": SimpleNamespace(move_model=nothing),
        "processing_correction": SimpleNamespace(),
        "logger": SimpleNamespace(log=log),
        "errors": SimpleNamespace(display=nothing),
        "timer": SimpleNamespace(process=SimpleNamespace(record=nothing)),
        "paths": SimpleNamespace(models_path="/nowhere"),
    }  # fmt: skip
    package = ModuleType("modules")
    package.__path__ = [str(tree / "modules")]
    sys.modules["modules"] = package
    for name, stub in stubs.items():
        sys.modules[f"modules.{name}"] = stub
        setattr(package, name, stub)
    from modules import (
        processing_callbacks,
        processing_prompt,
        prompt_parser,
        prompt_parser_diffusers,
        script_callbacks,
    )

    return SimpleNamespace(
        opts=opts, callbacks=script_callbacks, prompt=processing_prompt, steps=processing_callbacks,
        parser=prompt_parser, embedder=prompt_parser_diffusers,
    )  # fmt: skip


def draw(
    there: SimpleNamespace, pipe: Any, prompt: Any, negative: str = "", attention: str = "native", clip_skip: int = 1,
    zeros: bool = False, pooled: bool = False, steps: int = STEPS, output: str = "latent",
) -> Any:  # fmt: skip
    """Draw as `process_base` does: SD.Next sets the arguments of the prompt, and swaps scheduled ones in a callback."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    there.opts.prompt_attention, there.opts.diffusers_zeros_prompt_pad = attention, zeros
    there.opts.te_pooled_embeds = pooled
    p = SimpleNamespace(network_data={}, task_args={}, batch_size=len(prompts), init_images=None, cfg_scale=3.0)
    there.callbacks.before_process_callback(p)
    there.steps.set_callbacks_p(p)
    possible = list(inspect.signature(type(pipe).__call__).parameters)
    args: dict[str, Any] = {"clip_skip": clip_skip - 1} if clip_skip > 1 else {}
    _, args = there.prompt.set_prompt(
        p, args, possible, type(pipe).__name__, attention, steps, clip_skip, prompts, [negative] * len(prompts), None,
        None,
    )  # fmt: skip
    how: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": output}
    if type(pipe).__name__ == "StableDiffusionXLPipeline":
        how |= {"height": 16, "width": 16}
    seeds = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how |= {"callback_on_step_end_tensor_inputs": pipe._callback_tensor_inputs}
    swap = lambda _, step, t, given: there.steps.prompt_callback(step, given)  # noqa: E731
    return pipe(**args, **how, generator=seeds, callback_on_step_end=swap).images


def attempt(there: SimpleNamespace, pipe: Any, case: dict[str, Any]) -> Tensor | str:
    try:
        with torch.no_grad():
            return draw(there, pipe, **case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def compared(one: Tensor | str, other: Tensor | str) -> str:
    if isinstance(one, str) or isinstance(other, str):
        return next(each for each in (other, one) if isinstance(each, str))
    same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
    return ", ".join("the same" if each else "another" for each in same)


@torch.no_grad()
def guns(there: SimpleNamespace, pipe: Any) -> int:
    """Return in how many of eight pictures of a gun with a weight the bundled judge sees one."""
    drawn = draw(there, pipe, ["a (gun:1.3) on grass"] * 8, steps=20, output="np")
    return int(reference.judge()((drawn * 255).round().astype("uint8")).objects[:, OBJECTS.index("gun")].sum())


def tiny_sdxl(folder: Path) -> Any:
    """Return a random SDXL, and write an eraser for it. SD.Next makes pooled embeddings from more than 768 columns."""
    from diffusers import StableDiffusionXLPipeline

    parts = clip_and_t5.sdxl()
    parts |= {"text_encoder_2": encoders.clip(784, projection=24), "unet": denoisers.unet(32 + 784, pooled=24)}
    pipe = StableDiffusionXLPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    concept = from_templates("gun", ("gun",), 12)
    saes = {site: planted(pipe, site, concept) for site in (default_site(pipe, each) for each in to_cover(pipe))}
    fit(pipe, concept, SNCEConfig(permutations=20), sae=saes).save(folder / "gun")
    return pipe


def main(tree: str, model: str, erasers: str) -> None:
    pipe = reference.load() if model == "bundled" else tiny_sdxl(Path(erasers))
    pipe.set_progress_bar_config(disable=True)
    there = install(Path(tree), pipe)
    cases = CASES if model == "bundled" else {name: case for name, case in CASES.items() if "xhinker" not in name} | TWO
    plain = {name: [attempt(there, pipe, case) for _ in range(2)] for name, case in cases.items()}
    seen = guns(there, pipe) if model == "bundled" else None
    os.environ["EXCISE_ERASERS"] = erasers
    load_script()
    there.callbacks.model_loaded_callback(pipe)
    found: dict[str, Any] = {"erasers": excise.get_active_erasers(pipe)}
    for name, case in cases.items():
        erased = [attempt(there, pipe, case) for _ in range(2)]  # the second time from SD.Next's cache
        found[name] = [compared(*pair) for pair in zip(plain[name], erased, strict=True)]
    if model == "bundled":
        found["guns"] = [seen, guns(there, pipe)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
