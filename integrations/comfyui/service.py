"""Enforcement: with EXCISE_ENFORCE, every CLIP that ComfyUI makes has the erasers of a folder. And a health check."""

from __future__ import annotations

import os
import threading
from functools import wraps
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
from aiohttp import web
from server import PromptServer

from excise.erasers.artefact.files import every_eraser
from excise.erasers.artefact.record import Artefact
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.errors import ExciseError, InvalidSetting, NotFound, WrongModel

from .apply import applied, components, refuse_kind
from .guard import check, guard_every_sampling
from .layouts import layout_of
from .weights import differences

ENFORCE = "EXCISE_ENFORCE"
"""Environment variable: folders of erasers, separated like those of PATH."""


class Enforced:
    """Erasers that every CLIP must have, and what was done with them."""

    def __init__(self, erasers: list[Artefact]) -> None:
        self.erasers, self.known = erasers, KnownVectors()
        self.names = ", ".join(eraser.name for eraser in erasers)
        self.concepts = sorted({eraser.concept for eraser in erasers})
        self.clips = self.refused = self.samplings = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, value: str) -> Enforced:
        """Load every eraser of the folders in `value`. Raise ExciseError if one is bad, or a folder has none."""
        if "" in (roots := value.split(os.pathsep)):
            raise NotFound(f"{ENFORCE} names an empty folder; give it folders of erasers, or unset it")
        loaded = [Artefact.load(folder) for root in roots for folder in every_eraser(Path(root))]
        erasers = list({eraser.digest: eraser for eraser in loaded}.values())
        for eraser in erasers:
            try:
                refuse_kind(eraser)
            except InvalidSetting as error:
                raise InvalidSetting(f"{error}; to start, move it out of the folders of {ENFORCE}") from error
        return cls(erasers)

    def apply(self, clip: Any) -> None:
        """Apply the erasers to a new CLIP, in place. Raise WrongModel if a concept has no eraser for this encoder."""
        there = set(layout_of(clip.patcher.model))
        fitting = [each for each in self.erasers if components(each) <= there and not differences(clip.patcher, each)]
        if left := sorted(set(self.concepts) - {eraser.concept for eraser in fitting}):
            with self._lock:
                self.refused += 1
            raise WrongModel(
                f"{ENFORCE} has no eraser of {', '.join(left)} for this text encoder, so its model is not loaded; add "
                "one that was fitted on it"
            )
        made = clip
        for eraser in fitting:
            made = applied(made, eraser, shared=(self.known,))
        clip.patcher = made.patcher
        clip.tokenizer_options = made.tokenizer_options
        with self._lock:
            self.clips += 1

    def check(self, guider: Any) -> None:
        """Raise EraserDidNotFire if a sampling reads a state that no enforced CLIP made."""
        try:
            check(guider, [self.known], self.names)
        except ExciseError:
            with self._lock:
                self.refused += 1
            raise
        with self._lock:
            self.samplings += 1

    def install(self) -> None:
        """Have ComfyUI apply the erasers to every CLIP it makes from now on, and check every sampling."""
        made = comfy.sd.CLIP.__init__

        @wraps(made)
        def init(clip: Any, *args: Any, **kwargs: Any) -> None:
            made(clip, *args, **kwargs)
            if hasattr(clip, "patcher"):  # a clone is made without, and copies the original's
                self.apply(clip)

        comfy.sd.CLIP.__init__ = init
        guard_every_sampling(comfy.samplers, self.check)

    def status(self) -> dict[str, Any]:
        """Return counts and digests as JSON. No prompt is in it."""
        return {
            "erasers": [
                {"name": eraser.name, "concept": eraser.concept, "digest": eraser.digest} for eraser in self.erasers
            ],
            "clips": self.clips,
            "samplings": self.samplings,
            "refused": self.refused,
        }


def start(value: str | None) -> None:
    """Enforce the erasers of the folders in `value`, unless it is None, and answer `GET /excise/status`."""
    enforced = None if value is None else Enforced.of(value)
    if enforced is not None:
        enforced.install()
    server = getattr(PromptServer, "instance", None)
    if server is None:  # imported by a tool, without a server
        return

    async def status(_: web.Request) -> Any:
        return web.json_response({"enforced": None if enforced is None else enforced.status()})

    server.routes.get("/excise/status")(status)
