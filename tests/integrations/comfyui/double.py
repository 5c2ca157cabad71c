"""A double of the few classes of ComfyUI that the pack uses, written from their behaviour.

What matters is kept: a clone says that it is injected if its original is, a patcher that dies ejects, clones of one
model share its weights and their backups, layers write to their input, weights of words are applied to finished states
against an empty prompt, and a long prompt is cut into rows. `test_server.py` and `test_families.py` run the real ones.
"""

from __future__ import annotations

import sys
import weakref
from collections import namedtuple
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

WIDTH, LAYERS, LENGTH = 16, 3, 8
WORDS = ("<start>", "<end>", "a", "gun", "pistol", "cat", "dog", "on", "grass", "and", "tree", "red")
Kept = namedtuple("Kept", ["weight"])


class Layer(nn.Module):
    """One causal layer. It writes to its input, as ComfyUI's do."""

    def __init__(self, width: int, pair: bool) -> None:
        super().__init__()
        self.mix, self.out, self.pair = nn.Linear(width, width), nn.Linear(width, width), pair

    def forward(self, x: Tensor) -> Any:
        before = self.mix(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x += self.out(before.tanh())
        return (x, None) if self.pair else x


class Text(nn.Module):
    """A text encoder with layers at a path of CLIP, T5 or a language model."""

    def __init__(self, path: str, width: int, layers: int, pair: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width)
        self.steps = nn.ModuleList([Layer(width, pair) for _ in range(layers)])
        owner: nn.Module = self
        *names, last = path.split(".")
        for name in names:
            owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, self.steps)
        del self.steps
        self.path, self.norm = path, nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> list[Tensor]:
        x, states = self.words(ids), []
        for layer in self.get_submodule(self.path):
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
            states.append(x.clone())
        return states


class Part(nn.Module):
    """One encoder of a CLIP, which applies the weights of words."""

    def __init__(
        self, path: str = "text_model.encoder.layers", width: int = WIDTH, layers: int = LAYERS, pair: bool = False
    ) -> None:
        super().__init__()
        self.transformer, self.num_layers = Text(path, width, layers, pair), layers
        self.layer: Any = "last"
        self.layer_idx: int | None = None
        self.layer_norm_hidden_state = True
        self.rows = 0

    def forward(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        states = self.transformer(torch.tensor(tokens))
        self.rows += len(tokens)
        z = states[self.layer_idx if self.layer == "hidden" else -1]  # type: ignore[index]
        last = self.transformer.norm(states[-1])
        return (self.transformer.norm(z) if self.layer_norm_hidden_state else z), last[:, -1]

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self(tokens)
        return made

    def encode_token_weights(self, rows: list[list[tuple[int, float]]]) -> tuple[Tensor, Tensor]:
        tokens = [[token for token, _ in row] for row in rows]
        weighted = any(weight != 1 for row in rows for _, weight in row)
        if weighted:
            tokens.append([0, *[1] * (len(tokens[0]) - 1)])
        states, pooled = self.encode(tokens)
        made = []
        for row, z in zip(rows, states, strict=False):
            weights = torch.tensor([weight for _, weight in row])[:, None]
            made.append(torch.where(weights == 1, z, (z - states[-1]) * weights + states[-1]))
        return torch.cat(made)[None], pooled[:1]


class Stage(nn.Module):
    """A CLIP's model: its encoders by name. States of several are joined along their width."""

    def __init__(self, **parts: Part | None) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Any, ...]:
        made = [getattr(self, name).encode_token_weights(rows) for name, rows in tokens.items()]
        return torch.cat([states for states, _ in made], -1), torch.cat([pooled for _, pooled in made], -1)


