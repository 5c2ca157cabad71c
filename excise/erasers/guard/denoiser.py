"""DenoiserGuard: checks at the denoiser's input that its text states came from an edited encoder.

A wrapped encoder layer cannot notice that it was never called. The guard can: states that no edited encoder made have
bypassed the eraser, whichever pipelines share the denoiser and the encoders.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers.guard.accepted import Accepted, Look
from excise.erasers.guard.coverage import has_ip_adapter, ip_adapter_message
from excise.erasers.guard.recorder import EncoderRecorder
from excise.erasers.hooks.context import is_muted
from excise.erasers.hooks.host import Host
from excise.erasers.hooks.known_vectors import REMEMBERED, UNKNOWN, KnownVectors
from excise.erasers.hooks.known_vectors import SPARED as SPARED_ROW
from excise.erasers.hooks.setting import Key, image, key_in, key_of, strengths_in_use
from excise.erasers.hooks.wrapping import Passage, Watch, found_on, install, remove
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoisers
from excise.sites.families import family_of
from excise.sites.site import text_encoders

READS = (
    "encoder_hidden_states",
    "encoder_hidden_states_t5",
    "encoder_hidden_states_llama3",
    "encoder_hidden_states_2",
    "pooled_projections",
    "cap_feats",
    "text_embeds",
    "clip_text",
    "clip_text_pooled",
)
"""Names of the text states among a denoiser's arguments and in `added_cond_kwargs`."""
_WITH_TEXT = frozenset((*READS, "added_cond_kwargs"))


SETTINGS = 64
"""Most settings of its erasers for which a guard remembers what was encoded, not counting those of images in
progress."""


@dataclass(eq=False)
class Record:
    """The states that were encoded under one setting."""

    known: KnownVectors = field(default_factory=KnownVectors)
    erased: KnownVectors = field(default_factory=lambda: KnownVectors(1 / 16))

    @property
    def nbytes(self) -> int:
        """Bytes of hashes."""
        return self.known.nbytes + self.erased.nbytes


_DENOISER_GUARDS: weakref.WeakSet[DenoiserGuard] = weakref.WeakSet()


