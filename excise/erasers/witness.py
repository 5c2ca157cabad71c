"""Witness: stands before the denoiser and knows which text states came out of an edited encoder.

A wrapped encoder layer cannot notice that nobody called it. The witness can: states that no edited encoder made are a
way round the eraser, whichever pipeline the denoiser and the encoder are shared with.
"""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from excise.erasers.guard import is_muted, version_of

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment

NAME = "excise.witness"
REMEMBERED = 4096
"""Rows of text states whose digests are kept, the latest ones."""


class Scribe(ModelHook):  # type: ignore[misc]
    """A hook on the text encoder: what it makes while every edit in it runs, the witness may let pass.

    So a pipeline of the same components stays usable, although nobody guards its `encode_prompt`.
    """

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self.witness = witness
        self._before: dict[int, int] = {}

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._before = self._runs()
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        runs = self._runs()
        if runs and all(n > self._before.get(edit, 0) for edit, n in runs.items()):
            self.witness.add(output[0] if isinstance(output, tuple) else output.last_hidden_state)
        return output

    def _runs(self) -> dict[int, int]:
        """How often every edit that should act has run."""
        live = [a for a in self.witness.attachments if a.active and not is_muted(a)]
        return {id(hook): hook.runs for attachment in live for hook in attachment.hooks}


class Witness(ModelHook):  # type: ignore[misc]
    """A hook on the denoiser, shared by everything attached to the pipelines it is part of."""

    def __init__(self) -> None:
        super().__init__()
        self.attachments: list[Attachment] = []
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._passed: tuple[weakref.ref[Tensor], int] | None = None

    @classmethod
    def of(cls, denoiser: nn.Module | None) -> Witness | None:
        """The witness at `denoiser`, if there is one."""
        registry = getattr(denoiser, "_diffusers_hook", None)
        found = registry.get_hook(NAME) if registry is not None else None
        return found if isinstance(found, cls) else None

    @classmethod
    def join(cls, pipe: Any, attachment: Attachment) -> Witness | None:
        """Add `attachment` to the witness at the pipeline's denoiser, putting one there first where there is none.

        None where the denoiser cannot be watched so: it reads more than one encoder's last states, or it is compiled
        and would have to be traced anew.
        """
        denoiser = watched(pipe)
        if denoiser is None:
            return None
        witness = cls.of(denoiser)
        if witness is None:
            witness = cls()
            install(denoiser, witness, NAME)
            install(pipe.text_encoder, Scribe(witness), NAME)
        witness.attachments.append(attachment)
        return witness

    def leave(self, pipe: Any, attachment: Attachment) -> None:
        """Take `attachment` off; the last one out leaves no trace."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
            if not self.attachments:
                remove(pipe.unet, NAME)
                remove(pipe.text_encoder, NAME)

    def add(self, made: Any) -> None:
        """Remember every row of the text states in `made`, a tensor or a nest of them."""
        for tensor in tensors_of(made):
            if tensor.ndim == 3:
                self._known.update(dict.fromkeys(map(row_digest, tensor)))
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Nothing that was encoded before counts any more: an eraser was attached, scaled or switched."""
        self._known.clear()
        self._passed = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        live = [a for a in self.attachments if a.active and not is_muted(a)]
        if live:
            self._check(_states(module, args, kwargs), live)
        return args, kwargs

    def _check(self, states: Any, live: list[Attachment]) -> None:
        if not isinstance(states, Tensor):
            return
        if self._passed is not None and self._passed[0]() is states and self._passed[1] == version_of(states):
            return  # the same states in every denoising step
        if not all(digest in self._known for digest in map(row_digest, states)):
            for attachment in live:
                attachment.bypass(
                    f"the denoiser was given text states that were not encoded under eraser {attachment.name!r}; pass "
                    "the prompt as text, to the pipeline that it is attached to"
                )
        self._passed = (weakref.ref(states), version_of(states))


def watched(pipe: Any) -> nn.Module | None:
    """The denoiser of a pipeline whose one text encoder's last states are what it reads (Stable Diffusion 1 and 2)."""
    denoiser = getattr(pipe, "unet", None)
    components = getattr(pipe, "components", {})
    several = any(name.startswith("text_encoder_") and part is not None for name, part in components.items())
    if not isinstance(denoiser, nn.Module) or several or hasattr(denoiser, "_orig_mod"):
        return None
    return denoiser


def install(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Wrap `module.forward` with a hook, remembering whether the registry it needs was there before."""
    fresh = not hasattr(module, "_diffusers_hook")
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if fresh:
        registry.excise_made_it = True
    registry.register_hook(hook, name)


def remove(module: nn.Module, name: str) -> None:
    """Unhook, and leave no trace where the registry was ours and nobody else uses it now."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None:
        return
    registry.remove_hook(name, recurse=False)
    if registry.hooks:
        return
    own = vars(module).get("forward")
    if getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    if getattr(registry, "excise_made_it", False):
        del module._diffusers_hook


def tensors_of(made: Any) -> Iterable[Tensor]:
    """Every tensor in a nest of tuples, lists and dicts."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, dict):
        for part in made.values():
            yield from tensors_of(part)
    elif isinstance(made, tuple | list):
        for part in made:
            yield from tensors_of(part)


def row_digest(row: Tensor) -> bytes:
    """Of one prompt's states `[T, d]`: their values, whatever device or dtype wide enough holds them."""
    return hashlib.sha256(row.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).digest()


def _states(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The text states among a denoiser's arguments."""
    if "encoder_hidden_states" in kwargs:
        return kwargs["encoder_hidden_states"]
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    at = names.index("encoder_hidden_states") if "encoder_hidden_states" in names else len(args)
    return args[at] if at < len(args) else None
