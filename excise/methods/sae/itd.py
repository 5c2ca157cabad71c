"""ItD: turn down a concept's neurons, only in prompts that a gate assigns to the concept (Tian et al., Sparse
Autoencoder as a Zero-Shot Classifier for Concept Erasing in Text-to-Image Diffusion Models, 2025: Interpret then
Deactivate).

Written from the paper's abstract and its authors' code (no licence, not used), with these assumptions:
- neurons: the `features` largest of the SAE over the words of the concept (128 in their code), BOS left out, minus
  those that are among the largest of any of `retain` prompts to keep (50 captions of COCO there, the concept's
  deconcept prompts here);
- each is multiplied by `factor`, a negative number, in the prompt's own states; -1 is our choice. The states keep the
  SAE's error; the authors use the reconstruction instead;
- the gate: the resulting change of a prompt's states, squared and averaged over positions, must be at least `share` of
  the smallest positive one of a concept prompt (0.99 in their code).
A saved eraser holds the neurons' rows only: instead of TopK, it uses the smallest code of each that TopK kept.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import check_apart
from excise.erasers import Eraser
from excise.erasers.edits.gated_sae import GatedSAEEdit
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, InvalidSetting
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.sae import ItDConfig, SNCEConfig
from excise.methods.prompt_codes import prompt_codes
from excise.methods.sae.finding import site_of
from excise.methods.sae.metadata import sae_name
from excise.neurons import PromptCodes
from excise.pipeline import Pipeline
from excise.sae import load
from excise.sites import capture


def fit(pipe: Pipeline, concept: Concept, config: ItDConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the SAE is missing or was trained at another Site, the concept has no pairs, or no neuron is
    its own.
    """
    config = config or ItDConfig()
    if not config.sae:
        raise InvalidSetting("no SAE was named; give the folder of one trained at the Site to edit")
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    sae = load(Path(config.sae))
    site = site_of(pipe, sae, SNCEConfig(sae=config.sae, site=config.site))
    prompts = [pair.concept for pair in concept.pairs]
    quiet = list(dict.fromkeys(pair.deconcept for pair in concept.pairs))[: config.retain]
    check_apart(quiet, concept)
    own, stays = (prompt_codes(pipe, sae, site, texts, config.batch_size)[0] for texts in (concept.mentions, quiet))
    read, _ = prompt_codes(pipe, sae, site, prompts, config.batch_size)
    found = own_neurons(own, stays, config.features)
    if not found:
        raise ExciseError(f"no neuron of this SAE is {concept.name!r}'s alone; lower features or use another SAE")
    edit = GatedSAEEdit.from_sae(sae, site, found, gate="threshold", lam=1 - config.factor, floor=0.0)
    edit = replace(edit, threshold=smallest_kept(read, own, indices=found))
    with unedited(), torch.no_grad():
        batches = capture(pipe, [site], prompts, config.batch_size)
        changes = torch.cat([edit.change(batch.states[site].to(edit.W_enc)).cpu() for batch in batches])
    if not bool((changes > 0).any()):
        raise ExciseError(f"the neurons found change no prompt of {concept.name!r}; raise features or use another SAE")
    least = float(changes[changes > 0].min())
    edit = replace(edit, floor=config.share * least)
    measured = {"features": len(found), "floor": edit.floor}
    return build_eraser(pipe, [edit], concept, "itd", {**asdict(config), "sae": sae_name(config.sae)}, measured)


def own_neurons(concept: PromptCodes, stays: PromptCodes, count: int) -> list[int]:
    """Return the `count` largest neurons of the concept's words, minus those among the largest of prompts to keep."""
    kept = {neuron for row in loudest(stays) for neuron in _largest(row, count)}
    return [neuron for neuron in _largest(loudest(concept).amax(0), count) if neuron not in kept]


def loudest(codes: PromptCodes) -> Tensor:
    """Return each neuron's largest code in every prompt `[P, m]`, at scored positions: neither BOS nor padding."""
    made = torch.zeros(len(codes.values), codes.m)
    values = codes.values * codes.scored[..., None]
    return made.scatter_reduce(1, codes.indices.flatten(1), values.flatten(1).to(made), "amax")


def _largest(row: Tensor, count: int) -> list[int]:
    """Return the indices of the `count` largest values, positive ones only."""
    order = row.argsort(descending=True)[:count]
    return [int(i) for i in order if row[i] > 0]


def smallest_kept(*codes: PromptCodes, indices: list[int]) -> Tensor:
    """Return just below the smallest positive code of each neuron that TopK kept in any of the prompts, `[k]`."""
    least = torch.full((codes[0].m,), torch.inf)
    for some in codes:
        values = torch.where(some.values > 0, some.values, torch.inf).flatten().to(least)
        least = least.scatter_reduce(0, some.indices.flatten(), values, "amin")
    return least[indices] * (1 - 1e-6)


METHOD = Fitted("itd", ItDConfig, fit)
