"""Excise in SD.Next: the erasers of a folder act on every model, and its weighted prompts are encoded under them.

SD.Next reports the exceptions of a script and draws on. So nothing here refuses by raising. What refuses is attached to
the pipeline: the erasers, or if they cannot be attached, a block.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from modules import paths, prompt_parser_diffusers, script_callbacks, shared

WHY = ""
"""Why Excise cannot be imported."""
try:
    import excise
    from excise.erasers.artefact.files import every_eraser
    from excise.erasers.guard.coverage import refuse_early_tap
    from excise.erasers.loaded import loaded_on
    from excise.errors import InvalidSetting
except Exception as error:
    WHY = f"Excise cannot be imported: {error}"


def folder() -> Path:
    """Return the folder of the erasers: that of EXCISE_ERASERS, or `erasers` among SD.Next's models."""
    return Path(os.environ.get("EXCISE_ERASERS") or Path(paths.models_path, "erasers")).resolve()


def attach(pipe: Any) -> None:
    """Attach every eraser of the folder to a pipeline. If one cannot be, let nothing of the pipeline run."""
    try:
        if WHY:
            raise RuntimeError(WHY)
        if not folder().is_dir():
            raise RuntimeError(f"there is no folder {folder()} of erasers")
        every_eraser(folder())
        excise.unload_eraser(pipe)
        excise.load_eraser(pipe, folder())
    except Exception as error:
        block(pipe, f"Excise lets nothing be drawn with this model: {error}")
    else:
        print(f"Excise: attached {', '.join(excise.get_active_erasers(pipe))}")
    prompt_parser_diffusers.cache.clear()  # it holds states that no eraser has seen


def block(pipe: Any, why: str) -> None:
    """Let no part of a pipeline run, nor the pipeline itself."""
    print(why)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(why)

    inner = vars(pipe).get("pipe")  # SD.Next has wrappers of pipelines
    for part in (*vars(pipe).values(), *(vars(inner).values() if hasattr(inner, "__dict__") else ())):
        if isinstance(part, torch.nn.Module):
            part.register_forward_pre_hook(refuse)
    kind = type(pipe)
    call = functools.wraps(kind.__call__)(refuse) if callable(pipe) else refuse  # SD.Next reads its signature
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call, "excise_blocked": True})


def check(_: Any = None) -> None:
    """Attach the erasers if the model that is about to draw has none: a script may have put another one there."""
    pipe = shared.sd_model
    if pipe is None or hasattr(pipe, "excise_blocked"):
        return
    try:
        erased = not WHY and bool(excise.get_active_erasers(pipe))
    except Exception:
        erased = False
    if not erased:
        attach(pipe)


def then_checked(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return SD.Next's function that loads a video model, attaching the erasers to that model.

    The video tabs put a model in place and draw with it, and run no callback of scripts before.
    """

    @functools.wraps(load)
    def loaded(*given: Any, **more: Any) -> Any:
        try:
            return load(*given, **more)
        finally:
            if shared.sd_loaded:
                check()

    return loaded


def under_erasers(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Return SD.Next's function that encodes a prompt and its negative prompt with weights, under the erasers.

    It gives three results of the prompt, then three of the negative prompt, from which nothing is erased. So it runs
    twice, and one half of each is taken.
    """

    @functools.wraps(encode)
    def encoded(
        pipe: Any, prompt: str = "", neg_prompt: str = "", clip_skip: Any = None, **more: Any
    ) -> tuple[Any, ...]:
        loaded = loaded_on(pipe)
        if loaded and clip_skip is not None and clip_skip < 1:
            raise InvalidSetting(f"clip skip {clip_skip:g} reads the text encoder's first layers; give at least 1")
        for name, attachment in loaded.items():
            for edit in attachment.eraser.text_edits:
                refuse_early_tap(pipe, edit, math.ceil(abs(clip_skip or 1)) - 1, name)  # SD.Next counts from 1
        own = functools.partial(encode, pipe, prompt, neg_prompt, clip_skip, **more)
        positive = excise.encode(pipe, lambda: own()[:3])
        return (*positive, *excise.encode(pipe, lambda: own()[3:], negative=True))

    return encoded


def not_under_erasers(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Return SD.Next's xhinker, which takes layers out of the encoder, refusing a pipeline with erasers.

    SD.Next then passes the prompt as text.
    """

    @functools.wraps(encode)
    def encoded(pipe: Any, *given: Any, **more: Any) -> Any:
        if loaded_on(pipe):
            raise RuntimeError(
                "xhinker does not work with Excise; choose another prompt attention parser, such as native"
            )
        return encode(pipe, *given, **more)

    return encoded


if not WHY and not hasattr(prompt_parser_diffusers, "under_excise"):
    parser = prompt_parser_diffusers
    parser.get_weighted_text_embeddings = under_erasers(parser.get_weighted_text_embeddings)
    parser.get_xhinker_text_embeddings = not_under_erasers(parser.get_xhinker_text_embeddings)
    parser.under_excise = True
script_callbacks.on_model_loaded(attach)
script_callbacks.on_before_process(check)
for video in ("modules.video_models.video_load", "modules.framepack.framepack_load"):
    try:
        module: Any = importlib.import_module(video)
        if not hasattr(module, "under_excise"):
            module.load_model, module.under_excise = then_checked(module.load_model), True
    except Exception as error:
        print(f"Excise: {video} is not covered: {error}")
if shared.sd_loaded:
    check()
