"""Synthetic worlds whose concepts are known: tokens that are sums of a few true features, more of them than dimensions.

A world's true features are random unit vectors. A token is the sum of a few of them, each with a strength of its own,
and noise. One feature is the concept; one is structural: it stands in every prompt with the concept, as "and" does in
"a gun and a cat", and in a share of the prompts without it, as well-made pairs have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.neurons import PromptCodes
from excise.sae import SAEConfig, TopKSAE

CONCEPT, STRUCTURE = 0, 1


@dataclass(frozen=True)
class World:
    """`features` true directions in `d` dimensions, `active` of them in a token on average."""

    seed: int
    d: int = 32
    features: int = 48
    active: int = 3
    noise: float = 0.02

    @property
    def directions(self) -> Tensor:
        """`[features, d]` unit vectors, in general position."""
        generator = torch.Generator().manual_seed(self.seed)
        return F.normalize(torch.randn(self.features, self.d, generator=generator), dim=1)

    def tokens(self, which: Tensor, seed: int) -> Tensor:
        """Vectors `[..., d]` of tokens in which the features `which` `[..., features]` bool are active."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        strength = 0.75 + 0.5 * torch.rand(which.shape, generator=generator)
        noise = self.noise * torch.randn(*which.shape[:-1], self.d, generator=generator)
        return (which * strength) @ self.directions + noise

    def corpus(self, n: int = 20_000) -> Tensor:
        """`[n, d]` tokens to train on, every feature as likely as any other."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.tokens(torch.rand(n, self.features, generator=generator) < self.active / self.features, 1)

    def pairs(self, n: int = 60, length: int = 4, structure: float = 0.5) -> tuple[Tensor, Tensor]:
        """States `[n, length, d]` with the concept and without it, otherwise of the same features. The concept is at
        one token of each prompt of the first side, the structural feature at another one of all prompts of that side
        and of a share `structure` of the second."""
        generator = torch.Generator().manual_seed(self.seed + 7)
        plain = torch.rand(n, length, self.features, generator=generator) < (self.active - 1) / self.features
        plain[..., [CONCEPT, STRUCTURE]] = False
        places = torch.stack([torch.randperm(length, generator=generator)[:2] for _ in range(n)])
        rows = torch.arange(n)
        sides = []
        for side in range(2):
            which = plain.clone()
            which[rows, places[:, 0], CONCEPT] = side == 0
            which[rows, places[:, 1], STRUCTURE] = (torch.rand(n, generator=generator) < structure) | (side == 0)
            sides.append(self.tokens(which, 2 + side))
        return sides[0], sides[1]


def read(sae: TopKSAE, states: Tensor) -> PromptCodes:
    """TopK codes of `states` `[P, T, d]`, every token scored."""
    with torch.no_grad():
        values, indices = sae.encode(states)
    return PromptCodes(values, indices, torch.ones(states.shape[:2], dtype=torch.bool), sae.config.m)


def perfect(world: World) -> TopKSAE:
    """The SAE whose latents are the true features."""
    return _of(world.directions)


def mixed(world: World) -> TopKSAE:
    """One with half as many latents, each two true features at once."""
    return _of(F.normalize(sum(world.directions.chunk(2)), dim=1))


def _of(directions: Tensor, k: int = 6, bias: float = 0.45) -> TopKSAE:
    """Biased against what other features leak into a latent, there being more of them than dimensions."""
    sae = TopKSAE(SAEConfig(d=directions.shape[1], m=len(directions), k=k))
    with torch.no_grad():
        sae.W_enc.copy_(directions)
        sae.W_dec.copy_(directions)
        sae.b_enc.fill_(-bias)
    return sae
