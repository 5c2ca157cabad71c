"""Features of a denoiser's blocks while it draws: patches by timestep, of the conditional branch.

A Site here is a block of the U-Net or transformer whose output is `[B, C, H, W]` or `[B, N, C]`; either way a feature
is one patch's vector `[C]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from excise.errors import ExciseError
from excise.sites.encoding import Enough
from excise.sites.language import LanguageModel
from excise.sites.site import DENOISERS, Site, resolve

BLOCKS: dict[str, tuple[Site, ...]] = {
    "sd15": (Site("unet", "up_blocks.1.attentions.1", 1280), Site("unet", "up_blocks.1.attentions.2", 1280)),
    "reference": (Site("unet", "up_blocks.1.attentions.0", 160),),
}
"""Sites by model: SAEuron's for objects and for styles, which SD 1.4 has too; and the bundled model's, for both."""


@dataclass(frozen=True)
class Patches:
    """What a block gave for a batch of prompts at one denoising step."""

    states: Tensor
    """`[B, N, C]`: N patches of every picture, on the denoiser's device and in its dtype."""
    timestep: float
    """As the denoiser was told."""
    step: int
    """Counted from 0."""
    numbers: tuple[int, ...]
    """Which prompts these are, counted from 0 over the whole stream: what their labels belong to."""


def block_site(pipe: Any, path: str, component: str | None = None) -> Site:
    """The Site of a denoiser's block, its width looked up. Raises ExciseError where there is no such block."""
    name, denoiser = denoiser_of(pipe, component)
    modules = dict(denoiser.named_modules())
    if not path or path not in modules:
        near = [n for n, m in modules.items() if _width(denoiser, m) is not None and n]
        raise ExciseError(f"{name} has no block {path!r}; it has {', '.join(near[:12])}")
    width = _width(denoiser, modules[path])
    if width is None:
        raise ExciseError(f"cannot tell how wide {name}/{path} is; choose an attention block of it")
    return Site(name, path, width)


def module_at(pipe: Any, site: Site) -> nn.Module:
    """The live module of a Site, in a text encoder or in a denoiser.

    Raises ExciseError where the pipeline lacks it, or its width differs.
    """
    if site.part == "text":
        return resolve(pipe, site)
    denoiser = denoiser_of(pipe, site.component)[1]
    module = _submodule(denoiser, site.path)
    if module is None or _width(denoiser, module) != site.width:
        block_site(pipe, site.path, site.component)  # where there is no such block, this says so
        raise ExciseError(f"{site.key} has another width here than {site.width}; it was named for another model")
    return module


def _submodule(denoiser: nn.Module, path: str) -> nn.Module | None:
    """What is at a path. Asked before every prompt for every edit, so it must not list all there is."""
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        return None


def layer_at(pipe: Any, site: Site) -> nn.Module:
    """The live Linear or Conv2d at a Site of a denoiser or a text encoder; of one that a LoRA wraps (PEFT's), that
    within.

    Raises ExciseError where there is none, its width differs, or it computes in a way of its own.
    """
    layer: Any
    if site.part == "text":
        name, layer = site.component, resolve(pipe, site)
    else:
        name, denoiser = denoiser_of(pipe, site.component)
        layer = _submodule(denoiser, site.path)
    layer = getattr(layer, "base_layer", layer)
    if getattr(type(layer), "forward", None) not in (nn.Linear.forward, nn.Conv2d.forward):
        raise ExciseError(
            f"{name} has no plain Linear or Conv2d at {site.path!r}; it is another model, or a quantised one"
        )
    if len(layer.weight) != site.width:
        raise ExciseError(
            f"{site.key} is {len(layer.weight)} wide here, not {site.width}; it was named for another model"
        )
    found: nn.Module = layer
    return found


def attention_at(pipe: Any, site: Site) -> nn.Module:
    """The live attention (diffusers' Attention) at a Site of a denoiser. Raises ExciseError where there is none, or its
    width differs."""
    name, denoiser = denoiser_of(pipe, site.component)
    module = _submodule(denoiser, site.path)
    width: Any = getattr(module, "out_dim", None)
    if module is None or width is None:
        raise ExciseError(f"{name} has no attention at {site.path!r}; it is another model")
    if int(width) != site.width:
        raise ExciseError(f"{site.key} is {width} wide here, not {site.width}; it was named for another model")
    return module


