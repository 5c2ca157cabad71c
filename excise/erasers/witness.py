"""Witness: stands before the denoiser and knows which text states came out of an edited encoder.

A wrapped encoder layer cannot notice that nobody called it. The witness can: states that no edited encoder made are a
way round the eraser, whichever pipeline the denoiser and the encoders are shared with.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.guard import CALL, LEDGER, is_muted
from excise.erasers.hooks import SPARED, EditHook, Passage, Watch, found_on, install, remove
from excise.erasers.ledger import Ledger
from excise.sites.blocks import denoisers
from excise.sites.encoding import tensors_of
from excise.sites.site import shows_from, text_encoders

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment

READS = (
    "encoder_hidden_states",
    "encoder_hidden_states_t5",
    "encoder_hidden_states_llama3",
    "encoder_hidden_states_2",
    "pooled_projections",
    "cap_feats",
    "text_embeds",
)
"""What denoisers call the text states among their arguments, and among `added_cond_kwargs`."""


class Scribe(Watch):
    """A hook on a text encoder: what it makes while every edit in it runs goes into the ledger.

    So a pipeline of the same components stays usable, although nobody guards its `encode_prompt`.
    """

    def __init__(self, witness: Witness, component: str) -> None:
        super().__init__()
        self.witness, self.component = witness, component

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        # Compiled, it is the guard on `encode_prompt` that keeps the ledger.
        if not torch.compiler.is_compiling():
            self._prepare()

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Once more: who calls `forward` itself passes by what was told of the arrival.
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
        self._here.before, SPARED.yes = {id(hook): hook.runs for hook in hooks}, False
        self._here.epoch = self.witness.epoch
        if CALL.get() is None:  # no guard has looked: the encoder may have been changed through another pipeline
            for attachment in dict.fromkeys(hook.attachment for hook in hooks):
                attachment.refuse_changed()

    def _write(self, output: Any) -> None:
        hooks, before = self._hooks(), self._here.before
        if not hooks or not all(hook.runs > before.get(id(hook), 0) for hook in hooks):
            return
        states = list(tensors_of(_edited(output, max(shows_from(hook.edit.site) for hook in hooks))))
        if (ledger := LEDGER.get()) is not None:
            ledger.add(states)
        else:
            self.witness.add(states, self._here.epoch, spared=SPARED.yes)

    def _hooks(self) -> list[EditHook]:
        """The edits of this encoder that should act."""
        live = [a for a in self.witness.attachments if a.active and not is_muted(a, "text")]
        return [hook for a in live for hook in a.hooks if hook.edit.site.component == self.component]


def _edited(output: Any, first: int) -> Any:
    """An encoder's output without the hidden states that fewer than `first` layers made: no edit has reached them."""
    if isinstance(output, tuple):
        return [part[first:] if isinstance(part, tuple) else part for part in output]
    return {name: part[first:] if name == "hidden_states" and part else part for name, part in dict(output).items()}


class Witness(Passage):
    """A hook on the denoisers of a pipeline, shared by everything attached to the pipelines they are part of."""

    def __init__(self) -> None:
        super().__init__()
        self.attachments: list[Attachment] = []
        self.ledger, self.spared = Ledger(), Ledger()
        """What edited encoders made; and apart from it, unconditional prompts that say the concept and were left alone,
        which may stand beside a prompt in a batch and nowhere else."""
        self.epoch = 0
        """Grows whenever the erasers are set otherwise: what was encoded across that counts for neither setting."""
        self._posts: list[tuple[nn.Module, Passage]] = []

    @classmethod
    def of(cls, denoiser: nn.Module | None) -> Witness | None:
        """The witness at `denoiser`, if there is one."""
        post = found_on(denoiser, Post)
        return post.witness if post is not None else None

    @classmethod
    def join(cls, pipe: Any, attachment: Attachment) -> Witness:
        """Add `attachment` to the witness at the pipeline's denoisers, putting one there first where there is none.

        Where the pipeline encodes text and does nothing else, every attachment has one of its own.
        """
        watched = denoisers(pipe)
        witness = next((found for denoiser in watched if (found := cls.of(denoiser))), None)
        if witness is None:
            witness = cls()
            posts: list[tuple[nn.Module, Passage]] = [(denoiser, Post(witness)) for denoiser in watched]
            posts += [(encoder, Scribe(witness, name)) for name, encoder in text_encoders(pipe).items()]
            for module, hook in posts:
                install(module, hook)
            witness._posts = posts
        witness.attachments.append(attachment)
        return witness

    def leave(self, attachment: Attachment) -> None:
        """Take `attachment` off; the last one out leaves no trace."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
            if not self.attachments:
                for module, hook in self._posts:
                    remove(module, hook)

    def forget(self) -> None:
        """Nothing that was encoded before counts any more: an eraser was attached, scaled or switched."""
        self.epoch += 1
        self.ledger.forget()
        self.spared.forget()

    def add(self, states: Iterable[Tensor], epoch: int, *, spared: bool = False) -> None:
        """Let `states` through, encoded from `epoch` on; spared ones only beside others."""
        if epoch == self.epoch:
            (self.spared if spared else self.ledger).add(states)

    def passed(self, state: Tensor) -> Tensor:
        """`state` as it is. Raises EraserDidNotFire where it was not made under every eraser that is active."""
        live = [a for a in self.attachments if a.active and not is_muted(a, "text")]
        if not live or not state.is_floating_point():
            return state
        if not self._known(state):
            for attachment in live:
                attachment.bypass(
                    f"the denoiser was given text states that were not encoded under eraser {attachment.name!r}; pass "
                    "the prompt as text, to the pipeline that it is attached to"
                )
        return state

    def _known(self, state: Tensor) -> bool:
        """Whether every picture of the batch reads known states, at most half of them spared ones. Looked at anew in
        every step: a tensor can be written to without a trace."""
        if self.ledger.knows(state):
            return True
        own = [self.ledger.knows(row[None]) for row in state]
        spared = [row for row, known in zip(state, own, strict=True) if not known]
        return sum(own) >= len(spared) and all(self.spared.knows(row[None]) for row in spared)


class Post(Watch):
    """The witness's place at one denoiser."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self.witness = witness

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.pre_forward(module, *args, **kwargs)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        super().pre_forward(module)
        names = _parameters(type(module))
        given = [self._checked(name, value) for name, value in zip(names, args, strict=False)]
        return (*given, *args[len(given) :]), {name: self._checked(name, value) for name, value in kwargs.items()}

    def _checked(self, name: str, value: Any) -> Any:
        """The argument with its text states passed by the witness, whatever they are nested in."""
        if name == "added_cond_kwargs" and isinstance(value, dict):
            return {key: self._checked(key, part) for key, part in value.items()}
        if name not in READS:
            return value
        if isinstance(value, tuple | list):
            return type(value)(self._checked(name, part) for part in value)
        return self.witness.through(value) if isinstance(value, Tensor) else value


def is_compiled(pipe: Any) -> bool:
    """Whether a text encoder of the pipeline is compiled, so that no hook on it keeps the ledger."""
    parts = [getattr(pipe, name, None) for name in text_encoders(pipe)]
    return any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts)


def _parameters(kind: type[nn.Module]) -> list[str]:
    """Names of `forward`'s positional arguments."""
    return list(inspect.signature(kind.forward).parameters)[1:]
