"""Settings: which erasers act in an image, and how strongly, read when the image begins and kept to its end.

Operators switch and scale erasers while other threads generate images. A `Setting` is a snapshot, so that all edits and
checks of an image read the same strengths.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from excise.erasers.hooks.bound import Bound
from excise.erasers.hooks.deferring import DeferringLock
from excise.errors import InvalidSetting
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

LOCK = DeferringLock()
"""Held while erasers are attached, detached or set, and for a snapshot, so that no snapshot has half a change. Other
locks are taken after it, never before."""
_KEY = "excise setting"
"""Key of a setting among the local variables of its function call. It is not a valid variable name. The setting is
freed with the frame, whether the call returns or raises."""
_THERE = "excise attachments"
"""Key, in the same place, of the attachments that existed before the pipeline's first one was attached during the
call."""

Strengths = Mapping[int, float]
"""Strengths by the number of the attachment; 0 for one that is off."""

Key = frozenset[tuple[int, float]]
"""Numbers and strengths of the active attachments. States encoded under one key are accepted under this key only."""


class Setting:
    """The strengths of all attachments in one image."""

    of_pipeline = ended = False

    def __init__(self, strengths: Strengths) -> None:
        self.strengths = strengths
        _SETTINGS.add(self)

    @property
    def is_here(self) -> bool:
        """Whether it applies to this thread or task."""
        raise NotImplementedError

    @property
    def in_use(self) -> bool:
        """Whether the image is unfinished, in any thread or task."""
        raise NotImplementedError


class OfCall(Setting):
    """The setting of a function call. It is freed with the call's frame."""

    def __init__(self, strengths: Strengths, frame: FrameType) -> None:
        """`frame` is a function call of this thread."""
        super().__init__(strengths)
        self.of_pipeline = _is_pipeline(frame)
        self._frame = id(frame)
        self._pauses = bool(frame.f_code.co_flags & _PAUSING)
        self._greenlet = _greenlet()
        frame.f_locals[_KEY] = self

    @property
    def is_here(self) -> bool:
        """Whether its function call is on this thread's stack.

        An interrupted call may have left it behind, and a copied context brings it to another thread.
        """
        return self._is_below(sys._getframe())

    @property
    def in_use(self) -> bool:
        """Whether its function call is unfinished.

        A frame can outlive its call, in a stored exception's traceback, so all stacks are searched. A call that pauses
        is not on a stack: a generator's or coroutine's counts as long as its frame exists.
        """
        return self._pauses or self.is_here or any(self._is_elsewhere() for _ in range(3))

    def _is_elsewhere(self) -> bool:
        """Whether its call is on another stack. The search can miss it, if it stands on a function that returns
        meanwhile."""
        paused: FrameType | None = getattr(self._greenlet(), "gr_frame", None)
        return any(self._is_below(frame) for frame in (*sys._current_frames().values(), paused))

    def _is_below(self, frame: FrameType | None) -> bool:
        while frame is not None and id(frame) != self._frame:
            frame = frame.f_back
        # A later frame can have the id of a freed one, but not its setting.
        return frame is not None and frame.f_locals.get(_KEY) is self


_PAUSING = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""Flags of functions whose calls can pause."""


def _greenlet() -> Callable[[], Any]:
    """Return a weak reference to the running greenlet, if any are used: gevent's are not on the stack while they
    wait."""
    module = sys.modules.get("greenlet")
    return weakref.ref(module.getcurrent()) if module is not None else lambda: None


class OfBlock(Setting):
    """The setting of a `with` block, which copies of its context inherit."""

    @property
    def is_here(self) -> bool:
        return not self.ended

    @property
    def in_use(self) -> bool:
        return not self.ended


_CURRENT: ContextVar[Setting | None] = ContextVar("excise_setting", default=None)
"""This thread's or task's setting while it encodes a prompt or runs a denoiser."""
_REQUESTS: ContextVar[tuple[Callable[[], Strengths], ...]] = ContextVar("excise_requests", default=())
"""Requests of `excise.using` in this thread or task, the outermost first."""
_HOSTS: weakref.WeakValueDictionary[int, Host] = weakref.WeakValueDictionary()
"""All attachments, by number."""
version = 0
"""Grows whenever an attachment comes, goes or is renamed."""
_SETTINGS: weakref.WeakSet[Setting] = weakref.WeakSet()
_LEAVING: list[tuple[int, Callable[[], None]]] = []
"""Numbers of detached attachments that some image still uses, and functions that remove their hooks."""


def key_of(active: Iterable[Host]) -> Key:
    """Return the key of these attachments under this image's setting.

    An attachment to a pipeline without text encoders counts as the one that encodes for it.
    """
    return frozenset(((host.encoded_by or host).number, host.strength) for host in active)


def key_in(strengths: Strengths, hosts: Iterable[Host]) -> Key:
    """Return the key that `key_of` returns in an image with these strengths, given all attachments of a guard."""
    active = ((host, strengths[host.number]) for host in hosts if strengths.get(host.number))
    return frozenset(((host.encoded_by or host).number, strength) for host, strength in active)


def strengths_in_use() -> list[Strengths]:
    """Return the strengths of every setting whose function call is still running, in any thread."""
    return [setting.strengths for setting in tuple(_SETTINGS) if setting.in_use]


def current(host: Host) -> float | None:
    """Return an attachment's strength in this image or request, or None outside of both."""
    if (setting := _CURRENT.get()) is not None and not setting.ended:
        return setting.strengths.get(host.number, 0.0)
    found: float | None = None
    for request in _REQUESTS.get():
        found = request().get(host.number, found)
    return found


