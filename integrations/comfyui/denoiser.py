"""Erasers on ComfyUI's MODEL: changed weights, and edits of a U-Net's blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from excise.erasers.apply.shared_gates import SharedGates
from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.weight_digest import plain, weights_digest
from excise.erasers.edits.base import StepInfo, without
from excise.erasers.edits.block_sae import BlockEdit, OpenGates
from excise.erasers.edits.vectors import DirectionEdit, GatedDirectionEdit
from excise.erasers.edits.weights import CopyEdit, PromptScaledEdit, WeightEdit
from excise.errors import EraserDidNotFire, InvalidSetting, WrongModel
from excise.sites.denoiser import as_patches, from_patches

from .injection import KEY, Wrapped, add_to, check_strength
from .weights import own_weight

log = logging.getLogger("excise")
_ENDINGS = (".norm.weight", ".to_q.weight", ".norm1.weight", ".weight")
"""Names of a weight in each kind of module that an edit can be at."""


def applied_to_model(model: Any, eraser: Artefact, strength: float = 1.0, strict: bool = True) -> Any:
    """Return a copy of a MODEL with an eraser of a denoiser. The MODEL is not changed.

    Args:
        model: ComfyUI's MODEL: Stable Diffusion 1.x, 2.x or XL, or the demo model.
        eraser: An eraser whose edits are changed weights, or edits of blocks.
        strength: From 0 to 2; 1 is the strength of the fit.
        strict: Refuse other weights than those of the fit.

    Raises:
        ExciseError: The eraser is of another kind, does not fit the model, or edits what another one does.
    """
    check_strength(strength)
    refuse_kinds(eraser)
    names = names_of(model.model)
    there = model.get_attachment(KEY) or ()
    if not matches(model, eraser, names):
        message = f"eraser {eraser.name!r} was made for another denoiser"
        if strict:
            raise WrongModel(f"{message}: its weights differ; use its model, or switch strict off to try it")
        log.warning("%s", message)
    made = model.clone()
    blocks = []
    for edit in eraser.edits:
        if isinstance(edit, WeightEdit):
            key = key_of(names, edit.site.path, (".weight",))
            weight = comfy.utils.get_attr(model.model, key)
            if key not in made.add_patches({key: ("diff", (edit.of(weight),))}, strength):
                raise WrongModel(f"ComfyUI did not take the change of {edit.site.path}; use the eraser's model")
        elif isinstance(edit, BlockEdit | DirectionEdit):
            key = key_of(names, edit.site.path, _ENDINGS)
            blocks.append((key, edit))
    if not strength:
        return made
    mine = Placed(eraser.digest, eraser.name, tuple(key for key, _ in blocks))
    mine.refuse(there)
    made.set_attachments(KEY, (*there, mine))
    if blocks:
        _inject(made, Blocks(eraser, blocks, strength))
    return made


class Placed(NamedTuple):
    """An eraser on a MODEL, and the blocks that it edits."""

    digest: str
    name: str
    blocks: tuple[str, ...]

    def refuse(self, others: tuple[Placed, ...]) -> None:
        """Raise InvalidSetting if one of `others` is the same eraser, or if a block has two edits.

        Two edits of a block would run one after the other. In diffusers both read what the model made.
        """
        if any(self.digest == other.digest for other in others):
            raise InvalidSetting(f"eraser {self.name!r} is applied twice; set its strength in one node")
        taken = {key: other.name for other in others for key in other.blocks}
        for n, key in enumerate(self.blocks):
            if key in taken or key in self.blocks[:n]:
                raise InvalidSetting(
                    f"erasers {taken.get(key, self.name)!r} and {self.name!r} both edit {key}, which ComfyUI cannot do "
                    "at once; leave one out"
                )


def refuse_kinds(eraser: Artefact) -> None:
    """Raise InvalidSetting unless all edits are changed weights or edits of blocks of a denoiser."""
    for edit in eraser.edits:
        if edit.site.part == "text":
            raise InvalidSetting(f"eraser {eraser.name!r} edits a text encoder; use Apply Eraser on the CLIP")
        fits = isinstance(edit, WeightEdit | BlockEdit | DirectionEdit)
        if not fits or isinstance(edit, PromptScaledEdit | CopyEdit):
            raise InvalidSetting(f"eraser {eraser.name!r} ({eraser.method}) is of a kind that ComfyUI cannot apply")
        if isinstance(edit, BlockEdit) and edit.needs_sae:
            raise InvalidSetting(f"eraser {eraser.name!r} needs its whole SAE; fit one with codes=whole for ComfyUI")


def names_of(model: Any) -> dict[str, str]:
    """Return the names of a U-Net's weights in ComfyUI, by those in diffusers. Raise WrongModel for others."""
    prefix = "diffusion_model."
    inner = getattr(model.diffusion_model, "inner", None)  # the demo model
    if inner is not None:
        return {name: f"{prefix}inner.{name}" for name in inner.state_dict()}
    found = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    there = model.state_dict()
    if not found:
        raise WrongModel("this MODEL is not a U-Net of Stable Diffusion; other denoisers cannot be edited in ComfyUI")
    return {name: prefix + key for name, key in found.items() if prefix + key in there}


