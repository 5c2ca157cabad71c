"""Injection: erasers at work in one of ComfyUI's text encoders.

ComfyUI injects it when it loads the encoder for a node's CLIP, and ejects it before another CLIP of the same weights
is loaded. It holds no module: a copy of the encoder for another device gets the same injection.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import Tensor

from excise.erasers.artefact.record import Artefact
from excise.erasers.edits.base import without
from excise.erasers.edits.registry import TextEdit
from excise.erasers.edits.weights import WeightEdit
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.errors import EraserDidNotFire, ExciseError, InvalidSetting, WrongModel

from .layouts import PADDED, module_at, name_of, parts_of, refuse_early
from .weights import changed_by_others

KEY = "excise"
"""Key of the attachment, and of what is added to a conditioning."""

STRONGEST = 2.0
"""Largest strength that the nodes offer."""


def check_strength(strength: float) -> None:
    """Raise InvalidSetting unless the strength is one that the nodes offer."""
    if not (math.isfinite(strength) and 0 <= strength <= STRONGEST):
        raise InvalidSetting(f"the strength is {strength}; it must be from 0 to {STRONGEST:g}")


def add_to(patcher: Any, work: Any) -> str:
    """Have ComfyUI call the `inject` and `eject` of `work` for this patcher. Return the key that it has there.

    ComfyUI takes clones with the same keys for the same: with a key of its own, this one is loaded.
    """
    key = f"{KEY}.{uuid.uuid4().hex}"
    patcher.set_injections(key, [PatcherInjection(work.inject, work.eject)])
    # A clone says that it is injected if its original is, although it is not.
    patcher.is_injected = False
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _not_injected)
    return key


def _not_injected(_: Any, clone: Any) -> None:
    clone.is_injected = False


def is_own(key: str) -> bool:
    """Whether a key of a patcher's injections is one of `add_to`."""
    return key == KEY or key.startswith(f"{KEY}.")


@dataclass(frozen=True, eq=False)
class Applied:
    """An eraser at a strength."""

    eraser: Artefact
    strength: float
    strict: bool
    enforced: bool = False
    """Whether EXCISE_ENFORCE put it there: no node can apply it again or change its strength."""


@dataclass
class Counts:
    """What one eraser did."""

    prompts: int = 0
    """Rows of tokens that were encoded: a long prompt has several."""
    fired: int = 0
    """Those in which it changed a state."""
    states: int = 0
    """States that it changed."""


class Wrapped:
    """A replacement of a module's method, which passes everything through once it is switched off."""

    def __init__(self, module: Any, name: str, owner: int, around: Callable[..., Any]) -> None:
        self.module, self.name, self.owner, self.around = module, name, owner, around
        self.was = vars(module).get(name)
        self.inner = getattr(module, name)
        self.on = True
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.inner, *args, **kwargs) if self.on else self.inner(*args, **kwargs)

    def end(self) -> None:
        """Put the method back. If it was replaced again meanwhile, only switch off."""
        self.on = False
        if vars(self.module).get(self.name) is not self:
            return
        if self.was is None:
            delattr(self.module, self.name)
        else:
            setattr(self.module, self.name, self.was)


@dataclass(eq=False)
class Injection:
    """Erasers in a text encoder. All of them read the states that the model made; their changes are summed."""

    items: tuple[Applied, ...]
    known: KnownVectors
    """The states that this encoder has returned."""
    shared: tuple[KnownVectors, ...] = ()
    """Others that must know them too."""
    own_patches: Counter[str] = field(default_factory=Counter)
    """Number of the erasers' own changes of each weight, without those of strength 0."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """By digest."""
    encoded: int = 0
    """Number of prompts."""

    def __post_init__(self) -> None:
        # As in diffusers, the result does not depend on the order of applying.
        self.items = tuple(sorted(self.items, key=lambda each: each.eraser.digest))
        for each in self.items:
            self.counts.setdefault(each.eraser.digest, Counts())

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of its erasers."""
        return tuple(each.eraser.digest for each in self.items)

    @property
    def strict(self) -> bool:
        """Whether any of its erasers is strict."""
        return any(each.strict for each in self.items)

    def edits(self) -> Iterator[tuple[Applied, TextEdit]]:
        """Iterate over the edits of states, with their erasers."""
        for each in self.items:
            for edit in each.eraser.text_edits:
                if not isinstance(edit, WeightEdit):
                    yield each, edit

    def inject(self, patcher: Any) -> None:
        """Wrap the encoder of `patcher`. Raise ExciseError if an eraser does not fit it as it is now."""
        if self.strict:
            self.refuse_patches(patcher)
        model, owner = patcher.model, id(patcher)
        parts = parts_of(model)
        run = Run(self, parts)
        made = []
        try:
            for (component, path), edits in run.places.items():
                _, module = module_at(parts[component], path)
                made.append(Wrapped(module, "forward", owner, run.layer((component, path), edits)))
            for component, part in parts.items():
                made.append(Wrapped(part, "forward", owner, run.encoder(component, part, name_of(model, part))))
            made.append(Wrapped(model, "encode_token_weights", owner, run.whole))
        except BaseException:
            for each in reversed(made):
                each.end()
            raise
        vars(model).setdefault("_excise", []).append((owner, made))

    def refuse_patches(self, patcher: Any) -> None:
        """Raise WrongModel if a LoRA or another node changes the encoder's weights or layers."""
        if what := changed_by_others(patcher, self.own_patches, is_own):
            names = ", ".join(each.eraser.name for each in self.items)
            raise WrongModel(
                f"{what} changes this text encoder, and eraser {names} was not fitted for it; load a LoRA for the "
                "model only (LoraLoaderModelOnly), leave other such nodes out, or switch strict off"
            )

    def eject(self, patcher: Any) -> None:
        """Unwrap what `patcher` wrapped. A clone that dies must not unwrap what another one did."""
        held = vars(patcher.model).get("_excise", [])
        for entry in [entry for entry in held if entry[0] == id(patcher)]:
            for each in reversed(entry[1]):
                each.end()
            held.remove(entry)


