"""Site: a component, a module path and a width, never an ordinal such as "9th block"."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from torch import nn

from excise.errors import ExciseError, InvalidSetting, NotFound, WrongModel
from excise.pipeline import Pipeline
from excise.sites.families import family_of

_WRAPPER = "text_model."
"""Prefix of CLIP's layers in transformers < 5.6. Newer versions have none; `resolve` accepts both."""
_SIGHT = re.compile(r"(^|\.)(visual|vision)")
"""Vision towers, in multimodal encoders."""
_BEYOND = 1 << 20
_LAYER = re.compile(r"^(?P<stack>(?:.+\.)?(?:layers|block|layer|h))\.(?P<n>\d+)$")


DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Component names of models that turn text states into an image, or (a prior) into an image embedding."""
Part = Literal["text", "denoiser"]
"""The part of a pipeline that a Site is in: a text encoder or a denoiser."""


@dataclass(frozen=True)
class Site:
    """A module at `path` in the pipeline's `component`, and the width of its output."""

    component: str
    path: str
    width: int

    @property
    def part(self) -> Part:
        """The part of the pipeline that it is in."""
        return "denoiser" if self.component in DENOISERS else "text"

    @property
    def key(self) -> str:
        """A name for tensors and messages that is unique in a pipeline, such as `text_encoder/encoder.layers.8`."""
        return f"{self.component}/{self.path}".removesuffix("/")

    def __str__(self) -> str:
        return f"{self.key} ({self.width} wide)"


def _layers(width: int, *numbers: int) -> tuple[Site, ...]:
    return tuple(Site("text_encoder", f"encoder.layers.{n}", width) for n in numbers)


def _language(layers: int, width: int, mlp: str = "mlp") -> tuple[Site, ...]:
    """Return two Sites of a language model's middle layer: the residual stream after it, and its MLP's output."""
    path = f"model.layers.{layers // 2}"
    return Site("text_encoder", path, width), Site("text_encoder", f"{path}.{mlp}", width)


# Gemma 2 has one more norm between an MLP and the residual stream.
_NORMED = "post_feedforward_layernorm"

PRESETS: dict[str, tuple[Site, ...]] = {
    "sd14": _layers(768, 8, 9),
    "sd15": _layers(768, 8, 9),
    "sd21": _layers(1024, 8, 9),
    "reference": _layers(256, 5),
    "smollm2-135m": _language(30, 576),
    "smollm2-360m": _language(32, 960),
    "smollm2-1.7b": _language(24, 2048),
    "qwen2.5-0.5b": _language(24, 896),
    "qwen2.5-1.5b": _language(28, 1536),
    "qwen2.5-3b": _language(36, 2048),
    "qwen2.5-7b": _language(28, 3584),
    "gemma2-2b": _language(26, 2304, _NORMED),
    "gemma2-9b": _language(42, 3584, _NORMED),
    "llama3.2-1b": _language(16, 2048),
    "llama3.2-3b": _language(28, 3072),
    "llama3.1-8b": _language(32, 4096),
}
"""Sites by model. The SNCE paper's "9th block" is `layers.8` counted from one, and `layers.9` in the code it builds on.
For language models they are the residual stream and the MLP's output."""


def text_encoders(pipe: Pipeline) -> dict[str, nn.Module]:
    """Return the pipeline's text encoders by component name (`text_encoder`, `text_encoder_2`, ...).

    Missing ones are left out, and ones that `torch.compile` wraps are unwrapped.
    """
    named = vars(pipe).get("_internal_dict")
    getter = getattr(getattr(type(pipe), "components", None), "fget", None)
    if named is None or getattr(getter, "__module__", None) != "diffusers.pipelines.pipeline_utils":
        components = getattr(pipe, "components", None)
        named = components if isinstance(components, dict) else vars(pipe)
        parts = {name: part for name, part in named.items() if name.startswith("text_encoder")}
    else:  # as diffusers' property does, which also inspects a signature, before every prompt
        parts = {name: getattr(pipe, name) for name in named if name.startswith("text_encoder")}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if isinstance(part, nn.Module)}