def matches(model: Any, eraser: Artefact, names: dict[str, str]) -> bool:
    """Whether the eraser was made for this denoiser's own weights, without LoRAs, up to rounding to its dtype."""
    known = eraser.made_for.get("denoisers", {}).get("unet")
    if not isinstance(known, dict):
        return False
    state = model.model.state_dict()

    def weight(name: str) -> Tensor:
        return own_weight(model, names[name], state[names[name]])

    half = weight(next(iter(names))).dtype == torch.bfloat16
    return weights_digest(plain(names), weight) in known.get("bfloat16" if half else "float16", [])


def key_of(names: dict[str, str], path: str, endings: tuple[str, ...]) -> str:
    """Return the name in ComfyUI of the module at diffusers' `path`, or of its weight with the one ending ".weight".

    Raises WrongModel if ComfyUI has no such module.
    """
    for ending in endings:
        if (key := names.get(path + ending)) is not None:
            return key if endings == (".weight",) else key.removesuffix(ending)
    raise WrongModel(f"ComfyUI has no {path} in this U-Net; use the eraser's model")


class Blocks:
    """Edits of blocks in one MODEL, which run at every denoising step."""

    def __init__(self, eraser: Artefact, edits: list[tuple[str, BlockEdit | DirectionEdit]], strength: float) -> None:
        self.eraser, self.edits, self.strength = eraser, edits, strength
        # Each sampling closes them, and some samplers go back to a higher noise level within one.
        shared = SharedGates(rising=False)
        self.gates = [shared if isinstance(e, GatedDirectionEdit) else OpenGates(rising=False) for _, e in edits]
        self.step: StepInfo | None = None
        self.ran: set[str] = set()
        self.made: dict[int, list[Wrapped]] = {}

    def inject(self, patcher: Any) -> None:
        """Wrap the blocks of `patcher`'s model."""
        made = self.made.setdefault(id(patcher), [])
        for (key, edit), gates in zip(self.edits, self.gates, strict=True):
            module: nn.Module = patcher.model.get_submodule(key)
            made.append(Wrapped(module, "forward", id(patcher), self._around(key, edit, gates)))

    def eject(self, patcher: Any) -> None:
        """Unwrap what `patcher` wrapped."""
        for each in reversed(self.made.pop(id(patcher), [])):
            each.end()

    def _around(self, key: str, edit: BlockEdit | DirectionEdit, gates: OpenGates) -> Callable[..., Any]:
        there = edit

        def around(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal there
            output = inner(*args, **kwargs)
            self.ran.add(key)
            if self.step is None:
                raise EraserDidNotFire(f"a block of eraser {self.eraser.name!r} ran without a denoising step")
            patches = as_patches(output)
            if there.device != patches.device:
                there = edit.to(patches.device)
            delta = there.delta(patches, self.strength, step=self.step, opened=gates)
            return output if delta is None else from_patches(without(patches, delta), output)

        return around

    def at_step(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the model once, at the noise level `t` `[B]`. Raise EraserDidNotFire if a block did not run."""
        timesteps = tuple(executor.class_obj.model_sampling.timestep(t).float().reshape(-1).tolist())
        same = len(set(timesteps)) == 1
        self.step, self.ran = StepInfo(timesteps[:1] if same else timesteps, same), set()
        try:
            made = executor(x, t, *args, **kwargs)
        finally:
            self.step = None
        if missing := [key for key, _ in self.edits if key not in self.ran]:
            raise EraserDidNotFire(f"{missing[0]} did not run, where eraser {self.eraser.name!r} acts; nothing is made")
        return made

    def at_start(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Close all gates before another sampling."""
        for gates in self.gates:
            gates.begin()
        return executor(*args, **kwargs)


def _inject(model: Any, blocks: Blocks) -> None:
    key = add_to(model, blocks)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, blocks.at_step)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, blocks.at_start)
