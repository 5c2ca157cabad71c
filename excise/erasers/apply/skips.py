"""Modulation of a U-Net's skip connections by an edited copy of its encoder, which reads the same input (DuMo).

The copy runs in parallel to the encoder, block by block, within the same U-Net call. Only the skip connections to the
decoder change. The states that pass from block to block, through the middle and into the decoder stay the U-Net's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.apply.weights import WeightHook, put_hook
from excise.erasers.edits.skips import ModulationEdit
from excise.erasers.edits.weights import CopyEdit
from excise.erasers.hooks.context import is_muted
from excise.erasers.hooks.edit_hook import EditHook
from excise.erasers.hooks.timestep import TimestepHook
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sites.denoiser import unet_at
from excise.sites.site import Site

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

_COPYING: ContextVar[object | None] = ContextVar("excise_copying", default=None)
"""Owner of the encoder copy that runs now: an attachment or a training."""
_PARTS = ("time_proj", "conv_in", "down_blocks", "up_blocks")


def skips_of(unet: nn.Module) -> int:
    """Return the number of skip connections of a U-Net. Raise ExciseError if it is not built like diffusers'."""
    if missing := [part for part in _PARTS if getattr(unet, part, None) is None]:
        raise ExciseError(f"{type(unet).__name__} has no {missing[0]}, so its encoder is unknown; use diffusers' U-Net")
    blocks: Any = unet.up_blocks
    return sum(len(block.resnets) for block in blocks)


def modulated_at(pipe: Pipeline, site: Site) -> nn.Module:
    """Return the live U-Net at a Site. Raise ExciseError if it is missing, differs, or has no skip connections."""
    unet = unet_at(pipe, site)
    skips_of(unet)
    return unet


@dataclass(eq=False)
class _Pass:
    """One call of a U-Net in one thread."""

    alpha: Tensor
    """Coefficients `[B, l]`."""
    hidden: Tensor | None = None
    """The copy's current hidden states."""
    apart: list[Tensor] = field(default_factory=list)
    """Differences g - f (copy minus U-Net) of the skip connections that the decoder has not read yet."""


CopyOf = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Runs the copy of an encoder part, given its path, the part and its arguments."""


class Skips:
    """Hooks that run its `owner`'s copy of a U-Net's encoder in parallel and modulate the skip connections.

    `coefficients` returns α `[B, l]` at timesteps `[B]`, or None to leave a call alone. `done` is called with the batch
    size after all skip connections of a call were modulated.
    """

    def __init__(
        self,
        unet: nn.Module,
        owner: object,
        coefficients: Callable[[Tensor], Tensor | None],
        copied: CopyOf,
        done: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._count, self._here = skips_of(unet), threading.local()
        self._owner, self._coefficients, self._copied, self._done = owner, coefficients, copied, done
        live: Any = unet
        encoder = {"conv_in": live.conv_in} | {f"down_blocks.{n}": block for n, block in enumerate(live.down_blocks)}
        self._handles = [
            live.time_proj.register_forward_pre_hook(self._begin),
            *(
                part.register_forward_hook(partial(self._run_copy, path), with_kwargs=True)
                for path, part in encoder.items()
            ),
            *(block.register_forward_pre_hook(self._modulated, with_kwargs=True) for block in live.up_blocks),
        ]

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        alpha = self._coefficients(args[0])
        self._here.now = None if alpha is None else _Pass(alpha)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run_copy(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        now: _Pass | None = getattr(self._here, "now", None)
        if now is None or _COPYING.get() is not None:
            return
        if now.hidden is not None:
            kwargs = {**kwargs, "hidden_states": now.hidden}
        token = _COPYING.set(self._owner)
        try:
            made = self._copied(path, module, args, kwargs)
        finally:
            _COPYING.reset(token)
        now.hidden, others = (made, (made,)) if isinstance(made, Tensor) else made
        skips = (output,) if isinstance(output, Tensor) else output[1]
        now.apart += [other - skip for other, skip in zip(others, skips, strict=True)]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _modulated(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now: _Pass | None = getattr(self._here, "now", None)
        if now is None:
            return None
        skips = kwargs["res_hidden_states_tuple"]
        if now.hidden is not None and (now.alpha.shape[1] != self._count or len(now.apart) != self._count):
            raise ExciseError(
                f"the U-Net has {self._count} skip connections, {len(now.apart)} of them were run, and the eraser has "
                f"{now.alpha.shape[1]} coefficients; use the U-Net that it was fitted on"
            )
        now.hidden, start = None, len(now.apart) - len(skips)
        changed = tuple(
            skip + now.alpha[:, start + n].reshape(-1, 1, 1, 1).to(skip) * now.apart[start + n]
            for n, skip in enumerate(skips)
        )
        del now.apart[start:]
        if not now.apart:
            self._here.now = None
            self._done(len(now.alpha))
        return args, {**kwargs, "res_hidden_states_tuple": changed}


@contextmanager
def modulating(
    unet: nn.Module, coefficients: Callable[[Tensor], Tensor], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Modulate the U-Net's calls. `weights` are the copy's, under the U-Net's parameter names."""

    def copied(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = f"{path}."
        own = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
        return torch.func.functional_call(module, own, args, kwargs)

    skips = Skips(unet, copied, coefficients, copied)
    try:
        yield
    finally:
        skips.remove()


class ModulationHook(EditHook):
    """A modulation in action."""

    edit: ModulationEdit
    on_device: ModulationEdit

    def __init__(self, attachment: Host, edit: ModulationEdit, unet: nn.Module) -> None:
        super().__init__(attachment, edit)
        self.skips = Skips(unet, attachment, self._coefficients, self._copied, self._done)

    def _coefficients(self, timesteps: Tensor) -> Tensor | None:
        attachment = self.attachment
        if not attachment.active or is_muted(attachment, self.edit.site.part):
            return None
        self.move(timesteps.device)
        return self.on_device.at(timesteps) * attachment.strength

    def _copied(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return module(*args, **kwargs)

    def _done(self, rows: int) -> None:
        # Counted at the end, so that the timestep hook notices if a hook was removed.
        self._here.runs = self.runs + 1
        self.counters.add(rows)


def put(attachment: Host, edit: ModulationEdit, unet: nn.Module) -> tuple[ModulationHook, Callable[[], None]]:
    """Install the edit at its U-Net's skip connections. Return its hook, and a function that removes it."""
    hook = ModulationHook(attachment, edit, unet)
    timesteps = TimestepHook.join(unet, hook)

    def off() -> None:
        hook.skips.remove()
        timesteps.leave(unet, hook)

    return hook, off


class CopyHook(WeightHook):
    """A change of one layer's weights, active while its attachment's copy of the encoder runs."""

    def amount(self) -> float:
        if not self.acts or _COPYING.get() is not self.attachment:
            return 0.0
        self.counters.add(1)
        return 1.0


def put_copy(attachment: Host, edit: CopyEdit, layer: nn.Module) -> tuple[WeightHook, Callable[[], None]]:
    """Install the edit at its layer. Return its hook, and a function that removes it."""
    return put_hook(CopyHook(attachment, edit), layer)