def tokenizer_of(pipe: Pipeline, component: str) -> Any:
    """Return the tokenizer of the text encoder `component`. Raise WrongModel if there is none."""
    name = component.replace("text_encoder", "tokenizer")
    tokenizer = getattr(pipe, name, None)
    if tokenizer is None:
        raise WrongModel(f"{type(pipe).__name__} has no {name}; load the pipeline with its tokenizer")
    # A processor of images and text holds the tokenizer.
    return getattr(tokenizer, "tokenizer", tokenizer)


def part_of(pipe: Pipeline, component: str) -> Any:
    """Return the pipeline's component of that name, unwrapped if compiled, or None if missing."""
    part = getattr(pipe, component, None)
    return getattr(part, "_orig_mod", part)


def to_cover(pipe: Pipeline) -> list[str]:
    """Return the text encoders by which a concept can reach the denoiser: all except those for rendered letters."""
    family = family_of(pipe)
    known = {name: family.encoder(name) if family else None for name in text_encoders(pipe)}
    return [name for name, encoder in known.items() if encoder is None or not encoder.glyphs]


def encoder_of(pipe: Pipeline, component: str) -> nn.Module:
    """Return the text encoder named `component`. Raise NotFound if the pipeline has none of that name."""
    encoders = text_encoders(pipe)
    if component not in encoders:
        have = ", ".join(encoders) or "none"
        raise NotFound(f"{type(pipe).__name__} has no text encoder {component!r} (it has {have}); choose another Site")
    return encoders[component]


def sites_of(pipe: Pipeline) -> list[Site]:
    """Return every Site of every text encoder, in order: embeddings, each layer, final norm."""
    return [
        Site(component, _plain(path), width)
        for component, encoder in text_encoders(pipe).items()
        if (width := _hidden_size(encoder)) is not None
        for path in _stations(encoder)
    ]


def site_at(pipe: Pipeline, path: str, component: str = "text_encoder") -> Site:
    """Return the Site at `path` with its width. Raise ExciseError, listing similar paths, if there is none."""
    encoder = encoder_of(pipe, component)
    width = _width(encoder, _find(encoder, component, path))
    if width is None:
        raise ExciseError(
            f"the width of {component}/{path} is unknown; give it as Site({component!r}, {path!r}, width)"
        )
    return Site(component, _plain(path), width)


