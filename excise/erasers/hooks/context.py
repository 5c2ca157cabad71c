"""The `encode_prompt` call that a text-encoder run belongs to, and the guidance branch that it runs for."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import nn

from excise.erasers.edits.base import Branch
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.pipeline import Pipeline
from excise.sites.families import family_of
from excise.sites.site import Part, text_encoders


@dataclass
class Call:
    """One call of `encode_prompt`."""

    arguments: dict[str, Any]
    branches: tuple[Branch, ...]
    """The branch of each text encoder's first, second, ... run in this call."""
    pipe: Pipeline
    """The pipeline that encodes."""
    runs: dict[int, int] = field(default_factory=dict)
    """How often each hook (by id) ran in this call."""
    negative: bool = False
    """Whether the caller declared a negative prompt: every run is for the unconditional branch."""
    looked: tuple[Any, ...] = ()
    """Attachments that the guard has asked before this call: they have checked the pipeline, and count its prompts."""
    usual: bool = False
    """Whether it reads only the hidden states that its family's entry names."""
    layers: tuple[str, ...] = ()
    """Arguments that select other hidden states than the pipeline's default, such as `clip_skip`."""

    asked: set[int] = field(default_factory=set)
    """Ids of the attachments that a text encoder's run has asked about the call's arguments."""
    counted_by: int | None = None
    """Id of the tally that counts its prompts. Each of a pipeline's encoders has one."""

    def next_branch(self, hook: object) -> Branch:
        """Return the branch of the hook's next run. Surplus runs count as conditional, so that they are edited."""
        n = self.runs.get(id(hook), 0)
        self.runs[id(hook)] = n + 1
        if self.negative:
            return "unconditional"
        return self.branches[n] if n < len(self.branches) else "conditional"


CALL: ContextVar[Call | None] = ContextVar("excise_call", default=None)
"""The guarded `encode_prompt` call in progress in this thread or task; None if a text encoder is called otherwise."""
_NEGATIVE: ContextVar[bool] = ContextVar("excise_negative", default=False)
_KEY = "excise call"
"""Key in the locals of an unguarded `encode_prompt`'s frame, which no variable can have. The call stored there is gone
with the frame, whether that returned or raised."""


@contextmanager
def negative(pipe: Pipeline) -> Iterator[None]:
    """Treat every run of `pipe`'s text encoders within it as for the unconditional branch, if the pipeline encodes that
    branch itself. Its prompts are then treated like negative prompts given as text."""
    if not encodes_unconditional(pipe):
        yield
        return
    tokens = _NEGATIVE.set(True), CALL.set(Call({}, (), pipe, negative=True))
    try:
        yield
    finally:
        _NEGATIVE.reset(tokens[0])
        CALL.reset(tokens[1])


def is_negative() -> bool:
    """Whether this thread or task is within `negative`."""
    return _NEGATIVE.get()


def encodes_unconditional(pipe: Pipeline) -> bool:
    """Whether the pipeline's `encode_prompt` also encodes the unconditional branch, and the denoiser reads it in one
    batch with the prompt and before it."""
    family = family_of(pipe)
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None or (family is not None and family.separate):
        return False
    return "do_classifier_free_guidance" in inspect.signature(encode).parameters


def call_of(pipe: Pipeline, signature: inspect.Signature, arguments: dict[str, Any]) -> Call:
    """Describe a call of `pipe.encode_prompt` with this `signature`, given all `arguments` by name."""
    family = family_of(pipe)
    branches = _branches(arguments, family is not None and family.separate)
    layers = _layer_arguments(signature, arguments)
    usual = family is not None and not layers
    return Call(arguments, branches, pipe, negative=is_negative(), usual=usual, layers=layers)


def current_call(encoder: nn.Module) -> Call | None:
    """Return the `encode_prompt` call that `encoder` runs for, or None if something else called it.

    It is the guarded call, or that of an unguarded diffusers pipeline, such as another one of the same components.
    """
    if (call := CALL.get()) is not None:
        return call
    frame = _caller(encoder)
    if frame is None:
        return None
    found: Call | None = frame.f_locals.get(_KEY)
    if found is None:
        pipe = frame.f_locals["self"]
        signature = inspect.signature(inspect.unwrap(type(pipe).encode_prompt))
        arguments = {name: frame.f_locals.get(name) for name in signature.parameters}
        if arguments.get("prompt") is not None:  # the local variable may already hold the encoded prompt
            arguments["prompt_embeds"] = None
        found = frame.f_locals[_KEY] = call_of(pipe, signature, arguments)
    return found