class Fixed:
    """Context manager that keeps one setting: the one of this thread's image, or else a snapshot taken on entering."""

    def __enter__(self) -> None:
        self._opened = not _is_fixed()
        if self._opened:
            _CURRENT.set(_of_image(sys._getframe(1)))

    def __exit__(self, *error: object) -> None:
        if self._opened:
            _CURRENT.set(None)


def _is_fixed() -> bool:
    """Whether this thread or task has a setting in use."""
    return (setting := _CURRENT.get()) is not None and setting.is_here


def forget_ended() -> None:
    """Drop a setting that an interrupted call has left behind, so that it is not read any more."""
    if not _is_fixed():
        _CURRENT.set(None)


@contextmanager
def kept() -> Iterator[None]:
    """Keep one setting in this thread or task: the one in use, or else a snapshot taken on entering."""
    if _is_fixed():
        yield
        return
    with LOCK:
        block = OfBlock(_strengths())
        sweep()
    token = _CURRENT.set(block)
    try:
        yield
    finally:
        block.ended = True
        with suppress(ValueError):  # an abandoned generator may be closed in another context
            _CURRENT.reset(token)
        _ended()


def image() -> Setting | None:
    """Return the setting of this thread's pipeline call, the same object for all of its steps, or None."""
    setting = _CURRENT.get()
    return setting if setting is not None and setting.of_pipeline else None


@contextmanager
def requested(strengths: Callable[[], Strengths]) -> Iterator[None]:
    """Use the result of `strengths()`, called when an image begins, instead of the default strengths.

    Raises InvalidSetting within `kept`, where it would have no effect.
    """
    if isinstance(setting := _CURRENT.get(), OfBlock) and not setting.ended:
        raise InvalidSetting("excise.generating keeps the erasers of its entry; enter excise.using before it")
    token = _REQUESTS.set((*_REQUESTS.get(), strengths))
    try:
        yield
    finally:
        _REQUESTS.reset(token)


def join(host: Host) -> None:
    """Activate an attachment for the images that begin from now on."""
    with LOCK:
        _keep_running(host)
        _HOSTS[host.number] = host
        changed()


def _keep_running(host: Host) -> None:
    """Exclude the attachment from running pipeline calls, if it brings the first hooks on their pipeline.

    Without hooks nothing has noticed these images begin, and their prompts may be encoded already.
    """
    there = frozenset(_HOSTS)
    for frame in sys._current_frames().values():
        running: FrameType | None = frame
        while running is not None:
            if _is_pipeline(running) and _is_first(host, running.f_locals["self"]):
                running.f_locals.setdefault(_THERE, there)
            running = running.f_back


def _is_first(host: Host, pipe: Pipeline) -> bool:
    """Whether this attachment brought all hooks on the pipeline."""
    found = [_ENTRANCES[part] for part in pipe.components.values() if part in _ENTRANCES]
    return bool(found) and all(entrance.first == host.number for entrance in found)


def hosts() -> list[Host]:
    """Return all attachments."""
    return list(_HOSTS.values())


def changed() -> None:
    """Make requests look their names up again, after an attachment came, went or was renamed."""
    global version
    version += 1


