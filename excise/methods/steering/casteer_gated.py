"""CASteer behind a gate: reverse the concept's direction only in pictures that show the concept.

    h ← h - β max(⟨s, h⟩, 0) s   once ⟨s, h⟩ > τ at some cross-attention, step and patch of the picture

The direction s, for each cross-attention and step, is CASteer's (Gaintseva et al., ICLR 2026; see `casteer`). The
gate is Excise's own. It looks at the picture, not at the prompt, so a prompt that was found by an attack opens it as
well as the concept's name does; and a picture whose gate stays shut keeps every bit.

The thresholds come from pictures of prompts without the concept. Let m be a picture's maximum of ⟨s, h⟩ over patches,
at one cross-attention and step, and a the 99 % quantile of m over pictures. A picture's ratio is its greatest m / a
over all cross-attentions and steps: its gate opens if that is above q, so τ = q a. Above the 80 % quantile u, ratios
are taken to fall off exponentially (the peaks-over-threshold method, Coles 2001, An Introduction to Statistical
Modeling of Extreme Values, section 4, with shape 0): P(ratio > q) = 0.2 exp(-(q - u) / e) with e the mean excess over
u. Solved for q, that is the level that a stated share of pictures exceeds. Ratios are cross-fitted: a picture's a comes
from other pictures, else ratios would be too small. A direction that no control comes near has a tiny a, so that a is
at least a quarter of the median over its cross-attention's steps.
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
from excise.methods.steering.casteer import directions, outputs, used_pairs
from excise.pipeline import Pipeline
from excise.sites import Site

QUANTILE, TAIL, FOLDS, LEAST = 0.99, 0.2, 10, 0.25
"""a's quantile; the share of ratios that the tail is fitted to; parts of the cross-fit; and a's lower bound, as a share
of its cross-attention's median."""


def fit(pipe: Pipeline, concept: Concept, config: CASteerGatedConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, the concept no pairs, or fewer than 40 prompts without
    it.
    """
    config = config or CASteerGatedConfig()
    prompts = controls(concept, config.controls)
    found, timesteps = directions(pipe, concept, config, "casteer-gated")
    seen = peaks(pipe, found, timesteps, prompts, config)
    scale = scales(seen)
    ratios = cross_fitted(seen)
    level = level_exceeded_by(config.false_openings, ratios)
    edits = [
        GatedDirectionEdit(site, s, timesteps, config.beta, thresholds=level * scale[n])
        for n, (site, s) in enumerate(found.items())
    ]
    measured = {
        "pairs": used_pairs(concept, config),
        "controls": len(prompts),
        "level": round(level, 4),
        "largest_ratio": round(float(ratios.max()), 4),
    }
    return build_eraser(pipe, edits, concept, "casteer-gated", asdict(config), measured)


def controls(concept: Concept, most: int) -> list[str]:
    """Return up to `most` prompts without the concept, in turn from its controls, its pairs and its benign prompts.

    Raises ExciseError if there are fewer than `LEAST_CONTROLS`.
    """
    sources = concept.controls, [pair.deconcept for pair in concept.pairs], concept.benign
    longest = max(map(len, sources))
    turns = (source[n] for n in range(longest) for source in sources if n < len(source))
    known = [prompt for prompt in dict.fromkeys(turns) if not mentioned(prompt, concept.mentions)]
    if len(known) < LEAST_CONTROLS:
        raise ExciseError(
            f"concept {concept.name!r} has {len(known)} prompts without it, and the gate needs {LEAST_CONTROLS}; "
            "give it more pairs or controls"
        )
    return known[:most]


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

    read, called = outputs(pipe, list(found), prompts, config, peak)
    whole = torch.stack(list(read.values()), dim=1)
    return torch.stack([whole[..., called == timestep].amax(-1) for timestep in timesteps], dim=-1)


def scales(seen: Tensor) -> Tensor:
    """Return a `[sites, S]` of peaks `[pictures, sites, S]`, positive."""
    quantile = torch.quantile(seen, QUANTILE, dim=0)
    typical = quantile.clamp(min=torch.finfo(seen.dtype).tiny).median(dim=1, keepdim=True).values
    return torch.maximum(quantile, LEAST * typical)


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
    excess = float((ratios[ratios > start] - start).mean())
    return float(start) + excess * math.log(TAIL / share)


METHOD = Fitted("casteer-gated", CASteerGatedConfig, fit)