class Run:
    """The wrappers of one injection in one model, and what happens in the encoding in progress."""

    def __init__(self, injection: Injection, parts: dict[str, Any]) -> None:
        self.injection = injection
        self.places: dict[tuple[str, str], list[tuple[Applied, TextEdit]]] = {}
        for each, edit in injection.edits():
            if edit.site.component in parts:
                self.places.setdefault((edit.site.component, edit.site.path), []).append((each, edit))
        self.seen: set[tuple[str, str]] = set()
        self.fired: dict[str, Tensor] = {}
        self.moved: dict[tuple[str, str], list[tuple[Applied, TextEdit]]] = {}

    def layer(self, key: tuple[str, str], edits: list[tuple[Applied, TextEdit]]) -> Callable[..., Any]:
        """Return what runs around the layer at a Site."""

        def around(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            self.seen.add(key)
            state = output[0] if isinstance(output, tuple) else output
            edited = self._edited(state, self._on(key, edits, state.device))
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return around

    def _on(self, key: tuple[str, str], edits: Any, device: torch.device) -> list[tuple[Applied, Any]]:
        there = self.moved.get(key)
        if there is None or any(edit.device != device for _, edit in there):
            there = self.moved[key] = [(each, edit.to(device)) for each, edit in edits]
        return there

    def _edited(self, state: Tensor, edits: list[tuple[Applied, Any]]) -> Tensor:
        deltas = []
        for each, edit in edits:
            if (delta := edit.delta(state, each.strength)) is not None:
                deltas.append(delta)
                touched = (delta != 0).any(-1).cpu()  # [B, T]
                digest, counts = each.eraser.digest, self.injection.counts[each.eraser.digest]
                counts.states += int(touched.sum())
                rows = touched.any(1)
                before = self.fired.get(digest)
                self.fired[digest] = rows if before is None or len(before) != len(rows) else before | rows
        if not deltas:
            return state
        edited = without(state, sum(deltas[1:], deltas[0]))
        if not bool(torch.isfinite(edited).all()):
            raise ExciseError("the text encoder's states are not finite, so nothing is encoded; check its dtype")
        return edited

    def encoder(self, component: str, part: Any, name: str) -> Callable[..., Any]:
        """Return what runs around one encoder: refusals that need its settings or its tokens."""

        def around(inner: Callable[..., Any], tokens: Any, *args: Any, **kwargs: Any) -> Any:
            places = [at for at in self.places if at[0] == component]
            for at in places:
                for each, _ in self.places[at]:
                    if each.strict:
                        refuse_early(part, at[1], each.eraser.name)
                        if name in PADDED:
                            refuse_length(each.eraser, component, max(map(len, tokens)))
            self.seen.difference_update(places)
            output = inner(tokens, *args, **kwargs)
            if missing := [at for at in places if at not in self.seen]:
                raise EraserDidNotFire(
                    f"{missing[0][1]} of the text encoder did not run as Excise wrapped it; another node replaced it, "
                    "so nothing is encoded"
                )
            return output

        return around

    def whole(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Encode a prompt, remember its states and name its erasers in the conditioning."""
        self.seen.clear()
        self.fired.clear()
        output = inner(*args, **kwargs)
        injection = self.injection
        injection.encoded += 1
        for digest, rows in self.fired.items():
            injection.counts[digest].fired += int(rows.any())
        for counts in injection.counts.values():
            counts.prompts += 1
        states = [tensor for tensor in output[:2] if isinstance(tensor, Tensor)]
        for known in (injection.known, *injection.shared):
            known.add(states)
            known.hold(states)
        extra = dict(output[2]) if len(output) > 2 else {}
        return (*output[:2], {**extra, KEY: injection.digests})


def refuse_length(eraser: Artefact, component: str, length: int) -> None:
    """Raise InvalidSetting if a prompt has another length than those the eraser was fitted at."""
    lengths = eraser.made_for.get("lengths", {})
    fitted = lengths.get(component) if isinstance(lengths, dict) else None
    if fitted is None:
        raise InvalidSetting(
            f"eraser {eraser.name!r} does not state the length of the prompts it was fitted at, and T5's states depend "
            "on it; fit it again with this version of Excise, or switch strict off"
        )
    if length != fitted:
        raise InvalidSetting(
            f"this prompt has {length} tokens, but eraser {eraser.name!r} was fitted at {fitted}, and T5's states "
            "depend on it; write a shorter prompt"
        )