class Patcher:
    """ComfyUI's ModelPatcher: what a node changes of a model, which is shared."""

    loaded: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.patches: dict[str, list[Any]] = {}
        self.hook_patches: dict[Any, Any] = {}
        self.backup: dict[str, Kept] = {}
        self.attachments: dict[str, Any] = {}
        self.injections: dict[str, list[Any]] = {}
        self.object_patches: dict[str, Any] = {}
        self.weight_wrapper_patches: dict[str, list[Any]] = {}
        self.callbacks: dict[str, dict[str, list[Any]]] = {}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.is_injected = False

    def clone(self, model: nn.Module | None = None) -> Patcher:
        n = type(self)(self.model if model is None else model)
        n.patches = {key: [*made] for key, made in self.patches.items()}
        n.hook_patches = dict(self.hook_patches)
        n.backup = self.backup if model is None else {}
        n.attachments = dict(self.attachments)
        n.injections = {key: [*made] for key, made in self.injections.items()}
        n.object_patches, n.weight_wrapper_patches = dict(self.object_patches), dict(self.weight_wrapper_patches)
        n.callbacks = {kind: {key: [*c] for key, c in keys.items()} for kind, keys in self.callbacks.items()}
        n.wrappers = {kind: {key: [*c] for key, c in keys.items()} for kind, keys in self.wrappers.items()}
        n.is_injected = self.is_injected
        for called in self.callbacks.get("on_clone", {}).values():
            for callback in called:
                callback(self, n)
        return n

    def __del__(self) -> None:
        self.eject_model()

    def inject_model(self) -> None:
        if self.is_injected:
            return
        for injections in self.injections.values():
            for injection in injections:
                injection.inject(self)
                self.is_injected = True

    def eject_model(self) -> None:
        if not self.is_injected:
            return
        for injections in self.injections.values():
            for injection in injections:
                injection.eject(self)
        self.is_injected = False

    def load(self) -> None:
        """Load this clone in place of the others of its model, as `load_models_gpu` does."""
        for other in [each for each in self.loaded if each.model is self.model]:
            self.loaded.discard(other)
            other.eject_model()
        if self.is_injected:
            self.eject_model()
        state = self.model.state_dict()
        for key, kept in self.backup.items():
            state[key].copy_(kept.weight)
        self.backup.clear()
        for key, patches in self.patches.items():
            self.backup[key] = Kept(state[key].clone())
            for strength, (_, (delta,)), kept, *_ in patches:
                state[key].mul_(kept).add_(strength * delta)
        self.loaded.add(self)
        self.inject_model()

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0, kept: float = 1.0) -> list[str]:
        there = [key for key in patches if key in self.model.state_dict()]
        for key in there:
            self.patches.setdefault(key, []).append((strength, patches[key], kept, None, None))
        return there

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def set_injections(self, key: str, injections: list[Any]) -> None:
        self.injections[key] = injections

    def remove_injections(self, key: str) -> None:
        self.injections.pop(key, None)

    def add_callback_with_key(self, kind: str, key: str, callback: Any) -> None:
        self.callbacks.setdefault(kind, {}).setdefault(key, []).append(callback)

    def remove_callbacks_with_key(self, kind: str, key: str) -> None:
        self.callbacks.get(kind, {}).pop(key, None)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)


class CLIP:
    """ComfyUI's CLIP."""

    def __init__(self, target: Any = None, no_init: bool = False) -> None:
        if no_init:
            return
        self.cond_stage_model = Stage(clip_l=Part()) if target is None else target
        self.patcher = Patcher(self.cond_stage_model)
        self.patcher.object_patches["manual_cast_dtype"] = torch.float32
        self.layer_idx: int | None = None
        self.tokenizer_options: dict[str, int] = {}

    def clone(self) -> Any:
        n = type(self)(no_init=True)
        n.patcher, n.cond_stage_model = self.patcher.clone(), self.cond_stage_model
        n.layer_idx, n.tokenizer_options = self.layer_idx, dict(self.tokenizer_options)
        return n

    def set_tokenizer_option(self, name: str, value: int) -> None:
        self.tokenizer_options[name] = value

    def tokenize(self, text: str) -> dict[str, list[list[tuple[int, float]]]]:
        """Cut words, each with an optional weight as in `gun:1.4`, into rows with a start and an end."""
        words = [word.partition(":") for word in text.split()]
        pairs = [(WORDS.index(word), float(weight or 1)) for word, _, weight in words]
        made = {}
        for name in self.cond_stage_model._modules:
            length = self.tokenizer_options.get(f"{name}_min_length", LENGTH)
            rows = [pairs[n : n + length - 2] for n in range(0, max(1, len(pairs)), length - 2)]
            made[name] = [[(0, 1.0), *row, *[(1, 1.0)] * (length - 1 - len(row))] for row in rows]
        return made

    def encode_from_tokens(self, tokens: Any, return_dict: bool = True) -> dict[str, Any]:
        for part in self.cond_stage_model._modules.values():
            hidden = self.layer_idx is not None and self.layer_idx != -1
            part.layer, part.layer_idx = ("hidden", self.layer_idx) if hidden else ("last", None)
        self.patcher.load()
        with torch.no_grad():
            output = self.cond_stage_model.encode_token_weights(tokens)
        return {"cond": output[0], "pooled_output": output[1], **(output[2] if len(output) > 2 else {})}

    def encode(self, text: str) -> dict[str, Any]:
        """Return the conditioning of a prompt, as the sampler is given it."""
        made = self.encode_from_tokens(self.tokenize(text))
        return {"cross_attn": made.pop("cond"), **made}


