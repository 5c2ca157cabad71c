"""An SAE with one latent for a concept, on a random encoder in which the concept's word is made to stand out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site, capture
from excise.sites.site import encoder_of

NEURON = 5


def stand_out(pipe: Any, component: str, concept: Concept, site: Site) -> set[int]:
    """Make the embeddings of the concept's own tokens twenty times as long as others, and return the tokens' ids."""
    without = [pair.deconcept for pair in concept.pairs] + list(concept.controls)
    common = {i for ids, _ in read(pipe, site, without) for i in ids}
    own = {i for ids, _ in read(pipe, site, [pair.concept for pair in concept.pairs]) for i in ids} - common
    assert own, "the concept's word has no token of its own"
    table = encoder_of(pipe, component).get_input_embeddings().weight  # type: ignore[operator]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for i in own:
            way = torch.randn(table.shape[1], generator=generator)
            way -= way.mean()
            table[i] += 20 * table.norm(dim=1).median() * way / way.norm()
    return own


def planted(pipe: Any, site: Site, concept: Concept) -> TopKSAE:
    """Return an SAE of 48 latents, 8 kept; latent `NEURON` reads and writes the direction of the concept's word."""
    own = stand_out(pipe, site.component, concept, site)
    loud, quiet = [], []
    for ids, states in read(pipe, site, [pair.concept for pair in concept.pairs]):
        at = [n for n, i in enumerate(ids) if i in own]
        loud.append(states[at[-1]])
        quiet.append(states[: at[0]])
    quiet += [states for _, states in read(pipe, site, [pair.deconcept for pair in concept.pairs])]
    direction = torch.stack(loud).mean(0) - torch.cat(quiet).mean(0)
    direction /= direction.norm()
    between = float((torch.cat(quiet) @ direction).max() + (torch.stack(loud) @ direction).min()) / 2
    sae = TopKSAE(SAEConfig(d=site.width, m=48, k=8), seed=1)
    with torch.no_grad():
        sae.W_enc.mul_(0.01)
        sae.b_enc.fill_(-1.0)
        sae.b_pre.zero_()
        sae.W_enc[NEURON] = sae.W_dec[NEURON] = direction
        sae.b_enc[NEURON] = -between
    return sae


def read(pipe: Any, site: Site, prompts: list[str]) -> list[tuple[list[int], Tensor]]:
    """Return every prompt's token ids `[T]` and states `[T, d]`."""
    batches = capture(pipe, [site], prompts)
    return [(ids, h) for b in batches for ids, h in zip(b.ids.tolist(), b.states[site].float(), strict=True)]
