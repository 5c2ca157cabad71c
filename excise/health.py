"""Readiness of a pipeline: what is wrong with its erasers now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from excise.erasers.attachment import Attachment
from excise.erasers.loaded import loaded_on
from excise.errors import ExciseError, InvalidSetting, one_line
from excise.pipeline import Pipeline

SHORTEST_DIGEST = 12
"""Fewest digits of a digest that name an eraser."""


def ready(
    pipe: Pipeline,
    require: Mapping[str, str] | None = None,
    *,
    min_strength: float | Mapping[str, float] = 1.0,
    canary: bool = True,
) -> list[str]:
    """Return why the pipeline must not generate now, one line each. Empty means that every eraser is in force.

    An eraser is in force if it is loaded, has the right digest, is enabled for all threads at the least strength or
    more, refuses bypasses and has seen none, and the encoder, its weights, its code and its tokenizer are those that it
    was attached to. The requests of `excise.using` do not count: they are each caller's own.

    Args:
        pipe: The pipeline.
        require: The digest of each required eraser, or at least its first 12 digits, by the eraser's name on the
            pipeline. Other loaded erasers are not looked at. None requires that there is an eraser, and that all of
            them are in force.
        min_strength: Least factor on the fitted strength, for all or by name.
        canary: Whether to encode each eraser's canary prompts again, which also finds a hook that was removed. It takes
            a few encoder runs, and two denoising steps for an eraser of the denoiser. Such an eraser's canary sets the
            steps of the scheduler: run it in the thread that generates.

    Returns:
        The reasons. They hold names and no prompt.

    Raises:
        InvalidSetting: if a digest in `require` is not text of at least 12 digits.

    Example:
        >>> from excise import health
        >>> health.ready(pipe, {"gun": "f0a1d8b3c2e4"})
        []
    """
    loaded = loaded_on(pipe)
    if require is None:
        require = {name: attachment.eraser.digest for name, attachment in loaded.items()}
        if not loaded:
            return ["no eraser is loaded"]
    for name, digest in require.items():
        if not isinstance(digest, str) or len(digest) < SHORTEST_DIGEST:
            raise InvalidSetting(f"the digest of {name!r} is {digest!r}; give at least its first 12 digits as a text")
    reasons: list[str] = []
    for name, digest in require.items():
        if name not in loaded:
            reasons.append(f"eraser {name!r} is not loaded")
            continue
        least = min_strength.get(name, 1.0) if isinstance(min_strength, Mapping) else min_strength
        reasons += map(one_line, _reasons(loaded[name], digest, least, canary))
    return reasons


def _reasons(attachment: Attachment, digest: str, least: float, canary: bool) -> Iterator[str]:
    name, status = attachment.name, attachment.status()
    if not status["digest"].startswith(digest):
        yield f"eraser {name!r} has the digest {status['digest'][:12]}, not {digest[:12]}"
    if not status["enabled"]:
        yield f"eraser {name!r} is disabled"
    if not status["strength"] >= least:
        yield f"eraser {name!r} has the strength {status['strength']:g}, less than {least:g}"
    if status["on_bypass"] != "raise":
        yield f"eraser {name!r} does not refuse bypasses (on_bypass={status['on_bypass']!r})"
    if status["bypasses"]:
        yield f"eraser {name!r} was bypassed {status['bypasses']} times"
    try:
        changes = attachment.changes()
        yield from changes
        if canary and not changes:
            attachment.prove()
        if attachment.detached:
            yield f"eraser {name!r} was unloaded"
    except ExciseError as error:
        yield str(error)
