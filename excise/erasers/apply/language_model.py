"""Edits of a language model while it reads and writes: a transcript on the model tells them what of a text a run is.

A model reads a prompt in one run, and then each token that it writes in a run of its own, whose key-value cache stands
for all before it. With gate="whole" a text is opened by the first state that passes the threshold, of the prompt or of
what was written since, and stays open to its end (`excise.erasers.edits.text_sae.onward_codes`); with
gate="threshold" every state is asked by itself, and a step of generation is nothing special. Either way a text is
edited alike however it is cut into runs.

A language model has no denoiser, and so no denoiser guard. What fails closed: every run of the model sees every
edit, or raises; a
text begins only with the weights and adapters that were there when the eraser was attached; a cache that was not filled
under the eraser, as it is set now, is refused; so are layers that run without the model, or compiled. What is not
covered: another copy of the model, or a forward pass written anew from its weights; embeddings that are trained against
the edit (a white-box attack); and beam search, which exchanges the rows of a batch, whose memories of an open text are
then each other's (all beams of a prompt are open where the prompt is). The canary is what the model predicts next: it
does not show what a text of several hundred tokens becomes.
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
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.hooks.context import CALL, is_muted
from excise.erasers.hooks.edit_hook import EditHook, Edits, unrun
from excise.erasers.hooks.wrapping import Watch, found_on, install, remove
from excise.errors import ExciseError, WrongModel
from excise.sites.language import LanguageModel, stack_of

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.erasers.hooks.host import Host


def refuse_unfit(eraser: Artefact) -> None:
    """Raises ExciseError where an edit does not work on a text that grows."""
    for edit in eraser.edits:
        if type(edit) is not SAEEdit:
            raise WrongModel(f"eraser {eraser.name!r} was not made for a language model; make one with snce")
        if edit.source == "concept":
            raise WrongModel('a language model\'s prompts differ in length; fit the eraser with source="prompt"')


@dataclass(frozen=True)
class Stretch:
    """What one run of the model reads of some texts."""

    real: Tensor
    """`[B, T]` bool: no padding."""
    number: Tensor
    """`[B, T]`: which token of its text it is, from 0."""
    special: Tensor
    """`[B, T]` bool: it is no text, as a BOS is none."""
    cache: Any
    """The key-value cache that the run goes on from and fills; None without."""
    before: Mapping[int, Tensor]
    """By hook: what it remembers of the texts up to here."""
    ran: Mapping[int, int]
    """By hook: how often it had run."""
    epoch: int
    after: dict[int, Tensor] = field(default_factory=dict)
    """By hook: what it remembers of the texts behind this run."""

    def words(self, lead: int) -> Tensor:
        """`[B, T]` bool: what is edited by an edit that leaves `lead` first states alone, where they are no text."""
        return self.real & ~((self.number < lead) & self.special)

    def remembered(self, hook: EditHook) -> Tensor | None:
        """`[B, k]`; of a batch that has other rows than before, whatever was open anywhere is."""
        loudest, rows = self.before.get(id(hook)), len(self.real)
        if loudest is None or len(loudest) == rows:
            return loudest
        return loudest.amax(0, keepdim=True).expand(rows, -1)


class TokenHook(TextHook):
    """An edit at a language model's layer, told what it reads by the model's transcript."""

    edit: SAEEdit
    moved: SAEEdit

    def __init__(self, attachment: Host, edit: SAEEdit, transcript: Transcript) -> None:
        super().__init__(attachment, replace(edit, lead=0))
        self.lead, self.transcript = edit.lead, transcript

    def of(self, state: Tensor) -> Tensor | None:
        stretch, amount = self.transcript.now, self.attachment.strength * self.moved.lam
        if amount == 0:
            return None
        with torch.autocast(state.device.type, enabled=False):
            words, before = stretch.words(self.lead), stretch.remembered(self)
            z, loudest = self.moved.codes_onward(state, words, before, self.attachment.sae)
            if loudest is not None:
                stretch.after[id(self)] = loudest
            return (amount * z) @ self.moved.W_dec.to(z.dtype)


def put(attachment: Host, edit: SAEEdit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Put the edit at its layer; what comes back with its hook takes it off again."""
    if attachment.transcript is None:
        return text.put(attachment, edit, module)
    hook = TokenHook(attachment, edit, attachment.transcript)
    edits = Edits.join(module, hook)
    return hook, lambda: edits.leave(module, hook)


class Transcript(Watch):
    """A hook on a language model, shared by everything attached to it."""

    def __init__(self, stack: nn.Module, special: set[int]) -> None:
        """`special` are the ids of tokens that are no text."""
        super().__init__()
        self.stack, self.special = stack, torch.tensor(sorted(special), dtype=torch.long)
        self.attachments: list[Host] = []
        self.epoch = 0
        """Grows whenever an eraser is set otherwise: caches that were filled before are refused."""
        self._heard: weakref.WeakKeyDictionary[Any, Mapping[int, Tensor]] = weakref.WeakKeyDictionary()
        """By key-value cache: what each hook remembers of the texts in it."""

    @classmethod
    def join(cls, pipe: LanguageModel, attachment: Host) -> Transcript:
        """Add `attachment` to the model's transcript, putting one there first where there is none."""
        stack = stack_of(pipe.text_encoder)
        transcript = found_on(stack, cls)
        if transcript is None:
            transcript = cls(stack, pipe.special)
            install(stack, transcript)
        transcript.attachments.append(attachment)
        return transcript

    def leave(self, attachment: Host) -> None:
        """Take `attachment` off; the last one out leaves no trace."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
            if not self.attachments:
                remove(self.stack, self)

    def forget(self) -> None:
        """No cache that was filled before counts any more."""
        self.epoch += 1
        self._heard.clear()

    @property
    def now(self) -> Stretch:
        """The model's run in this thread. Raises ExciseError outside of one."""
        stretch: Stretch | None = getattr(self._here, "stretch", None)
        if stretch is None:
            raise ExciseError("a layer of the language model ran by itself, or compiled; its edit needs a whole run")
        return stretch

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        if not torch.compiler.is_compiling():
            self._begin(module, args, kwargs)
            self._here.arrived = True

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Who calls `forward` itself passes by what was told of the arrival.
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
        before = self._heard.get(cache) if past > 0 else None
        for attachment in live:
            if past != 0 and before is None:
                attachment.bypass(
                    f"a key-value cache was not filled under eraser {attachment.name!r} as it is set now; give the "
                    "prompt without a cache"
                )
            elif past == 0 and CALL.get() is None:  # no guard has looked
                attachment.refuse_changed()
        read = [hook for attachment in live for hook in attachment.hooks]
        self._here.stretch = Stretch(
            *self._positions(given, max(past, 0)),
            cache,
            before or {},
            {id(hook): hook.runs for hook in read},
            self.epoch,
        )

    def _positions(self, given: Mapping[str, Any], past: int) -> tuple[Tensor, Tensor, Tensor]:
        """`real`, `number` and `special` of a `Stretch`."""
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
                    raise unrun(hook)
        cache = stretch.cache if stretch.cache is not None else getattr(output, "past_key_values", None)
        if cache is not None and stretch.epoch == self.epoch:
            self._heard[cache] = {**stretch.before, **stretch.after}
