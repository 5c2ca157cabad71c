"""The attachments that may concern a pipeline: its own, and those of pipelines that share components with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.guard.encode_prompt import Guard
from excise.erasers.guard.tally import Tally
from excise.erasers.hooks.wrapping import found_on
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoisers
from excise.sites.site import text_encoders

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host


def attachments_near(pipe: Pipeline) -> list[Host]:
    """Return everything attached to `pipe` or to any pipeline that shares a text encoder or a denoiser with it."""
    guard = Guard.of(pipe)
    found = dict.fromkeys(guard.attachments if guard is not None else ())
    if isinstance(getattr(pipe, "components", None), dict):
        tallies = [found_on(encoder, Tally) for encoder in text_encoders(pipe).values()]
        found |= dict.fromkeys(a for tally in tallies if tally is not None for a in tally.attachments)
        guards = [DenoiserGuard.of(denoiser) for denoiser in denoisers(pipe)]
        found |= dict.fromkeys(a for guard in guards if guard is not None for a in guard.attachments)
    return list(found)