def check_reads_text(pipe: Any, method: str) -> None:
    """Raises ExciseError, naming the method that needs it, where a pipeline's U-Net hears no text: no attention of it
    looks at anything but the picture itself."""
    name, unet = denoiser_of(pipe)
    ways = ("is_cross_attention", "added_kv_proj_dim")
    if not any(getattr(layer, way, None) for layer in unet.modules() for way in ways):
        raise ExciseError(
            f"{method} needs a U-Net that hears the prompt by cross-attention (attn2), and {type(pipe).__name__}'s "
            f"{name} has none; choose a method that edits the text encoder, such as snce"
        )


def cross_attentions(pipe: Any, method: str) -> list[Site]:
    """Every cross-attention of a pipeline's U-Net, in its order. Raises ExciseError, naming the method that edits them,
    where it has none."""
    name, denoiser = denoiser_of(pipe)
    layers: dict[str, Any] = dict(denoiser.named_modules())
    found = [
        Site(name, path, int(layer.out_dim))
        for path, layer in layers.items()
        if path.endswith(".attn2") and hasattr(layer, "out_dim")
    ]
    if not found:
        raise ExciseError(
            f"{method} changes a denoiser's cross-attention (attn2), and {type(pipe).__name__} has none; choose a "
            "method that edits the text encoder, such as snce"
        )
    return found


def capture_blocks(
    pipe: Any,
    site: Site,
    prompts: Iterable[str],
    *,
    seeds: Iterable[int],
    steps: int = 20,
    wanted: Sequence[int] | None = None,
    batch_size: int = 8,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Patches]:
    """Draw every prompt from its own seed and give the block's patches, batch by batch and step by step.

    `wanted` are the steps to give, all of them by default; drawing stops after the last. `options` go to the pipeline
    (`guidance_scale`, `height`, ...). One batch's patches are held at a time, however many prompts there are. The same
    arguments give the same bits. Raises ExciseError for an unknown block, steps that are none of those drawn, fewer
    seeds than prompts, or a pipeline that starts from a picture, whose scheduler has more timesteps than steps, or that
    encodes both branches of guidance in separate runs.
    """
    chosen = sorted(set(range(steps) if wanted is None else wanted))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < steps:
        raise ExciseError(f"steps {chosen} are not among the {steps} that are drawn")
    _, denoiser = denoiser_of(pipe, site.component)
    block = module_at(pipe, site)
    if "image" in inspect.signature(pipe.__call__).parameters:
        raise ExciseError(
            f"{type(pipe).__name__} starts from a picture; capture with the text-to-image pipeline of its components"
        )
    stream, numbers = iter(prompts), iter(seeds)
    first = 0
    while batch := list(islice(stream, batch_size)):
        own = list(islice(numbers, len(batch)))
        if len(own) < len(batch):
            raise ExciseError("there are fewer seeds than prompts; give each prompt its seed")
        seen = _drawn(pipe, denoiser, block, site, batch, own, steps, chosen, dict(options or {}))
        for step, (timestep, states) in seen.items():
            yield Patches(states, timestep, step, tuple(range(first, first + len(batch))))
        first += len(batch)


