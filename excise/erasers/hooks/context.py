"""Which `encode_prompt` call a run of a text encoder belongs to, and for which branch of guidance it runs."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import nn

from excise.erasers.edits.base import Branch
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.pipeline import Pipeline
from excise.sites.families import family_of
from excise.sites.site import Part, text_encoders

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass


@dataclass
class Call:
    """One run of `encode_prompt`."""

    arguments: dict[str, Any]
    branches: tuple[Branch, ...]
    """What the first, second, ... run of each text encoder in this call is for."""
    pipe: Pipeline
    """The pipeline that encodes."""
    runs: dict[int, int] = field(default_factory=dict)
    """How often each hook (by id) ran in this call."""
    negative: bool = False
    """The caller said that this is a negative prompt: every run is for the unconditional branch."""
    looked: tuple[Any, ...] = ()
    """The attachments that the guard asked before this call: they looked at the pipeline, and count its prompts."""
    usual: bool = False
    """It is known to read the hidden states that its family's entry names, and no others."""
    layers: tuple[str, ...] = ()
    """Its arguments that ask for other hidden states than the pipeline reads by default, such as `clip_skip`."""

    counted_by: int | None = None
    """The tally (by id) that counts its prompts, of the several that a pipeline's encoders have."""

    def next_branch(self, hook: object) -> Branch:
        """The branch of the hook's next run; one run too many counts as conditional, so that it is edited."""
        n = self.runs.get(id(hook), 0)
        self.runs[id(hook)] = n + 1
        if self.negative:
            return "unconditional"
        return self.branches[n] if n < len(self.branches) else "conditional"


CALL: ContextVar[Call | None] = ContextVar("excise_call", default=None)
"""The guarded `encode_prompt` call under way in this thread or task; None when a text encoder is called otherwise."""
_NEGATIVE: ContextVar[bool] = ContextVar("excise_negative", default=False)
_KEY = "excise call"
"""Under this name, which no variable can have, the frame of an unguarded `encode_prompt` holds its call among its
locals: it is gone when the frame is, whether that returned or raised."""


@contextmanager
def negative(pipe: Pipeline) -> Iterator[None]:
    """Within it every run of `pipe`'s text encoders is for the unconditional branch, where the pipeline has one of its
    own: what is said there is treated as a negative prompt given as text is."""
    if not has_own_branch(pipe):
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


def has_own_branch(pipe: Pipeline) -> bool:
    """Whether the pipeline's `encode_prompt` makes the unconditional branch, for a denoiser that reads it in one batch
    with the prompt and before it."""
    family = family_of(pipe)
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None or (family is not None and family.separate):
        return False
    return "do_classifier_free_guidance" in inspect.signature(encode).parameters


def call_of(pipe: Pipeline, signature: inspect.Signature, arguments: dict[str, Any]) -> Call:
    """The call of `pipe.encode_prompt`, whose `signature` that is, with all of its `arguments` by name."""
    family = family_of(pipe)
    branches = _branches(arguments, family is not None and family.separate)
    layers = _asking_for_layers(signature, arguments)
    usual = family is not None and not layers
    return Call(arguments, branches, pipe, negative=is_negative(), usual=usual, layers=layers)


def current_call(encoder: nn.Module) -> Call | None:
    """The `encode_prompt` call that `encoder` is running for: the guarded one; else that of a pipeline of diffusers'
    which nobody guards, such as another one of the same components. None when it was called otherwise.
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
        if arguments.get("prompt") is not None:  # what it makes of the prompt may be there already
            arguments["prompt_embeds"] = None
        found = frame.f_locals[_KEY] = call_of(pipe, signature, arguments)
    return found


def last_call() -> Call | None:
    """As `current_call`, within a run of the encoder that asked for it."""
    if (call := CALL.get()) is not None:
        return call
    frame = _encode_prompt_above()
    return frame.f_locals.get(_KEY) if frame is not None else None


def _encode_prompt_above() -> FrameType | None:
    """The innermost function of that name that is under way in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "encode_prompt":
        frame = frame.f_back
    return frame


def _caller(encoder: nn.Module) -> FrameType | None:
    """The frame of the `encode_prompt` that runs `encoder`: diffusers' own code, of a pipeline whose family is known
    and which has this encoder. In anything else the order of the branches is anybody's guess."""
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
    return frame if any(encoder is own for own in text_encoders(pipe).values()) else None


def _asking_for_layers(signature: inspect.Signature, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The arguments that ask for other hidden states than the pipeline reads by default."""
    return tuple(
        name
        for name, known in signature.parameters.items()
        if (name == "clip_skip" or name.endswith("_layers"))
        and arguments.get(name) not in (None, 0)
        and arguments[name] != known.default
    )


def _branches(arguments: dict[str, Any], separate: bool) -> tuple[Branch, ...]:
    """Which text-encoder runs to expect: the prompt's unless embeddings are given, then the unconditional one's.

    Where nobody can tell them apart at the denoiser (`Family.separate`), every one counts as a prompt.
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


_NOBODY = object()


_PART: ContextVar[Part | None] = ContextVar("excise_part", default=None)


KNOWN_VECTORS: ContextVar[KnownVectors | None] = ContextVar("excise_ledger", default=None)
"""Where a canary's run is written down, instead of among the states that may be rendered."""


@contextmanager
def proving(attachment: object, part: Part | None = None) -> Iterator[KnownVectors]:
    """Within it the attachment edits at full strength and no other one does, in this thread alone: one canary must not
    be silenced by another eraser of the same concept. With `part` only its edits of that part of the pipeline act.
    Gives the known vectors of what edited encoders make meanwhile."""
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
    """Within it nothing edits: methods read the model itself, whatever is attached to it."""
    token = _ONLY.set(_NOBODY)
    try:
        yield
    finally:
        _ONLY.reset(token)


def is_proving(attachment: object) -> bool:
    return _ONLY.get() is attachment


def is_muted(attachment: object, part: Part | None = None) -> bool:
    """Whether an attachment edits nothing now because another one is on trial, or another part of it."""
    return _ONLY.get() not in (None, attachment) or (part is not None and _PART.get() not in (None, part))


SPARED = threading.local()
"""`SPARED.yes`: in this thread's run of an encoder an unconditional prompt was left alone that says the concept.
`SPARED.runs`: how many runs in this thread left one alone."""


ERASED = threading.local()
"""`ERASED.runs`: how many runs of an encoder in this thread had something erased from a prompt.
`ERASED.prompts`: from which of the batch it was in the run under way, `[B]`; None where from none."""
