"""A double of the functions of SD.Next that the extension uses or replaces. `test_real.py` runs SD.Next's own."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

SCRIPT = Path(__file__).parents[3] / "integrations" / "sdnext" / "scripts" / "excise_erasers.py"
WEIGHT = re.compile(r"\((\w+):([\d.]+)\)")


class Callbacks(ModuleType):
    """`modules.script_callbacks`: exceptions of callbacks are kept in `errors`, and SD.Next goes on."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.loaded: list[Callable[[Any], None]] = []
        self.before: list[Callable[[Any], None]] = []
        self.errors: list[Exception] = []
        self.on_model_loaded, self.on_before_process = self.loaded.append, self.before.append

    def call(self, callbacks: list[Callable[[Any], None]], given: Any) -> None:
        for callback in callbacks:
            try:
                callback(given)
            except Exception as error:
                self.errors.append(error)


def states(pipe: Any, prompt: str, clip_skip: int | None) -> Tensor:
    """Return the states of a prompt such as `a (gun:1.4)`, each scaled by its word's weight as compel does."""
    plain = WEIGHT.sub(r"\1", prompt)
    ids = pipe.tokenizer([plain, ""], padding="max_length", return_tensors="pt").input_ids
    layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    last = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    made, empty = last(layers[-(clip_skip or 1)])
    weights = torch.ones(len(ids[0]), 1)
    for word, weight in WEIGHT.findall(prompt):
        for token in pipe.tokenizer(word).input_ids[1:-1]:
            weights[ids[0] == token] = float(weight)
    return (empty + weights * (made - empty))[None]


def get_weighted_text_embeddings(
    pipe: Any,
    prompt: str = "",
    neg_prompt: str = "",
    clip_skip: int | None = None,
    prompt_mean_norm: Any = None,
    diffusers_zeros_prompt_pad: Any = None,
    te_pooled_embeds: Any = None,
) -> tuple[Any, ...]:
    return states(pipe, prompt, clip_skip), None, None, states(pipe, neg_prompt, clip_skip), None, None


def install(monkeypatch: pytest.MonkeyPatch, pipe: Any, models: Path) -> SimpleNamespace:
    """Replace SD.Next's modules by the double, which has loaded no model yet."""
    parser = ModuleType("modules.prompt_parser_diffusers")
    parser.cache = OrderedDict(old=1)  # type: ignore[attr-defined]
    parser.get_weighted_text_embeddings = get_weighted_text_embeddings  # type: ignore[attr-defined]
    parser.get_xhinker_text_embeddings = lambda pipe, *_: (states(pipe, "", 1), None, None) * 2  # type: ignore[attr-defined]
    shared = SimpleNamespace(sd_model=pipe, sd_loaded=False)
    callbacks = Callbacks()
    package = ModuleType("modules")
    parts = {"prompt_parser_diffusers": parser, "shared": shared, "script_callbacks": callbacks}
    parts["paths"] = SimpleNamespace(models_path=str(models))
    videos = video_loaders(shared)
    for name, part in (parts | videos).items():
        setattr(package, name, part)
        monkeypatch.setitem(sys.modules, f"modules.{name}", part)
    monkeypatch.setitem(sys.modules, "modules", package)
    found = {"videos": [loader for name, loader in videos.items() if "." in name]}
    return SimpleNamespace(pipe=pipe, parser=parser, shared=shared, callbacks=callbacks, **found)


def video_loaders(shared: SimpleNamespace) -> dict[str, ModuleType]:
    """Return the modules that load models for the video tabs: they set `sd_model` and run no callback."""
    made: dict[str, ModuleType] = {}
    for name in ("video_models.video_load", "framepack.framepack_load"):
        package, made[name] = (
            made.setdefault(name.partition(".")[0], ModuleType(name.partition(".")[0])),
            ModuleType(name),
        )
        package.__path__ = []

        def load_model(pipe: Any, fails: bool = False) -> str:
            shared.sd_model, shared.sd_loaded = pipe, pipe is not None
            if fails:
                raise ValueError("no memory")
            return "loaded"

        made[name].load_model = load_model  # type: ignore[attr-defined]
    return made


def load_script() -> ModuleType:
    """Run the extension's script as SD.Next does: from its file."""
    spec = importlib.util.spec_from_file_location("excise_erasers.py", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(there: SimpleNamespace, prompt: str, negative: str = "", clip_skip: int = 1) -> dict[str, Any]:
    """Return what SD.Next passes to the pipeline: embeddings, or the text if they could not be made."""
    there.callbacks.call(there.callbacks.before, None)
    try:
        made = there.parser.get_weighted_text_embeddings(there.pipe, prompt, negative, clip_skip)
    except Exception as error:
        there.callbacks.errors.append(error)
        return {"prompt": [prompt], "negative_prompt": [negative], "clip_skip": clip_skip - 1 or None}
    return {"prompt_embeds": made[0], "negative_prompt_embeds": made[3]}
