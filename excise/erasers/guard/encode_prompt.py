"""The guard on a pipeline's `encode_prompt`: notes the branch of each text-encoder run and refuses bypasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from excise.erasers.hooks.bound import Bound
from excise.erasers.hooks.context import CALL, call_of, is_muted
from excise.erasers.hooks.setting import Fixed
from excise.errors import WrongModel
from excise.pipeline import Pipeline, as_diffusers

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host


class Guard(Bound):
    """Replacement for `pipe.encode_prompt` while anything is attached to `pipe`. All its attachments share it.

    It runs their checks, and those of attachments to other pipelines that edit the same encoders.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.original: Callable[..., Any] = as_diffusers(pipe).encode_prompt
        self.before = vars(pipe).get("encode_prompt")
        self.signature = inspect.signature(self.original)
        self.attachments: list[Host] = []
        self.pipe = pipe
        update_wrapper(self, self.original)

    @classmethod
    def of(cls, pipe: Pipeline) -> Guard | None:
        """Return the guard on `pipe`, if there is one."""
        guard = getattr(pipe, "__dict__", {}).get("encode_prompt")
        return guard if isinstance(guard, cls) else None

    @classmethod
    def names(cls, pipe: Pipeline) -> list[str]:
        """Return the names of the erasers attached to `pipe`."""
        guard = cls.of(pipe)
        return [a.name for a in guard.attachments if a.listed] if guard is not None else []

    @classmethod
    def join(cls, pipe: Pipeline, attachment: Host) -> Guard:
        """Add `attachment` to the pipeline's guard. Install the guard first if it is missing."""
        if not callable(getattr(pipe, "encode_prompt", None)):
            raise WrongModel(f"{type(pipe).__name__} is not supported: an eraser is proved through its encode_prompt")
        guard = cls.of(pipe)
        if guard is None:
            guard = cls(pipe)
            as_diffusers(pipe).encode_prompt = guard
        guard.attachments.append(attachment)
        return guard

    def leave(self, pipe: Pipeline, attachment: Host) -> None:
        """Remove `attachment`. After the last one, restore `pipe.encode_prompt`."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
        if not self.attachments and vars(pipe).get("encode_prompt") is self:
            if self.before is None:
                del as_diffusers(pipe).encode_prompt
            else:
                as_diffusers(pipe).encode_prompt = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Fixed():
            return self._encode(*args, **kwargs)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = call_of(self.pipe, self.signature, dict(bound.arguments))
        first = self.attachments[0] if self.attachments else None
        answering = first.answering(self.pipe) if first is not None else []
        live = [a for a in answering if a.active and not is_muted(a)]
        call.looked = tuple(live)
        for attachment in live:
            attachment.before_prompt(call)
        token = CALL.set(call)
        try:
            made = self.original(*args, **kwargs)
        finally:
            CALL.reset(token)
        for attachment in live:
            attachment.after_prompt(call, made)
        return made
