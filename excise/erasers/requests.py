"""The erasers of one request, and of one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from excise.erasers.hooks import setting
from excise.erasers.loaded import as_names, chosen, requested_by_number
from excise.pipeline import Pipeline


@contextmanager
def using(pipe: Pipeline, erasers: Mapping[str, float] | Sequence[str] | str) -> Iterator[None]:
    """Activate exactly these erasers for one request: within the block, in this thread or asyncio task alone.

    Other threads and tasks keep the default that `set_erasers` sets, or their own request. An image that begins in the
    block keeps its erasers to the end. `asyncio.to_thread` inherits the request. A `threading.Thread` and
    `loop.run_in_executor` do not, unless they run in a copy of the context (`contextvars.copy_context`).

    Args:
        pipe: The pipeline. The request holds for other pipelines of the same components too.
        erasers: Strengths by the names of loaded erasers, or names alone for strength 1. `{}` activates none.

    Raises:
        NotFound: if no eraser of one of the names is loaded.
        InvalidSetting: if a strength is impossible, or within `generating`.
        EraserDidNotFire: when an image begins and one of the erasers has been unloaded since. A replaced eraser
            (`replace_eraser`) is used under its name.

    Example:
        >>> with excise.using(pipe, {"gun": 1.0}):
        ...     image = pipe("a gun on grass").images[0]
    """
    strengths = dict(erasers) if isinstance(erasers, Mapping) else dict.fromkeys(as_names(erasers), 1.0)
    chosen(pipe, list(strengths), list(strengths.values()))
    seen: tuple[int, dict[int, float]] = (-1, {})

    def wanted() -> dict[int, float]:
        nonlocal seen
        if seen[0] != setting.version:
            with setting.LOCK:
                seen = setting.version, requested_by_number(pipe, strengths)
        return seen[1]

    with setting.requested(wanted):
        yield


@contextmanager
def generating() -> Iterator[None]:
    """Keep the erasers and strengths of its entry until its exit, for a denoising loop without a pipeline call.

    A pipeline call does this by itself. In a loop written by hand, every call of an encoder or denoiser otherwise reads
    the current strengths, so that an image could begin under one strength and end under another. Everything that this
    thread or asyncio task generates within it is under the strengths of its entry, pipeline calls too. Copies of its
    context inherit it (`asyncio.to_thread`), until its exit.

    Raises:
        EraserDidNotFire: if a request (`using`) names an eraser that has been unloaded since.

    Example:
        >>> with excise.using(pipe, {"gun": 1.0}), excise.generating():
        ...     states = pipe.encode_prompt("a gun on grass", "cpu", 1, False)[0]
        ...     for t in pipe.scheduler.timesteps:
        ...         noise = pipe.unet(latents, t, states).sample
        ...         latents = pipe.scheduler.step(noise, t, latents).prev_sample
    """
    with setting.kept():
        yield