def leave(host: Host, take_off: Callable[[], None]) -> None:
    """Deactivate an attachment for the images that begin from now on. Call `take_off` when no image uses it."""
    with LOCK:
        _HOSTS.pop(host.number, None)
        changed()
        _LEAVING.append((host.number, take_off))
        sweep()


def sweep() -> None:
    """Remove the hooks of detached attachments that no image uses any more."""
    with LOCK:
        if not _LEAVING:
            return
        used = {number for setting in tuple(_SETTINGS) for number in setting.strengths if setting.in_use}
        done = [(number, take_off) for number, take_off in _LEAVING if number not in used]
        _LEAVING[:] = [entry for entry in _LEAVING if entry[0] in used]
        for _, take_off in done:
            take_off()


def _ended() -> None:
    """Remove hooks that an ended setting may have kept."""
    if _LEAVING:
        LOCK.after(sweep)


def _taken(frame: FrameType, there: Container[int] | None = None) -> Setting:
    """Return a snapshot for a function call of this thread. Default strengths count only for attachments in `there`."""
    with LOCK:
        setting = OfCall(_strengths(there), frame)
        weakref.finalize(setting, _ended).atexit = False
        sweep()
        return setting


def _strengths(there: Container[int] | None = None) -> Strengths:
    """Return the strengths of the active attachments now."""
    hosts = tuple(_HOSTS.items())
    strengths = {number: host.own_strength for number, host in hosts if there is None or number in there}
    for request in _REQUESTS.get():
        strengths |= request()
    return {number: value for number, value in strengths.items() if value}


def _of_image(caller: FrameType) -> Setting:
    """Return the setting of this thread's pipeline call, or without one a snapshot for the function call `caller`."""
    # The innermost call of a diffusers pipeline. Reading a frame's variables copies them all, so they are read once.
    frame: FrameType | None = caller
    while frame is not None:
        if frame.f_code.co_name == "__call__" and _is_of_pipeline(variables := frame.f_locals):
            found: Setting | None = variables.get(_KEY)
            return _taken(frame, variables.get(_THERE)) if found is None else found
        frame = frame.f_back
    return _taken(caller)


def _is_pipeline(frame: FrameType) -> bool:
    return frame.f_code.co_name == "__call__" and _is_of_pipeline(frame.f_locals)


def _is_of_pipeline(variables: Mapping[str, Any]) -> bool:
    return isinstance(variables.get("self"), _pipelines())


@cache
def _pipelines() -> type:
    """Return the class of all diffusers pipelines, imported once: even a second import statement costs time here."""
    from diffusers import DiffusionPipeline

    kind: type = DiffusionPipeline
    return kind


_ENTRANCES: weakref.WeakKeyDictionary[nn.Module, Entrance] = weakref.WeakKeyDictionary()


class Entrance(Bound):
    """Hooks that keep one setting for each run of a text encoder or denoiser. All attachments share them."""

    def __init__(self, module: nn.Module, first: int) -> None:
        """`first` is the number of the attachment that brings it."""
        self.first, self._users, self._here = first, 0, threading.local()
        # It runs before other hooks, since they read the setting, and also after an error.
        before = module.register_forward_pre_hook(self._enter, prepend=True)
        self._handles: tuple[RemovableHandle, ...] = (
            before,
            module.register_forward_hook(self._exit, always_call=True),
        )

    @classmethod
    def add(cls, host: Host, modules: list[nn.Module]) -> Callable[[], None]:
        """Install hooks on these modules for an attachment. Return a function that removes them."""
        with LOCK:
            for module in modules:
                if module not in _ENTRANCES:
                    _ENTRANCES[module] = cls(module, host.number)
                _ENTRANCES[module]._users += 1

        def off() -> None:
            with LOCK:
                for module in modules:
                    entrance = _ENTRANCES[module]
                    entrance._users -= 1
                    if not entrance._users:
                        del _ENTRANCES[module]
                        for handle in entrance._handles:
                            handle.remove()

        return off

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        opens, opened = not _is_fixed(), self._opened
        if opens:
            opened.clear()  # interrupted runs may have left some
            _CURRENT.set(_of_image(sys._getframe(1)))
        opened.append(opens)

    def _exit(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and (opened := self._opened) and opened.pop():
            _CURRENT.set(None)

    @property
    def _opened(self) -> list[bool]:
        """For each of this thread's unfinished runs of the module: whether it took the setting."""
        opened: list[bool] | None = getattr(self._here, "opened", None)
        if opened is None:
            opened = self._here.opened = []
        return opened
