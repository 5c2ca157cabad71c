"""Shared by SAEuron and SAEmnesia: measure a block's neuron levels during generation, and build the edit from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import BlockEdit, Eraser
from excise.erasers.artefact.strength import LEAST_CARRIED
from excise.erasers.edits.block_replacement import ReplacementEdit
from excise.erasers.edits.sae_rows import preactivations
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, InvalidSetting, WrongModel
from excise.methods.build import build_eraser
from excise.methods.configs.sae import BlockConfig
from excise.methods.sae.metadata import sae_name
from excise.neurons.timesteps import Means
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, card, load
from excise.sae.metrics import exact
from excise.sites import Site, block_site, capture_blocks


@dataclass(frozen=True, eq=False)
class Levels:
    """Means of the codes by step, over every patch of the pictures. S steps, m neurons."""

    timesteps: Tensor
    """`[S]`"""
    own: Tensor
    """`[S, m]`: over pictures of the concept."""
    others: Tensor
    """`[S, m]`: over pictures of other things."""
    kinds: int
    """How many different things the others show: their weight in the mean over all concepts."""
    kept: Tensor
    """`[S]`: the mean over the patches of the smallest pre-activation that TopK kept."""
    positives: Tensor
    """`[S, P, m]`: means over the patches of each picture of the concept, without TopK."""
    negatives: Tensor
    """The same for pictures of other things."""
    variance: float
    """Variance of the block's features."""
    change: Tensor
    """`[S, d]`: mean of the features over pictures of the concept, minus that over others."""

    @property
    def usual(self) -> Tensor:
        """`[S, m]`: the mean over all concepts of their means, the gate of SAeUron's edit."""
        return (self.own + self.kinds * self.others) / (self.kinds + 1)


