"""Edits of a language model while it reads and generates. A transcript hook on the model follows its texts.

The model reads a prompt in one forward pass, and each token that it generates in a pass of its own with a key-value
cache. With gate="whole", the first state that passes the threshold, of the prompt or of a generated token, opens the
gate until the end of the text (`excise.erasers.edits.text_sae.onward_codes`). With gate="threshold", each state is
tested by itself. In both cases the edit does not depend on how a text is split into passes.

A language model has no denoiser, and so no denoiser guard. These checks fail closed:

- Every pass of the model runs every edit, or raises.
- A new text is refused if weights or adapters changed since the eraser was attached.
- A cache is refused if it was not filled under the eraser's current settings.
- A layer that runs without the model, or compiled, is refused.

Not covered are another copy of the model, a forward pass reimplemented on its weights, and embeddings trained against
the edit (a white-box attack). Beam search permutes the rows of a batch, so that a beam may continue with another beam's
gate (if the prompt opens the gate, it is open for all of its beams). The canary measures the next-token prediction. It
does not show what becomes of a text of several hundred tokens.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.apply import text
from excise.erasers.apply.text import TextHook
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.hooks.context import CALL, is_muted
from excise.erasers.hooks.edit_hook import EditHook, Edits, did_not_run
from excise.erasers.hooks.setting import Key, key_of
from excise.erasers.hooks.wrapping import Watch, found_on, install, remove
from excise.errors import ExciseError, WrongModel
from excise.sites.language import LanguageModel, stack_of

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.erasers.hooks.host import Host


def refuse_unfit(eraser: Artefact) -> None:
    """Raise WrongModel if an edit does not work on a text that grows."""
    for edit in eraser.edits:
        if not isinstance(edit, SAEEdit) or type(edit) not in (SAEEdit, OrthogonalSAEEdit):
            raise WrongModel(f"eraser {eraser.name!r} was not made for a language model; make one with snce")
        if edit.source == "concept":
            raise WrongModel('a language model\'s prompts vary in length; fit the eraser with source="prompt"')


@dataclass(frozen=True)
class Stretch:
    """The part of some texts that the model reads in one forward pass."""

    real: Tensor
    """`[B, T]` bool: whether a position is not padding."""
    number: Tensor
    """`[B, T]`: a token's position in its text, from 0."""
    special: Tensor
    """`[B, T]` bool: whether a token is special, such as BOS, and no text."""
    cache: Any
    """The key-value cache that the pass continues and fills, if any."""
    before: Mapping[int, Tensor]
    """Each hook's memory of the texts before this pass."""
    ran: Mapping[int, int]
    """Each hook's number of runs before this pass."""
    setting: Key
    """The setting of this pass."""
    after: dict[int, Tensor] = field(default_factory=dict)
    """Each hook's memory of the texts after this pass."""

    def words(self, lead: int) -> Tensor:
        """Return `[B, T]` bool: the positions to edit. Special tokens among the `lead` first ones are left alone."""
        return self.real & ~((self.number < lead) & self.special)

    def remembered(self, hook: EditHook) -> Tensor | None:
        """Return the hook's memory `[B, k]`. If the batch size changed, use the maximum over all rows for each: what
        was open anywhere is open."""
        loudest, rows = self.before.get(id(hook)), len(self.real)
        if loudest is None or len(loudest) == rows:
            return loudest
        return loudest.amax(0, keepdim=True).expand(rows, -1)


class TokenHook(TextHook):
    """An edit at a language model's layer. The model's transcript tells it what the model reads."""

    edit: SAEEdit
    on_device: SAEEdit

    def __init__(self, attachment: Host, edit: SAEEdit, transcript: Transcript) -> None:
        super().__init__(attachment, replace(edit, lead=0))
        self.lead, self.transcript = edit.lead, transcript

    def of(self, state: Tensor) -> Tensor | None:
        stretch, amount = self.transcript.now, self.attachment.strength * self.on_device.lam
        if amount == 0:
            return None
        with torch.autocast(state.device.type, enabled=False):
            words, before = stretch.words(self.lead), stretch.remembered(self)
            z, loudest = self.on_device.codes_onward(state, words, before, self.attachment.sae)
            if loudest is not None:
                stretch.after[id(self)] = loudest
            return (amount * z) @ self.on_device.W_dec.to(z.dtype)