class DenoiserGuard(Passage):
    """A hook on the denoisers of a pipeline, shared by everything attached to the pipelines they are part of."""

    def __init__(self) -> None:
        super().__init__()
        self.attachments: list[Host] = []
        self._records: OrderedDict[Key, Record] = OrderedDict()
        """The encoded states by setting, the most recently used last."""
        self._lock = threading.RLock()
        self._accepted = Accepted()
        self._installed: dict[nn.Module, Passage] = {}
        self._watched: dict[int, list[nn.Module]] = {}
        """The modules hooked for each attachment, by its id."""
        _DENOISER_GUARDS.add(self)

    @classmethod
    def of(cls, denoiser: nn.Module | None) -> DenoiserGuard | None:
        """Return the guard at `denoiser`, if there is one."""
        hook = found_on(denoiser, DenoiserHook)
        return hook.denoiser_guard if hook is not None else None

    @classmethod
    def encoding(cls, digest: str) -> Host | None:
        """Return the latest attachment of the eraser with that digest to a pipeline that has its text encoders."""
        same = [a for guard in tuple(_DENOISER_GUARDS) for a in guard.attachments if a.eraser.digest == digest]
        return max((a for a in same if a.attached and a.hooks), key=lambda a: a.number, default=None)

    @classmethod
    def join(cls, pipe: Pipeline, attachment: Host, encoding: Host | None = None) -> DenoiserGuard:
        """Add `attachment` to the guard on the pipeline's denoisers or text encoders; create one if they have none.

        A pipeline without text encoders shares the guard of the one that encodes for it (`encoding`). When the eraser
        is attached to that pipeline again, both share one guard again.
        """
        orphans = cls._orphans(attachment) if encoding is None else []
        if encoding is not None:
            guard = next(w for w in tuple(_DENOISER_GUARDS) if encoding in w.attachments)
        else:
            at_denoisers = (hooked for denoiser in denoisers(pipe) if (hooked := cls.of(denoiser)))
            encoders = text_encoders(pipe).items()
            recorders = (s for name, e in encoders if (s := found_on(e, EncoderRecorder)) and s.component == name)
            recording = (kept for r in recorders if isinstance(kept := r.denoiser_guard, cls))
            found = (*at_denoisers, *recording, *(w for w, _ in orphans))
            guard = found[0] if found else cls()
        guard._watch(pipe, attachment)
        for before, other in orphans:
            if before is not guard:
                before.leave(other)
                guard._watch(other.pipe, other)
            other.draw_for(attachment, guard)
        return guard

    @classmethod
    def _orphans(cls, attachment: Host) -> list[tuple[DenoiserGuard, Host]]:
        """Return attachments of the same eraser, with their guards, on pipelines without text encoders whose encoding
        attachment was detached."""
        if not attachment.edits or not attachment.listed:
            return []
        pairs = [(guard, a) for guard in tuple(_DENOISER_GUARDS) for a in guard.attachments]
        gone = [(guard, a) for guard, a in pairs if a.encoded_by is not None and not a.encoded_by.attached]
        return [(guard, a) for guard, a in gone if a.eraser.digest == attachment.eraser.digest]

    def _watch(self, pipe: Pipeline, attachment: Host) -> None:
        """Hook the pipeline's denoisers and text encoders for `attachment`."""
        watched, encoders = denoisers(pipe), text_encoders(pipe)
        for module in watched:
            self._put(module, DenoiserHook(self))
        for name, module in encoders.items():
            self._put(module, EncoderRecorder(self, name, module))
        self.attachments.append(attachment)
        self._watched[id(attachment)] = [*watched, *encoders.values()]

    def _put(self, module: nn.Module, hook: Passage) -> None:
        if module not in self._installed:
            install(module, hook)
            self._installed[module] = hook

    def leave(self, attachment: Host) -> None:
        """Remove `attachment`, and every hook that no other attachment needs."""
        if attachment not in self.attachments:
            return
        self.attachments.remove(attachment)
        # States encoded under it and others still count for the others, and those that it encoded for a pipeline
        # without text encoders still count there.
        draws_on = any(other.encoded_by is attachment for other in self.attachments)
        with self._lock:
            gone = None if draws_on else attachment.number
            others = [frozenset(pair for pair in key if pair[0] != gone) for key in self._records]
            self._records = OrderedDict(zip(others, self._records.values(), strict=True))
        del self._watched[id(attachment)]
        still = {module for modules in self._watched.values() for module in modules}
        for module in [module for module in self._installed if module not in still]:
            remove(module, self._installed.pop(module))
        if not self.attachments:
            self.forget()

    @property
    def live(self) -> list[Host]:
        """Attachments whose text edits should act in this thread."""
        return [a for a in self.attachments if a.active and not is_muted(a, "text")]

    @property
    def setting(self) -> Key:
        """This image's setting: the active attachments with their strengths."""
        return key_of(self.live)

    @property
    def known_vectors(self) -> KnownVectors:
        """Vectors that edited encoders made under this image's setting. Those marked as spared belong to unconditional
        prompts that name the concept and were left unedited. They are accepted only in a batch with prompts."""
        return self._record_of(self.setting).known

    @property
    def erased(self) -> KnownVectors:
        """Those of prompts from which something was erased."""
        return self._record_of(self.setting).erased

    def _record_of(self, setting: Key) -> Record:
        """Return the record of a setting, which was read before the lock is taken, since a request may take
        `setting.LOCK`."""
        with self._lock:
            record = self._records.get(setting)
            if record is None:
                record = self._records[setting] = Record()
                self._drop(lambda: len(self._records) > SETTINGS, but=(setting, *self._in_use()))
            self._records.move_to_end(setting)
            return record

    def _in_use(self) -> set[Key]:
        """Return the settings of all images in progress."""
        return {key_in(strengths, self.attachments) for strengths in strengths_in_use()}

    def _drop(self, over: Callable[[], bool], but: Collection[Key]) -> None:
        """Drop records, the least recently used first, while `over()`. Call it with the lock held."""
        for key in [key for key in self._records if key not in but]:
            if not over():
                return
            del self._records[key]

    def forget(self) -> None:
        """Forget all states encoded so far, under any setting."""
        with self._lock:
            self._records.clear()
        self._accepted.clear()

    def add(self, states: Sequence[Tensor], *, spared: bool = False, erased: bool = False) -> None:
        """Accept states encoded under this image's setting.

        Spared ones (unedited unconditional states) are accepted only in a batch with prompts. Nothing is accepted while
        an eraser is active here but not on the pipeline that encodes its prompts.
        """
        if any(a.encoded_by is not None and not a.encoded_by.active for a in self.live):
            return
        setting = self.setting
        record = self._record_of(setting)
        record.known.add(states, spared=spared)
        if erased:
            record.erased.add(states)
        # Here, and not where a record is read, which happens in every step.
        with self._lock:
            if self._too_large():
                self._drop(self._too_large, but=(setting, *self._in_use()))
                self._drop(self._too_large, but=(setting,))

    def _too_large(self) -> bool:
        return sum(record.nbytes for record in self._records.values()) > 2 * REMEMBERED

    def add_erased(self, states: Sequence[Tensor]) -> None:
        """Remember that something was erased from `states`."""
        self.erased.add(states)

    def passed(self, state: Tensor) -> Tensor:
        """Return `state` unchanged. Raise EraserDidNotFire if it was not made under every active eraser."""
        self.check([state])
        return state

    def check(self, states: Sequence[Tensor]) -> None:
        """Raise EraserDidNotFire if some of a call's text states were not made under every active eraser.

        The vectors are looked up once an image. In later steps the states are compared with copies of accepted ones,
        on their device.
        """
        live, given = self.live, [state.detach() for state in states if state.is_floating_point()]
        if not live or not given:
            return
        record = self._record_of(key_of(live))
        under, where = (record, *(attachment.number for attachment in live)), image() or self
        before, generation = self._accepted.find(where, under, given), record.known.generation
        if before is not None:
            if before.generation != generation:  # looked up again, so that they are not forgotten during the image
                before.generation = generation
                for state in given:
                    record.known.marks(state)
            return
        copies, accepted = [state.clone() for state in given], True
        for state in copies:
            if self._known(state, record):
                continue
            accepted = False
            for attachment in live:
                attachment.bypass(
                    f"the denoiser was given text states that were not encoded under eraser {attachment.name!r}; pass "
                    "the prompt as text, to the pipeline that it is attached to"
                )
        if accepted:
            self._accepted.add(where, Look(under, tuple(copies), generation))

    def refuse_images(self, denoiser: nn.Module, arguments: dict[str, Any]) -> None:
        """Raise EraserDidNotFire if an IP-Adapter of the denoiser reads images, past every edit of the text."""
        given = (arguments.get(name) for name in ("cross_attention_kwargs", "joint_attention_kwargs"))
        if has_ip_adapter(denoiser) or any(isinstance(each, dict) and any("ip_" in n for n in each) for each in given):
            for attachment in self.live:
                if attachment.eraser.text_edits:
                    attachment.bypass(ip_adapter_message(attachment))

    def _known(self, state: Tensor, record: Record) -> bool:
        """Whether every image of the batch reads known states, and spared ones only where negative prompts stand.

        At most half may be spared.
        """
        marks = record.known.marks(state).reshape(len(state), -1)
        if bool((marks == UNKNOWN).any()):
            return False
        spared = (marks == SPARED_ROW).any(1)
        if not bool(spared.any()):
            return True
        if self._prompts_last() and bool(spared[len(spared) // 2 :].any()):
            return False
        # Zeros do not count as a prompt.
        prompts = ~spared & (state != 0).flatten(1).any(1)
        return int(spared.sum()) <= int(prompts.sum())

    def _prompts_last(self) -> bool:
        """Whether every pipeline is of a known family, whose denoiser reads negative prompts before the prompts."""
        return all(family_of(attachment.pipe) is not None for attachment in self.live)


class DenoiserHook(Watch):
    """The guard's hook on one denoiser."""

    observed = False

    def __init__(self, guard: DenoiserGuard) -> None:
        super().__init__()
        self.denoiser_guard = guard

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.pre_forward(module, *args, **kwargs)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        super().pre_forward(module)
        if not torch.compiler.is_compiling():
            self.denoiser_guard.refuse_images(module, kwargs)
            names = _cached_parameters(type(module).forward) if args else ()
            given = (*zip(names, args, strict=False), *kwargs.items())
            texts = [pair for pair in given if pair[0] in _WITH_TEXT]
            self.denoiser_guard.check([state for name, value in texts for state in _text_states(name, value)])
            return args, kwargs
        names = _parameters(type(module).forward)
        checked = [self._checked(name, value) for name, value in zip(names, args, strict=False)]
        return (*checked, *args[len(checked) :]), {name: self._checked(name, value) for name, value in kwargs.items()}

    def _checked(self, name: str, value: Any) -> Any:
        """Return the argument after passing its text states, however nested, through the denoiser guard."""
        if name == "added_cond_kwargs" and isinstance(value, dict):
            return {key: self._checked(key, part) for key, part in value.items()}
        if name not in READS:
            return value
        if isinstance(value, tuple | list):
            return type(value)(self._checked(name, part) for part in value)
        return self.denoiser_guard.through(value) if isinstance(value, Tensor) else value


def _text_states(name: str, value: Any) -> Iterator[Tensor]:
    """Yield the text states of an argument, however nested."""
    if name == "added_cond_kwargs" and isinstance(value, dict):
        for key, part in value.items():
            yield from _text_states(key, part)
    elif name in READS and isinstance(value, tuple | list):
        for part in value:
            yield from _text_states(name, part)
    elif name in READS and isinstance(value, Tensor):
        yield value


def _parameters(forward: Callable[..., Any]) -> list[str]:
    """Return the names of the positional arguments of a class's `forward`."""
    return list(inspect.signature(forward).parameters)[1:]


_cached_parameters = lru_cache(64)(_parameters)
"""The same, not to be traced by the compiler, which warns of caches."""