def last_call() -> Call | None:
    """Return the call that `current_call` found, from within the same run of the encoder."""
    if (call := CALL.get()) is not None:
        return call
    frame = _encode_prompt_above()
    return frame.f_locals.get(_KEY) if frame is not None else None


def _encode_prompt_above() -> FrameType | None:
    """Return the frame of the innermost function of that name running in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "encode_prompt":
        frame = frame.f_back
    return frame


def _caller(encoder: nn.Module) -> FrameType | None:
    """Return the frame of the `encode_prompt` that runs `encoder`.

    It must be diffusers' own code, on a pipeline of a known family that has this encoder. Otherwise the order of the
    branches is unknown.
    """
    frame = _encode_prompt_above()
    if frame is None or not str(frame.f_globals.get("__name__")).startswith("diffusers."):
        return None
    from diffusers import DiffusionPipeline

    pipe = frame.f_locals.get("self")
    if not isinstance(pipe, DiffusionPipeline) or family_of(pipe) is None:
        return None
    encode = getattr(type(pipe), "encode_prompt", None)
    if encode is None or getattr(inspect.unwrap(encode), "__code__", None) is not frame.f_code:
        return None
    return frame if any(encoder is other for other in text_encoders(pipe).values()) else None


def _layer_arguments(signature: inspect.Signature, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments that select other hidden states than the pipeline's default."""
    return tuple(
        name
        for name, known in signature.parameters.items()
        if (name == "clip_skip" or name.endswith("_layers"))
        and arguments.get(name) not in (None, 0)
        and arguments[name] != known.default
    )


def _branches(arguments: dict[str, Any], separate: bool) -> tuple[Branch, ...]:
    """Return the text-encoder runs to expect: the prompt's unless embeddings are given, then the unconditional one's.

    If the denoiser cannot distinguish them (`Family.separate`), every run counts as a prompt's.
    """
    if separate:
        return ("conditional",) if arguments.get("prompt_embeds") is None else ()
    branches: list[Branch] = []
    if arguments.get("prompt_embeds") is None:
        branches.append("conditional")
    if arguments.get("do_classifier_free_guidance") and arguments.get("negative_prompt_embeds") is None:
        branches.append("unconditional")
    return tuple(branches)


_ONLY: ContextVar[object | None] = ContextVar("excise_only", default=None)
"""The one attachment that acts now; None for all."""
_NOBODY = object()
"""Value of `_ONLY` with which nothing acts."""
_PART: ContextVar[Part | None] = ContextVar("excise_part", default=None)
"""The one part of the pipeline that is edited now; None for all."""
KNOWN_VECTORS: ContextVar[KnownVectors | None] = ContextVar("excise_known_vectors", default=None)
"""Where a canary's vectors are recorded, instead of among the states that may be rendered."""


@contextmanager
def proving(attachment: object, part: Part | None = None) -> Iterator[KnownVectors]:
    """Let only this attachment edit, at full strength, in this thread: another eraser of the same concept must not
    hide its effect on the canary. With `part`, only its edits of that part of the pipeline act.

    Yields:
        The known vectors that edited encoders make meanwhile.
    """
    vectors = KnownVectors()
    tokens = _ONLY.set(attachment), _PART.set(part), KNOWN_VECTORS.set(vectors)
    try:
        yield vectors
    finally:
        _ONLY.reset(tokens[0])
        _PART.reset(tokens[1])
        KNOWN_VECTORS.reset(tokens[2])


@contextmanager
def unedited() -> Iterator[None]:
    """Let nothing edit, so that the model itself can be read, whatever is attached to it."""
    token = _ONLY.set(_NOBODY)
    try:
        yield
    finally:
        _ONLY.reset(token)


def is_proving(attachment: object) -> bool:
    """Whether the attachment is being proved in this thread or task."""
    return _ONLY.get() is attachment


def is_muted(attachment: object, part: Part | None = None) -> bool:
    """Whether an attachment edits nothing now because another one, or another part of it, is being proved."""
    return _ONLY.get() not in (None, attachment) or (part is not None and _PART.get() not in (None, part))


SPARED = threading.local()
"""`SPARED.yes`: whether this thread's run of an encoder left an unconditional prompt unedited that names the concept.
`SPARED.runs`: the number of such runs in this thread."""


ERASED = threading.local()
"""`ERASED.runs`: the number of encoder runs in this thread that erased something from a prompt.
`ERASED.prompts`: `[B]` bool, the prompts of the current run it was erased from; None if from none."""
