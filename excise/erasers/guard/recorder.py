"""EncoderRecorder: notes the text states that an edited encoder returns, so that the denoiser's guard knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from excise.erasers.hooks.context import CALL, ERASED, KNOWN_VECTORS, SPARED, Call, current_call
from excise.erasers.hooks.host import Acting, Host
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.erasers.hooks.setting import Key
from excise.erasers.hooks.wrapping import Watch
from excise.pipeline import Pipeline
from excise.sites.encoding import handed_on, tensors_of
from excise.sites.families import family_of
from excise.sites.site import shows_from, taps_of, text_encoders


class Keeper(Protocol):
    """What a recorder needs of `excise.erasers.guard.denoiser.DenoiserGuard`."""

    @property
    def live(self) -> list[Host]:
        """Attachments whose text edits should act in this thread."""
        ...

    @property
    def setting(self) -> Key:
        """This image's setting."""
        ...

    @property
    def known_vectors(self) -> KnownVectors:
        """Vectors that edited encoders made under it."""
        ...

    def add(self, states: Sequence[Tensor], *, spared: bool = False, erased: bool = False) -> None:
        """Accept states that were encoded under it."""
        ...

    def add_erased(self, states: Sequence[Tensor]) -> None:
        """Remember that something was erased from `states`."""
        ...


class EncoderRecorder(Watch):
    """A hook on a text encoder that adds its output to the known vectors if every edit in it ran.

    This keeps other pipelines of the same components usable, although their `encode_prompt` has no guard.
    """

    def __init__(self, guard: Keeper, component: str, module: nn.Module) -> None:
        super().__init__()
        self.denoiser_guard, self.component, self.module = guard, component, module
        self._taps: dict[type, list[int]] = {}

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        # For a compiled encoder the guard on `encode_prompt` keeps the known vectors.
        if not torch.compiler.is_compiling():
            self._prepare()

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Again, since a direct call of `forward` skips the module hook that calls `arrive`.
        if not torch.compiler.is_compiling():
            self._prepare()
        return super().pre_forward(module, *args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._write(output)
        return output

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._write(output)

    def _prepare(self) -> None:
        hooks = self._hooks()
        self._here.call = current_call(self.module)
        self._here.before, SPARED.yes = {id(hook): hook.runs for hook in hooks}, False
        ERASED.prompts = None
        self._here.setting = self.denoiser_guard.setting
        looked = call.looked if (call := CALL.get()) is not None else ()
        for attachment in dict.fromkeys(hook.attachment for hook in hooks):
            if attachment not in looked:  # another pipeline may have changed the encoder
                attachment.refuse_changed()
                sibling = self._here.call
                if sibling is None or id(attachment) in sibling.asked or not attachment.answers_for(sibling.pipe):
                    continue
                sibling.asked.add(id(attachment))  # once a call: a bypass counts once
                attachment.refuse_early(sibling)

    def _write(self, output: Any) -> None:
        hooks, before = self._hooks(), self._here.before
        call: Call | None = self._here.call
        self._here.call = None  # free the prompt and the pipeline
        if not hooks:
            if self._is_for_glyphs():
                self.denoiser_guard.add(list(tensors_of(output)))
            return
        if not all(hook.runs > before.get(id(hook), 0) for hook in hooks):
            return
        taps = self._taps_of(call.pipe) or None if call is not None and call.usual else None
        first = max(shows_from(hook.edit.site) for hook in hooks)
        states = list(tensors_of(handed_on(output, first, taps)))
        if self._here.setting != self.denoiser_guard.setting:
            return  # the encoder was called by itself, and an eraser was set meanwhile: under neither setting
        if (vectors := KNOWN_VECTORS.get()) is not None:
            vectors.add(states)
        else:
            spared, erased = SPARED.yes, getattr(ERASED, "prompts", None)
            self.denoiser_guard.add(states, spared=spared)
            if erased is not None and not spared:
                parts = [state[erased.to(state.device)] for state in states if len(state) == len(erased)]
                self.denoiser_guard.add_erased(parts)
            if call is None:
                self.denoiser_guard.known_vectors.hold(states)

    def _taps_of(self, pipe: Pipeline) -> list[int]:
        """Return `taps_of` this encoder. Its layers are counted once, since the prompt guard refuses a changed one."""
        kind = type(pipe)
        if getattr(pipe, self.component, None) is not self.module:
            return taps_of(pipe, self.component)
        if kind not in self._taps:
            self._taps[kind] = taps_of(pipe, self.component)
        return self._taps[kind]

    def _is_for_glyphs(self) -> bool:
        """Whether the encoder reads only text to be rendered as letters, which an eraser need not cover."""
        live = self.denoiser_guard.live
        families = [family_of(attachment.pipe) for attachment in live]
        entries = [family.encoder(self.component) for family in families if family is not None]
        return bool(entries) and all(entry is not None and entry.glyphs for entry in entries)

    def _hooks(self) -> list[Acting]:
        """Return the hooks whose edits should act in this encoder."""
        return [
            hook for a in self.denoiser_guard.live for hook in a.hooks if hook.edit.site.component == self.component
        ]


def is_compiled(pipe: Pipeline) -> bool:
    """Whether a text encoder of the pipeline is compiled, so that its hook cannot record known vectors."""
    parts = [getattr(pipe, name, None) for name in text_encoders(pipe)]
    return any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts)
