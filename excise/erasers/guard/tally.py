"""Tally: counts prompts that reach a text encoder without passing a guard, for example through a sibling pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from excise.erasers.hooks.context import CALL, Call, current_call, is_muted, is_proving
from excise.erasers.hooks.wrapping import Watch, found_on, install, remove
from excise.pipeline import Pipeline
from excise.sites.encoding import tensors_of
from excise.sites.site import text_encoders

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host


class Tally(Watch):
    """A hook on one text encoder, shared by the erasers of all pipelines that contain it.

    The guard counts the prompts of its own pipeline. Another pipeline of the same components has no guard, nor has a
    prompt-weighting library that calls the encoder directly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attachments: list[Host] = []

    @classmethod
    def join(cls, pipe: Pipeline, attachment: Host) -> list[nn.Module]:
        """Count for `attachment` at the pipeline's text encoders, and return them."""
        encoders = list(text_encoders(pipe).values())
        for encoder in encoders:
            tally = found_on(encoder, cls)
            if tally is None:
                tally = cls()
                install(encoder, tally)
            tally.attachments.append(attachment)
        return encoders

    @classmethod
    def names(cls, pipe: Pipeline) -> list[str]:
        """Return the names of the erasers that edit `pipe`, including those attached to pipelines that share its
        encoders."""
        tallies = [found_on(encoder, cls) for encoder in text_encoders(pipe).values()]
        attachments = dict.fromkeys(a for tally in tallies if tally is not None for a in tally.attachments)
        return [a.name for a in attachments if a.listed and a.acts_on(pipe)]

    @classmethod
    def leave(cls, encoders: list[nn.Module], attachment: Host) -> None:
        """Stop counting for `attachment`. Remove a hook that no attachment needs any longer."""
        for encoder in encoders:
            tally = found_on(encoder, cls)
            if tally is None or attachment not in tally.attachments:
                continue
            tally.attachments.remove(attachment)
            if not tally.attachments:
                remove(encoder, tally)

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().arrive(module, args, kwargs)
        if not torch.compiler.is_compiling():
            self._here.call = current_call(module)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._count(module, output)
        return output

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._count(module, output)

    def _count(self, module: nn.Module, output: Any) -> None:
        guarded = CALL.get()
        if guarded is not None and guarded.negative:
            return
        counted = guarded.looked if guarded is not None else ()  # the guard counts for these
        call: Call | None = getattr(self._here, "call", None)
        if call is not None and call.counted_by not in (None, id(self)):
            return  # another encoder of the same pipeline counts
        if call is not None:
            call.counted_by = id(self)
        if call is not None and guarded is None:
            self._show(call, module, output)
        prompts = next((len(tensor) for tensor in tensors_of(_plain(output)) if tensor.ndim), 0)
        if call is not None and call.next_branch(self) == "unconditional":
            prompts = 0
        for attachment in tuple(self.attachments):
            if attachment in counted or not attachment.active or is_muted(attachment) or is_proving(attachment):
                continue
            first = next(iter(text_encoders(attachment.pipe).values()), None)
            attachment.count(prompts if call is not None or module is first else 0)

    def _show(self, call: Call, module: nn.Module, output: Any) -> None:
        """Pass an encoder's output for a prompt to the edits."""
        names = [name for name, encoder in text_encoders(call.pipe).items() if encoder is module]
        for attachment in tuple(self.attachments):
            if names and attachment.active and not is_muted(attachment):
                for hook in attachment.hooks:
                    hook.on_encoder_run(call, names[0], output)


def _plain(output: Any) -> Any:
    return output if isinstance(output, tuple) else dict(output)
