"""The erasers on a pipeline, by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.attachment import Attachment
from excise.erasers.eraser import Eraser
from excise.erasers.guard.near import attachments_near
from excise.erasers.hooks import setting
from excise.errors import EraserDidNotFire, InvalidSetting, NotFound, one_line, stacklevel
from excise.pipeline import Pipeline, check_pipeline


def steer_guidance(pipe: Pipeline) -> bool:
    """Whether an active eraser changes or reads classifier-free guidance, so that it needs both branches in one U-Net
    batch."""
    active = [attachment for attachment in loaded_on(pipe).values() if attachment.active]
    return any(edit.kind in ("guidance", "picture") for attachment in active for edit in attachment.eraser.edits)


def loaded_on(pipe: Pipeline) -> dict[str, Attachment]:
    """Return the erasers that act on `pipe`, including those attached to a pipeline of the same components, but not one
    that is being proved. Raise WrongModel for an object that is not a pipeline."""
    check_pipeline(pipe)
    return {
        attachment.name: attachment
        for attachment in attachments_near(pipe)
        if isinstance(attachment, Attachment) and attachment.attached and attachment.acts_on(pipe)
    }


def as_names(names: Sequence[str] | str) -> list[str]:
    """Return names as a list. Raise InvalidSetting if one is not a text."""
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    for name in given:
        if not isinstance(name, str):
            raise InvalidSetting(f"an eraser's name cannot be {name!r}; give a text")
    return given


def named(pipe: Pipeline, names: Sequence[str] | None) -> list[Attachment]:
    """Return the erasers of these names, or all of them for None. Raise NotFound if one is not loaded."""
    loaded = loaded_on(pipe)
    for name in names or ():
        if name not in loaded:
            raise NotFound(f"no eraser called {name!r} is loaded; loaded are {', '.join(loaded) or 'none'}")
    return [loaded[name] for name in (loaded if names is None else names)]


def chosen(pipe: Pipeline, names: Sequence[str] | str, strengths: Sequence[float] | float) -> dict[Attachment, float]:
    """Return these erasers with their strengths. Raise NotFound or InvalidSetting as `set_erasers` does."""
    wanted = as_names(names)
    given: Any = [strengths] * len(wanted) if isinstance(strengths, Real) else strengths
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidSetting(f"strengths cannot be {strengths!r}; give numbers")
    values = list(given)
    if len(values) != len(wanted):
        raise InvalidSetting(f"{len(wanted)} erasers but {len(values)} strengths; give one each, or one for all")
    pairs = zip(named(pipe, wanted), values, strict=True)
    return {attachment: attachment.check_strength(value) for attachment, value in pairs}


def requested_by_number(pipe: Pipeline, strengths: Mapping[str, float]) -> dict[int, float]:
    """Return a request's strengths by attachments' numbers: of those that have these names now, and 0 for others."""
    loaded = loaded_on(pipe)
    for name, strength in strengths.items():
        if strength and name not in loaded:
            raise EraserDidNotFire(f"eraser {name!r} was unloaded while a request uses it, so nothing is rendered")
    found = {attachment.number: strengths.get(name, 0.0) for name, attachment in loaded.items()}
    # Pipelines without text encoders follow the one that encodes for them.
    for host in setting.hosts():
        if host.encoded_by is not None and host.encoded_by.number in found:
            found[host.number] = found[host.encoded_by.number]
    return found


def warn_if_weak(erasers: Iterable[Eraser]) -> None:
    """Warn once, at the user's line, if erasers were accepted as weak."""
    if weak := [eraser for eraser in erasers if eraser.weak]:
        reasons = ". ".join(f"eraser {one_line(eraser.name)!r} is weak: {'; '.join(eraser.weak)}" for eraser in weak)
        warnings.warn(
            f"{one_line(reasons)}. It was accepted as such; test it on your own prompts before you rely on it",
            WeakEraser,
            stacklevel=stacklevel(),
        )