@torch.no_grad()
def _drawn(
    pipe: Any,
    denoiser: nn.Module,
    block: nn.Module,
    site: Site,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    chosen: list[int],
    options: dict[str, Any],
) -> dict[int, tuple[float, Tensor]]:
    """Timestep and conditional patches `[B, N, C]` by step, of one batch."""
    seen: dict[int, tuple[float, Tensor]] = {}
    told: list[float] = []

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = float(timestep_of(module, args, kwargs)[1].flatten()[0])
        if not told and (known := len(set(map(float, getattr(pipe.scheduler, "timesteps", ()))))) > steps:
            raise ExciseError(
                f"{type(pipe.scheduler).__name__} asks the denoiser at {known} timesteps in {steps} steps; use a "
                "scheduler that asks at one a step"
            )
        if not told or now != told[-1]:
            told.append(now)
        elif [float(t) for t in pipe.scheduler.timesteps].count(now) < 2:  # PNDM has one of its timesteps twice
            raise ExciseError(
                f"{type(pipe).__name__} runs its denoiser twice a step, once for each branch of guidance; draw without "
                "guidance to capture the conditional one"
            )

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        step = len(told) - 1
        if step in chosen and step not in seen:
            patches = as_patches(output)
            if patches.shape[0] not in (len(prompts), 2 * len(prompts)) or patches.shape[-1] != site.width:
                raise ExciseError(
                    f"{site.key} gave {tuple(patches.shape)}, not one picture a prompt, {site.width} wide"
                )
            seen[step] = told[-1], patches[-len(prompts) :].clone()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if len(told) > chosen[-1]:
            raise Enough

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(keep).remove)
        stack.callback(denoiser.register_forward_hook(end).remove)
        # Compiled code has no place for hooks that were not there when it was compiled.
        with suppress(Enough), torch.compiler.set_stance("force_eager"):
            pipe(
                prompts,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **options,
            )
    if missing := [step for step in chosen if step not in seen]:
        raise ExciseError(f"{site.key} did not run in step {missing[0]} of {steps}; choose another block")
    return seen


def as_patches(output: Any) -> Tensor:
    """A block's output as patches `[B, N, C]`: of `[B, C, H, W]`, `[B, N, C]`, or a tuple or model output whose last
    tensor is one of those (transformers give their text first)."""
    parts = list(output.values()) if isinstance(output, dict) else output
    state = parts if isinstance(parts, Tensor) else [part for part in parts if isinstance(part, Tensor)][-1]
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state


def from_patches(patches: Tensor, like: Any) -> Any:
    """`as_patches` undone: the output `like` with these patches `[B, N, C]` in the place of its own."""
    if isinstance(like, Tensor):
        return patches.transpose(1, 2).reshape(like.shape) if like.ndim == 4 else patches
    if isinstance(like, dict):
        name = [key for key, part in like.items() if isinstance(part, Tensor)][-1]
        made = type(like)(**like)
        made[name] = from_patches(patches, like[name])
        return made
    at = [n for n, part in enumerate(like) if isinstance(part, Tensor)][-1]
    return type(like)([*like[:at], from_patches(patches, like[at]), *like[at + 1 :]])


def denoisers(pipe: Any) -> list[nn.Module]:
    """What turns text states into a picture: U-Net or transformer, or the two transformers of some pipelines.

    Of one that `torch.compile` wraps, the module within.
    """
    found = (getattr(pipe, name, None) for name in DENOISERS)
    return [getattr(module, "_orig_mod", module) for module in found if isinstance(module, nn.Module)]


def denoiser_of(pipe: Any, component: str | None = None) -> tuple[str, nn.Module]:
    """A denoiser and its name, the first one by default; of one that `torch.compile` wraps, the module within.

    Raises ExciseError where the pipeline has none.
    """
    for name in (component,) if component else DENOISERS:
        found = getattr(pipe, name, None)
        if isinstance(found, nn.Module):
            return name, getattr(found, "_orig_mod", found)
    if isinstance(pipe, LanguageModel):
        raise ExciseError("a language model draws no pictures; choose what works on text states, such as snce")
    raise ExciseError(f"{type(pipe).__name__} has no {component or 'denoiser'}; choose another Site")


def _width(denoiser: nn.Module, module: nn.Module) -> int | None:
    """Of a block's patches: a Transformer2DModel's channels, or the one width that a transformer's blocks all have."""
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
    """Where a denoiser's timestep is among its arguments, and the timestep as a tensor.

    Raises ExciseError where it was given none.
    """
    at: int | str = "timestep"
    if "timestep" not in kwargs:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        at = names.index("timestep") if "timestep" in names else len(args)
        if at >= len(args):
            raise ExciseError(f"{type(module).__name__} was run without a timestep, which its blocks are told apart by")
    given = kwargs["timestep"] if isinstance(at, str) else args[at]
    return at, given if isinstance(given, Tensor) else torch.tensor(given)
