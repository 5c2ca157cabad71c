"""Sites in denoisers: blocks, attentions, single layers, and the whole U-Net.

The Site of a block is in a U-Net or transformer and has outputs `[B, C, H, W]` or `[B, N, C]`. In both cases a feature
is one patch's vector `[C]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from excise.errors import ExciseError, NotFound, WrongModel
from excise.pipeline import Pipeline
from excise.sites.language import LanguageModel
from excise.sites.site import DENOISERS, Site, resolve, text_encoders

BLOCKS: dict[str, tuple[Site, ...]] = {
    "sd15": (Site("unet", "up_blocks.1.attentions.1", 1280), Site("unet", "up_blocks.1.attentions.2", 1280)),
    "reference": (Site("unet", "up_blocks.1.attentions.0", 160),),
}
"""Sites by model: SAEuron's for objects and for styles (also in SD 1.4), and the bundled model's, for both."""


def block_site(pipe: Pipeline, path: str, component: str | None = None) -> Site:
    """Return the Site of a denoiser's block, with its width. Raise ExciseError if there is no such block."""
    name, denoiser = denoiser_of(pipe, component)
    modules = dict(denoiser.named_modules())
    if not path or path not in modules:
        near = [n for n, m in modules.items() if _width(denoiser, m) is not None and n]
        raise NotFound(f"{name} has no block {path!r}; it has {', '.join(near[:12])}")
    width = _width(denoiser, modules[path])
    if width is None:
        raise ExciseError(f"the width of {name}/{path} is unknown; choose an attention block")
    return Site(name, path, width)


