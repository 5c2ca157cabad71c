"""CASteer behind a gate: reverse the concept's direction only in pictures that show the concept.

    h ← h - β max(⟨s, h⟩, 0) s   once ⟨s, h⟩ > τ at some cross-attention, step and patch of the picture

The direction s, for each cross-attention and step, is CASteer's (Gaintseva et al., ICLR 2026; see `casteer`). The
gate is Excise's own. It looks at the picture, not at the prompt, so a prompt in which no word gives the concept away
opens it too, if the picture comes to show the concept; and a picture whose gate stays shut keeps every bit.

The thresholds come from pictures of prompts without the concept. Let m be a picture's maximum of ⟨s, h⟩ over patches,
at one cross-attention and step, and a the 99 % quantile of m over pictures. A picture's ratio is its greatest m / a
over all cross-attentions and steps: its gate opens if that is above q, so τ = q a. Ratios above their 80 % quantile u
are taken to fall off exponentially (peaks over a threshold: Coles 2001, An Introduction to Statistical Modeling of
Extreme Values, section 4, with shape 0). With e the mean of k excesses over u, the level that a share p of new pictures
is expected to exceed is

    q = u + e k ((0.2 / p)^(1/k) - 1)      which tends to u + e ln(0.2 / p): k excesses do not tell their mean exactly

Ratios are cross-fitted: a picture's a comes from other pictures, else ratios would be too small. Where no control comes
near the direction, a is at least a quarter of its cross-attention's median over the steps, and at least the median
distance of the 99 % quantile from the 50 % quantile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.erasers.edits.vectors import GatedDirectionEdit
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import LEAST_CONTROLS, CASteerGatedConfig
from excise.methods.judging import Figures
from excise.methods.steering.casteer import directions, outputs, used_pairs
from excise.pipeline import Pipeline
from excise.sites import Site

QUANTILE, TAIL, FOLDS, LEAST, TINY = 0.99, 0.2, 10, 0.25, 1e-6
"""a's quantile; the share of ratios that the tail is fitted to; parts of the cross-fit; and a's lower bounds, as a
share of its cross-attention's median, and as a number."""


def fit(pipe: Pipeline, concept: Concept, config: CASteerGatedConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, the concept no pairs or fewer than 40 prompts without it,
    or no picture of it opens the gate.
    """
    config = config or CASteerGatedConfig()
    prompts = controls(concept, config)
    found, timesteps = directions(pipe, concept, config, "casteer-gated")
    seen = peaks(pipe, found, timesteps, prompts, config)
    scale = scales(seen)
    level = level_exceeded_by(config.false_openings, cross_fitted(seen))
    if not math.isfinite(level):
        raise ExciseError(f"the pictures without {concept.name!r} are too few or too alike to calibrate a gate on")
    # Pairs that measured the directions come last: there may be no others.
    shown = [pair.concept for pair in (*concept.pairs[config.pairs :], *concept.pairs)][: config.pairs]
    ratios = peaks(pipe, found, timesteps, shown, config) / scale
    opened = float((ratios.flatten(1).amax(1) > level).float().mean())
    if not opened:
        raise ExciseError(
            f"no picture of {concept.name!r} differs enough from those without it to open a gate; the model may not "
            f"know the concept, or raise false_openings above {config.false_openings:g}"
        )
    edits = [
        GatedDirectionEdit(site, s, timesteps, config.beta, thresholds=level * scale[n])
        for n, (site, s) in enumerate(found.items())
    ]
    measured = {
        "pairs": used_pairs(concept, config),
        "controls": len(prompts),
        "level": round(level, 4),
        "opened": round(opened, 4),
    }
    # A proof generates the first half of the steps, and another device or dtype moves states a little.
    loudest = int(ratios[..., : max(1, len(timesteps) // 2)].flatten(1).amax(1).argmax())
    return build_eraser(
        pipe,
        edits,
        concept,
        "casteer-gated",
        asdict(config),
        measured,
        canary=shown[loudest],
        figures=Figures(len(concept.pairs), opened=opened),
    )


def controls(concept: Concept, config: CASteerGatedConfig) -> list[str]:
    """Return prompts without the concept, in turn from its controls, its pairs and its benign prompts.

    Pairs that the directions are measured on are left out. Raises ExciseError if there are fewer than
    `LEAST_CONTROLS`.
    """
    sources = concept.controls, [pair.deconcept for pair in concept.pairs[config.pairs :]], concept.benign
    longest = max(map(len, sources))
    turns = (source[n] for n in range(longest) for source in sources if n < len(source))
    known = [prompt for prompt in dict.fromkeys(turns) if not mentioned(prompt, concept.mentions)]
    if len(known) < LEAST_CONTROLS:
        raise ExciseError(
            f"concept {concept.name!r} has {len(known)} prompts without it (pairs that measure the direction do "
            f"not count), and the gate needs {LEAST_CONTROLS}; give it more pairs or controls"
        )
    return known[: config.controls]


def peaks(
    pipe: Pipeline,
    found: Mapping[Site, Tensor],
    timesteps: Tensor,
    prompts: Sequence[str],
    config: CASteerGatedConfig,
) -> Tensor:
    """Return m `[pictures, sites, S]`: the maximum of ⟨s, h⟩ over a picture's patches and both branches of guidance."""
    rows = {float(timestep): n for n, timestep in enumerate(timesteps)}

    def peak(site: Site, output: Tensor, pictures: int, timestep: float) -> Tensor:
        s = found[site][rows[timestep]].to(output.device)
        return (output.float() @ s).amax(1).reshape(-1, pictures).amax(0)

    batches = []
    for batch, called in outputs(pipe, list(found), prompts, config, peak):
        calls = torch.stack([torch.stack(own, dim=-1) for own in batch.values()], dim=1)
        batches.append(torch.stack([calls[..., called == timestep].amax(-1) for timestep in timesteps], dim=-1))
    return torch.cat(batches)


def scales(seen: Tensor) -> Tensor:
    """Return a `[sites, S]` of peaks `[pictures, sites, S]`, positive."""
    quantile = torch.quantile(seen, QUANTILE, dim=0)
    spread = quantile - seen.median(dim=0).values
    typical, apart = (each.median(dim=1, keepdim=True).values for each in (LEAST * quantile, spread))
    return torch.maximum(quantile, torch.maximum(typical, apart)).clamp(min=TINY)


def cross_fitted(seen: Tensor) -> Tensor:
    """Return the ratio `[pictures]` of each picture's peaks to `scales` of pictures of the other folds."""
    fold = torch.arange(len(seen)) % FOLDS
    ratios = torch.empty(len(seen), dtype=seen.dtype)
    for part in range(FOLDS):
        own = seen[fold == part] / scales(seen[fold != part])
        ratios[fold == part] = own.flatten(1).amax(1)
    return ratios


def level_exceeded_by(share: float, ratios: Tensor) -> float:
    """Return the level q that this share of new ratios is expected to exceed, by an exponential tail."""
    start = torch.quantile(ratios, 1 - TAIL)
    above = ratios[ratios > start] - start
    k = len(above)
    return float(start) + float(above.mean()) * k * ((TAIL / share) ** (1 / k) - 1) if k else math.nan


METHOD = Fitted("casteer-gated", CASteerGatedConfig, fit)