def resolve(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live module of `site`.

    Raises ExciseError if the pipeline lacks the encoder or the path (similar paths are listed), or the width differs.
    """
    encoder = encoder_of(pipe, site.component)
    name = _find(encoder, site.component, site.path)
    width = _width(encoder, name)
    if width is not None and width != site.width:
        raise WrongModel(
            f"{site.key} has width {width} here, not {site.width}; the SAE or eraser was made for another model, use "
            "one for this model"
        )
    return encoder.get_submodule(name)


def is_at(pipe: Pipeline, site: Site, module: nn.Module) -> bool:
    """Whether `resolve` finds `module`, which it found before: it is still where it was. This lists no modules."""
    for path in (site.path, _WRAPPER + site.path):
        with suppress(AttributeError):
            if part_of(pipe, site.component).get_submodule(path) is module:
                return True
    return False


def shows_from(site: Site) -> int:
    """Return the index of the first of an encoder's `hidden_states` that an edit at `site` changes."""
    if site.path.endswith("norm"):
        return _BEYOND
    inside = re.search(r"(?:layers|block|layer|h)\.(\d+)(?:\.|$)", site.path)
    return int(inside[1]) + 1 if inside else 0


def default_site(pipe: Pipeline, component: str = "text_encoder") -> Site:
    """Return the Site at three quarters of the encoder's depth, or as deep as the pipeline's earliest tap allows.

    Raises ExciseError if the encoder is missing or has no stack of layers.
    """
    layers = [s for s in sites_of(pipe) if s.component == component and _LAYER.match(s.path)]
    if not layers:
        encoder_of(pipe, component)
        raise ExciseError(f"{component} of {type(pipe).__name__} has no stack of layers; name a Site")
    reads = taps_of(pipe, component) or [len(layers)]
    return layers[max(1, min(round(0.75 * len(layers)), *reads)) - 1]


def taps_of(pipe: Pipeline, component: str) -> list[int]:
    """Return the depth, in layers, of each hidden state that the pipeline reads; empty if its family is unknown."""
    family = family_of(pipe)
    encoder = family.encoder(component) if family is not None else None
    layers = layer_count(encoder_of(pipe, component))
    return [tap if tap >= 0 else layers + 1 + tap for tap in encoder.taps] if encoder is not None else []


def refuse_late(pipe: Pipeline, site: Site) -> None:
    """Raise InvalidSetting if the pipeline reads hidden states from before `site`."""
    at = depth(pipe, site)
    for read in taps_of(pipe, site.component):
        if at is not None and at > read:
            raise InvalidSetting(
                f"{type(pipe).__name__} also reads the state after {read} layers of {site.component}, before "
                f"{site.key}; the concept would pass there: use a Site up to layer {read - 1}"
            )


def depth(pipe: Pipeline, site: Site) -> int | None:
    """Return how many layers have run at `site`: 0 at the embeddings, n + 1 at layer n, None if unknown."""
    path = _plain(site.path)
    match = _LAYER.match(path)
    if match:
        return int(match["n"]) + 1
    if path.endswith("embeddings"):
        return 0
    if path.endswith("final_layer_norm"):
        return layer_count(encoder_of(pipe, site.component))
    return None


def layer_count(encoder: nn.Module) -> int:
    """Return the number of layers of a text encoder."""
    return sum(1 for path in _stations(encoder) if _LAYER.match(path))


def _plain(path: str) -> str:
    return path.removeprefix(_WRAPPER)


def _find(encoder: nn.Module, component: str, path: str) -> str:
    """Return the module name of `path` in this transformers version."""
    names = dict(encoder.named_modules())
    for name in (path, _plain(path), _WRAPPER + _plain(path)):
        if name and name in names:
            return name
    stations = [_plain(s) for s in _stations(encoder)]
    near = get_close_matches(_plain(path), stations, n=3, cutoff=0.3) or stations[:1] + stations[-2:]
    raise NotFound(f"{component} has no module {path!r}; similar ones are {', '.join(near) or 'none'}")


def _stations(encoder: nn.Module) -> list[str]:
    """Return the paths, in order of computation, of the modules whose output is the hidden state."""
    names = [name for name, _ in encoder.named_modules() if not _SIGHT.search(name)]
    layers = [name for name in names if _LAYER.match(name)]
    if not layers:
        return []
    # The text stack is the longest one. Nested stacks (T5's `block.0.layer.0`) are inside another's layer.
    outer = [n for n in layers if not any(n.startswith(other + ".") for other in layers)]
    stacks: dict[str, list[str]] = {}
    for name in outer:
        stacks.setdefault(name.rpartition(".")[0], []).append(name)
    stack = max(stacks.values(), key=len)
    stack.sort(key=lambda n: int(n.rpartition(".")[2]))
    first = [n for n in names if n in ("embeddings", f"{_WRAPPER}embeddings")]
    last = [n for n in names if n in ("final_layer_norm", f"{_WRAPPER}final_layer_norm")]
    return [*first, *stack, *last]


def _width(encoder: nn.Module, name: str) -> int | None:
    if name in _stations(encoder):
        return _hidden_size(encoder)
    module = encoder.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    # Gated MLPs of language models end in this projection. Their norms are custom classes with one weight.
    if isinstance(projection := getattr(module, "down_proj", None), nn.Linear):
        return projection.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter):
        return len(weight)
    return None


def _hidden_size(encoder: nn.Module) -> int | None:
    config = getattr(encoder, "config", None)
    config = getattr(config, "text_config", None) or config
    size = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    return int(size) if size is not None else None