def put(attachment: Host, edit: SAEEdit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Install the edit at its layer. Return its hook, and a function that removes it."""
    if attachment.transcript is None:
        return text.put(attachment, edit, module)
    hook = TokenHook(attachment, edit, attachment.transcript)
    edits = Edits.join(module, hook)
    return hook, lambda: edits.leave(module, hook)


class Transcript(Watch):
    """A hook on a language model, shared by everything attached to it."""

    def __init__(self, stack: nn.Module, special: set[int]) -> None:
        """Create the hook of a layer stack. `special` are the ids of special tokens."""
        super().__init__()
        self.stack, self.special = stack, torch.tensor(sorted(special), dtype=torch.long)
        self.attachments: list[Host] = []
        self._memories: weakref.WeakKeyDictionary[Any, tuple[Key, Mapping[int, Tensor]]] = weakref.WeakKeyDictionary()
        """For each key-value cache: the setting that it was filled under, and each hook's memory of its texts."""

    @classmethod
    def join(cls, pipe: LanguageModel, attachment: Host) -> Transcript:
        """Add `attachment` to the model's transcript. Install the transcript first if it is missing."""
        stack = stack_of(pipe.text_encoder)
        transcript = found_on(stack, cls)
        if transcript is None:
            transcript = cls(stack, pipe.special)
            install(stack, transcript)
        transcript.attachments.append(attachment)
        return transcript

    def leave(self, attachment: Host) -> None:
        """Remove `attachment`, and with the last one the hook."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
            if not self.attachments:
                remove(self.stack, self)

    def forget(self) -> None:
        """Refuse the caches filled so far."""
        self._memories.clear()

    @property
    def now(self) -> Stretch:
        """What the model reads in this thread. Raises ExciseError outside of a forward pass."""
        stretch: Stretch | None = getattr(self._here, "stretch", None)
        if stretch is None:
            raise ExciseError(
                "a layer of the language model ran by itself, or compiled; its edit needs the whole model, uncompiled"
            )
        return stretch

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        if not torch.compiler.is_compiling():
            self._begin(module, args, kwargs)
            self._here.arrived = True

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A direct call of `forward` skips the module hook that calls `arrive`.
        if not torch.compiler.is_compiling() and not getattr(self._here, "arrived", False):
            self._begin(module, args, kwargs)
        self._here.arrived = False
        return super().pre_forward(module, *args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._end(output)
        return output

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._here.arrived = False
        self._end(output)

    def _live(self) -> list[Host]:
        return [a for a in self.attachments if a.active and not is_muted(a, "text")]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._here.stretch = None
        live = self._live()
        if not live:
            return
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else -1
        setting = key_of(live)
        filled_under, before = self._memories.get(cache, (None, None)) if past > 0 else (None, None)
        if filled_under != setting:
            before = None
        for attachment in live:
            if past != 0 and before is None:
                attachment.bypass(
                    f"a key-value cache was not filled under the current settings of eraser {attachment.name!r}; give "
                    "the prompt without a cache"
                )
            elif past == 0 and CALL.get() is None:  # no guard has checked
                attachment.refuse_changed()
        hooks = [hook for attachment in live for hook in attachment.hooks]
        self._here.stretch = Stretch(
            *self._positions(given, max(past, 0)),
            cache,
            before or {},
            {id(hook): hook.runs for hook in hooks},
            setting,
        )

    def _positions(self, given: Mapping[str, Any], past: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `real`, `number` and `special` of a `Stretch`."""
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        rows, length = (ids if isinstance(ids, Tensor) else given["inputs_embeds"]).shape[:2]
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == past + length:
            seen = mask.bool().cpu()
            real, number = seen[:, past:], seen.long().cumsum(1)[:, past:] - 1
        else:
            real = torch.ones(rows, length, dtype=torch.bool)
            number = (past + torch.arange(length)).expand(rows, -1)
        return real, number, torch.zeros_like(real) if ids is None else torch.isin(ids.cpu(), self.special)

    def _end(self, output: Any) -> None:
        stretch: Stretch | None = getattr(self._here, "stretch", None)
        self._here.stretch = None
        if stretch is None:
            return
        for attachment in self._live():
            for hook in attachment.hooks:
                if hook.runs <= stretch.ran.get(id(hook), 0):
                    raise did_not_run(hook)
        cache = stretch.cache if stretch.cache is not None else getattr(output, "past_key_values", None)
        if cache is not None and stretch.setting == key_of(self._live()):
            self._memories[cache] = stretch.setting, {**stretch.before, **stretch.after}