def levels(pipe: Pipeline, site: Site, sae: TopKSAE, concept: Concept, config: BlockConfig) -> Levels:
    """Generate pictures for the concept's prompts and as many for their deconcept prompts, and measure neuron levels.

    Raises ExciseError if the concept has no pairs, or the settings contradict each other.
    """
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    if config.edit == "replace" and config.compat:
        raise InvalidSetting("compat is about an edit of codes; leave it out with edit=replace")
    count = config.pictures
    spread = [concept.pairs[n * len(concept.pairs) // count] for n in range(count)]
    with unedited():
        shown = _side(pipe, site, sae, [pair.concept for pair in spread], config, config.seed)
        others = _side(pipe, site, sae, [pair.deconcept for pair in spread], config, config.seed + count)
    kinds = len({frozenset(pair.deconcept.split()) - set(pair.concept.split()) for pair in spread})
    return Levels(
        shown.timesteps,
        shown.means,
        others.means,
        kinds,
        shown.kept,
        shown.pooled,
        others.pooled,
        shown.variance,
        (shown.centre - others.centre).float(),
    )


class _Side(NamedTuple):
    """Measurements on the pictures of one side."""

    timesteps: Tensor
    means: Tensor
    kept: Tensor
    pooled: Tensor
    variance: float
    centre: Tensor


def _side(pipe: Pipeline, site: Site, sae: TopKSAE, prompts: Sequence[str], config: BlockConfig, seed: int) -> _Side:
    means, timesteps = Means(config.steps, sae.config.m), torch.zeros(config.steps, dtype=torch.float64)
    least, seen = torch.zeros_like(timesteps), torch.zeros_like(timesteps)
    pooled = torch.zeros(config.steps, len(prompts), sae.config.m)
    total, squares = (torch.zeros(n, site.width, dtype=torch.float64) for n in (config.steps, 1))
    stream = capture_blocks(
        pipe,
        site,
        prompts,
        seeds=range(seed, seed + len(prompts)),
        steps=config.steps,
        batch_size=config.batch_size,
        options={} if config.guidance is None else {"guidance_scale": config.guidance},
    )
    for patches in stream:
        flat = patches.states.flatten(0, 1).to(sae.W_enc)
        with torch.no_grad():
            codes = sae.encode(flat)
            open_ones = preactivations(flat, sae.W_enc, sae.b_enc, sae.b_pre).clamp(min=0)
        pooled[patches.step, list(patches.numbers)] = open_ones.reshape(*patches.states.shape[:2], -1).mean(1).cpu()
        means.add(patches.step, codes.values, codes.indices)
        timesteps[patches.step] = patches.timestep
        least[patches.step] += exact(codes.values[:, -1]).sum().cpu()
        seen[patches.step] += len(flat)
        total[patches.step] += exact(flat).sum(0).cpu()
        squares += exact(flat).square().sum(0).cpu()
    count = float(seen.sum())
    variance = float((squares / count - (total.sum(0) / count).square()).mean())
    return _Side(timesteps, means.means, least / seen, pooled, variance, total / seen[:, None])


def edit_of(sae: TopKSAE, site: Site, neurons: list[int], found: Levels, config: BlockConfig) -> BlockEdit:
    """Return the edit of these neurons at every step, at the measured levels."""
    if config.codes == "whole":
        cut = opening(found.positives[..., neurons], found.negatives[..., neurons], config.margin)
        if not bool((found.positives[0][:, neurons].median(0).values > found.negatives[0][:, neurons].amax(0)).any()):
            raise ExciseError(
                f"neuron {neurons[0]} is not louder in pictures of the concept than in others, so no threshold can "
                'separate whole pictures; use another SAE, or codes="threshold"'
            )
    else:
        cut = found.kept[:, None].expand(-1, len(neurons))
    if config.units == "concept":
        codes = found.positives[..., neurons].mean(1) if config.codes == "whole" else found.own[:, neurons]
        share = carried(codes.float(), sae.W_dec.detach()[neurons].cpu(), found.change)
        level = 1 / share.clamp(min=LEAST_CARRIED)[:, None].expand(-1, len(neurons))
    else:
        level = found.own[:, neurons] / (math.sqrt(found.variance) if config.units == "deviation" else 1.0)

    def table(values: Tensor) -> Tensor:
        return values.float().contiguous()

    options: dict[str, Any] = {
        "timesteps": found.timesteps.float(),
        "level": table(level),
        "gate": table(found.usual[:, neurons]),
        "cut": table(cut),
        "gamma": config.gamma,
        "codes": config.codes,
        "steps": config.at_other_steps,
        "compat": config.compat,
    }
    if config.edit == "replace":
        return ReplacementEdit.from_sae(sae, site, neurons, **options, seed=config.seed)
    return BlockEdit.from_sae(sae, site, neurons, **options)


def carried(codes: Tensor, W_dec: Tensor, change: Tensor) -> Tensor:
    """Return the share `[S]` of `change` `[S, d]` that the mean codes `[S, k]` write with rows `W_dec` `[k, d]`.

    It is the projection of what they write onto the change, relative to the change's length.
    """
    return ((codes @ W_dec) * change).sum(1) / change.square().sum(1).clamp(min=1e-12)


def opening(positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Return the threshold `[S, k]` q + margin (typical - q) at each step, or q if typical is below it.

    q is the maximum over `negatives` `[S, Q, k]`, typical the median of `positives` `[S, P, k]`.
    """
    q, typical = negatives.amax(1), positives.median(1).values
    return q + margin * (typical - q).clamp(min=0)


def build_block_eraser(
    pipe: Pipeline,
    edits: tuple[BlockEdit, ...],
    concept: Concept,
    method: str,
    config: BlockConfig,
    measured: Mapping[str, Any],
) -> Eraser:
    """Build the eraser, and attach it once to check that it fires."""
    settings = {**asdict(config), "sae": sae_name(config.sae), "site": edits[0].site.path}
    sae = block_sae(config.sae) if any(edit.needs_sae for edit in edits) else None
    return build_eraser(pipe, edits, concept, method, settings, measured, sae=sae)


def block_sae(folder: str) -> TopKSAE:
    """Load the SAE in a folder. Raises ExciseError if none is named."""
    if not folder:
        raise InvalidSetting("no SAE was named; give the folder of one trained at a block of the denoiser")
    return load(Path(folder))


def trained_at(pipe: Pipeline, folder: str, path: str) -> Site:
    """Return the block on an SAE's card, or the one at `path`. Raises ExciseError if both are missing or differ."""
    named = card(Path(folder)).get("site") if folder else None
    if isinstance(named, dict):
        own = block_site(pipe, str(named.get("path")), str(named.get("component")))
        if path and path != own.path:
            raise WrongModel(f"the SAE was trained at {own.key}, not at {path}; use that block or another SAE")
        return own
    if not path:
        raise InvalidSetting(
            "no block was named and the SAE's card names none; give one such as up_blocks.1.attentions.1"
        )
    return block_site(pipe, path)