def module_at(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live module of a Site, in a text encoder or a denoiser.

    Raises ExciseError if it is missing, or its width differs.
    """
    if site.part == "text":
        return resolve(pipe, site)
    denoiser = denoiser_of(pipe, site.component)[1]
    module = _submodule(denoiser, site.path)
    if module is None or _width(denoiser, module) != site.width:
        block_site(pipe, site.path, site.component)  # raises if there is no such block
        raise WrongModel(f"{site.key} has another width here than {site.width}; use a Site of this model")
    return module


def _submodule(denoiser: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, if any. Called before every prompt for every edit, so it must not list all
    modules."""
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        return None


def layer_at(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live Linear or Conv2d at a Site, unwrapped from a LoRA (PEFT).

    Raises WrongModel if there is none, its width differs, or it has a custom `forward`.
    """
    layer: Any
    if site.part == "text":
        name, layer = site.component, resolve(pipe, site)
    else:
        name, denoiser = denoiser_of(pipe, site.component)
        layer = _submodule(denoiser, site.path)
    layer = getattr(layer, "base_layer", layer)
    if getattr(type(layer), "forward", None) not in (nn.Linear.forward, nn.Conv2d.forward):
        raise WrongModel(
            f"{name} has no plain Linear or Conv2d at {site.path!r}; it is another model, or a quantised one"
        )
    if len(layer.weight) != site.width:
        raise WrongModel(f"{site.key} has width {len(layer.weight)} here, not {site.width}; use a Site of this model")
    found: nn.Module = layer
    return found


def attention_at(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live attention (diffusers' Attention) at a Site of a denoiser. Raise WrongModel if there is none, or
    its width differs."""
    name, denoiser = denoiser_of(pipe, site.component)
    module = _submodule(denoiser, site.path)
    width: Any = getattr(module, "out_dim", None)
    if module is None or width is None:
        raise WrongModel(f"{name} has no attention at {site.path!r}; it is another model")
    if int(width) != site.width:
        raise WrongModel(f"{site.key} has width {width} here, not {site.width}; use a Site of this model")
    return module


def check_reads_text(pipe: Pipeline, method: str) -> None:
    """Raise WrongModel, naming the method, if no attention of a pipeline's U-Net attends to text."""
    name, unet = denoiser_of(pipe)
    signs = ("is_cross_attention", "added_kv_proj_dim")
    if not any(getattr(layer, sign, None) for layer in unet.modules() for sign in signs):
        raise WrongModel(
            f"{method} needs a U-Net that reads the prompt by cross-attention (attn2), and {type(pipe).__name__}'s "
            f"{name} has none; choose a method that edits the text encoder, such as snce"
        )


def cross_attentions(pipe: Pipeline, method: str) -> list[Site]:
    """Return every cross-attention of a pipeline's U-Net, in order. Raise WrongModel, naming the method, if it has
    none."""
    name, denoiser = denoiser_of(pipe)
    layers: dict[str, Any] = dict(denoiser.named_modules())
    found = [
        Site(name, path, int(layer.out_dim))
        for path, layer in layers.items()
        if path.endswith(".attn2") and hasattr(layer, "out_dim")
    ]
    if not found:
        raise WrongModel(
            f"{method} changes a denoiser's cross-attention (attn2), and {type(pipe).__name__} has none; choose a "
            "method that edits the text encoder, such as snce"
        )
    return found


def as_patches(output: Any) -> Tensor:
    """Return a block's output as patches `[B, N, C]`.

    The output is `[B, C, H, W]`, `[B, N, C]`, or a tuple or model output whose last tensor is one of these:
    transformers return their text first.
    """
    parts = list(output.values()) if isinstance(output, dict) else output
    state = parts if isinstance(parts, Tensor) else [part for part in parts if isinstance(part, Tensor)][-1]
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state


def from_patches(patches: Tensor, like: Any) -> Any:
    """Undo `as_patches`: return the output `like` with these patches `[B, N, C]`."""
    if isinstance(like, Tensor):
        return patches.transpose(1, 2).reshape(like.shape) if like.ndim == 4 else patches
    if isinstance(like, dict):
        name = [key for key, part in like.items() if isinstance(part, Tensor)][-1]
        made = type(like)(**like)
        made[name] = from_patches(patches, like[name])
        return made
    at = [n for n, part in enumerate(like) if isinstance(part, Tensor)][-1]
    return type(like)([*like[:at], from_patches(patches, like[at]), *like[at + 1 :]])


def denoisers(pipe: Pipeline) -> list[nn.Module]:
    """Return the pipeline's denoisers: a U-Net or transformer, or both transformers of some pipelines.

    Compiled ones are unwrapped.
    """
    found = (getattr(pipe, name, None) for name in DENOISERS)
    return [getattr(module, "_orig_mod", module) for module in found if isinstance(module, nn.Module)]


def denoiser_of(pipe: Pipeline, component: str | None = None) -> tuple[str, nn.Module]:
    """Return the name of a denoiser and the denoiser, unwrapped if compiled. The default is the first one.

    Raises ExciseError if the pipeline has none.
    """
    for name in (component,) if component else DENOISERS:
        found = getattr(pipe, name, None)
        if isinstance(found, nn.Module):
            return name, getattr(found, "_orig_mod", found)
    if isinstance(pipe, LanguageModel):
        raise WrongModel("a language model generates no images; choose a method for text states, such as snce")
    raise NotFound(f"{type(pipe).__name__} has no {component or 'denoiser'}; choose another Site")


def _width(denoiser: nn.Module, module: nn.Module) -> int | None:
    """Return the width of a block's patches: a Transformer2DModel's channels, or a transformer's inner width."""
    config: Any = getattr(module, "config", None)
    if type(module).__name__ == "Transformer2DModel":
        return int(config.in_channels)
    if not type(module).__name__.endswith("Block") or type(denoiser).__name__.startswith("UNet"):
        return None
    whole: Any = denoiser.config
    heads, size = getattr(whole, "num_attention_heads", None), getattr(whole, "attention_head_dim", None)
    inner = getattr(denoiser, "inner_dim", None) or (heads and size and heads * size)
    return int(inner) if inner else None


def timestep_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int | str, Tensor]:
    """Return the position or name of a denoiser's timestep among its arguments, and the timestep as a tensor.

    Raises ExciseError if it is missing.
    """
    at: int | str = "timestep"
    if "timestep" not in kwargs:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        at = names.index("timestep") if "timestep" in names else len(args)
        if at >= len(args):
            raise ExciseError(f"{type(module).__name__} was called without a timestep; pass one, the edit needs it")
    given = kwargs["timestep"] if isinstance(at, str) else args[at]
    return at, given if isinstance(given, Tensor) else torch.tensor(given)


def whole(pipe: Pipeline, method: str) -> Site:
    """Return the Site of a pipeline's whole U-Net.

    Raises WrongModel if it has no U-Net that reads text states, or several text encoders.
    """
    name, unet = denoiser_of(pipe)
    reads = inspect.signature(type(unet).forward).parameters
    if name != "unet" or "encoder_hidden_states" not in reads or len(text_encoders(pipe)) != 1:
        raise WrongModel(
            f"{method} needs a U-Net that reads one text encoder's states, as in Stable Diffusion 1 and 2; "
            f"{type(pipe).__name__} is another kind: choose another method, such as snce"
        )
    check_reads_text(pipe, method)
    config: Any = unet.config
    return Site("unet", "", int(config.out_channels))


def unet_at(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live U-Net of the Site of a whole U-Net. Raise ExciseError if it is missing or differs."""
    unet = denoiser_of(pipe, site.component)[1]
    if int(getattr(unet.config, "out_channels", 0)) != site.width:
        raise WrongModel(f"{site.component} has another number of channels here than {site.width}; it is another model")
    return unet