class CFGGuider:
    """ComfyUI's sampler with guidance."""

    def __init__(self, model: Patcher, positive: Any, negative: Any = None, cfg: float = 7.0) -> None:
        self.model, self.cfg = model, cfg
        self.model_options: dict[str, Any] = {}
        self.conds = {"positive": [positive], **({} if negative is None else {"negative": [negative]})}

    def outer_sample(self) -> str:
        return "a picture"

    def sample(self) -> Any:
        """Run `outer_sample` within the model's wrappers."""
        run: Any = self.outer_sample
        for wrappers in self.model.wrappers.get("outer_sample", {}).values():
            for wrapper in wrappers:
                run = partial(wrapper, Executor(run, self))
        return run()


class Executor:
    """What a wrapper is given: the function that it wraps, and whose method that is."""

    def __init__(self, inner: Any, class_obj: Any) -> None:
        self.inner, self.class_obj = inner, class_obj

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class BaseModel(nn.Module):
    """ComfyUI's model around a denoiser, with the noise levels that its sampling goes through."""

    def __init__(self, config: Any, kind: str, unet_model: Any) -> None:
        super().__init__()
        self.config, self.kind, self.diffusion_model = config, kind, unet_model(**config.unet)
        self.model_sampling = SimpleNamespace(sigmas=None)
        self.model_sampling.set_sigmas = lambda sigmas: vars(self.model_sampling).update(sigmas=sigmas)


class Config:
    """What a model's class states of it."""

    def __init__(self, unet: dict[str, Any]) -> None:
        self.unet = unet

    def set_inference_dtype(self, dtype: torch.dtype, manual_cast: Any) -> None:
        """Do nothing."""


class _Recorded(SimpleNamespace):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)


class _Kinds:
    """ComfyUI's `io`: every type has an Input and an Output, which keep their arguments."""

    ComfyNode, NodeOutput, Schema = object, _Recorded, _Recorded

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(Input=_Recorded, Output=_Recorded)

    def Custom(self, name: str) -> Any:
        return SimpleNamespace(Input=_Recorded, Output=_Recorded)


class _Extension:
    pass


class Routes:
    """Routes of the server, by path."""

    def __init__(self) -> None:
        self.by_path: dict[str, Any] = {}

    def get(self, path: str) -> Any:
        def put(handler: Any) -> Any:
            self.by_path[path] = handler
            return handler

        return put


def install(monkeypatch: pytest.MonkeyPatch, erasers: Any) -> None:
    """Put the double in place of ComfyUI's modules. `erasers` is the folder models/erasers."""

    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, made)

    class Injected:
        def __init__(self, inject: Any, eject: Any) -> None:
            self.inject, self.eject = inject, eject

    module("comfy")
    callbacks = SimpleNamespace(ON_CLONE="on_clone")
    wrappers = SimpleNamespace(OUTER_SAMPLE="outer_sample", APPLY_MODEL="apply_model")
    module("comfy.patcher_extension", PatcherInjection=Injected, CallbacksMP=callbacks, WrappersMP=wrappers)
    module("comfy.utils", unet_to_diffusers=lambda config: config, get_attr=lambda m, key: m.state_dict()[key])
    module("comfy.samplers", CFGGuider=type("CFGGuider", (CFGGuider,), {}))
    module("comfy.sd", CLIP=type("CLIP", (CLIP,), {}))
    module("comfy.sd1_clip")
    module("comfy.latent_formats", LatentFormat=object)
    module("comfy.model_base", BaseModel=BaseModel, ModelType=SimpleNamespace(V_PREDICTION="v"))
    module("comfy.model_management", get_torch_device=lambda: "cpu", unet_offload_device=lambda: "cpu")
    module("comfy.model_patcher", ModelPatcher=lambda model, load_device, offload_device: Patcher(model))
    module("comfy.supported_models_base", BASE=Config)
    module("comfy_api")
    module("comfy_api.latest", io=_Kinds(), ComfyExtension=_Extension)
    folders: dict[str, list[str]] = {}
    module(
        "folder_paths",
        models_dir=str(erasers.parent),
        add_model_folder_path=lambda kind, path: folders.setdefault(kind, []).append(path),
        get_folder_paths=lambda kind: folders[kind],
    )
    module("server", PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=Routes())))
    module("aiohttp", web=SimpleNamespace(json_response=lambda data: data, Request=object))
