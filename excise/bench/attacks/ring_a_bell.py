"""Ring-A-Bell: prompts without the concept's word that its text encoder takes for the concept (Tsai et al. 2024).

It needs the text encoder alone, neither the eraser nor the denoiser. A concept direction is added to the states of a
harmless prompt, and a genetic algorithm searches for tokens whose states come closest to the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, InvalidSetting
from excise.pipeline import Pipeline
from excise.settings import Settings, setting
from excise.sites.site import encoder_of, tokenizer_of

Encode = Callable[[Tensor], Tensor]
"""Token ids `[B, T]` to states `[B, T, d]`."""


@dataclass(frozen=True)
class RingABellConfig(Settings):
    """The budget. The paper's own is length 16, 200 prompts and 3,000 generations, over all positions."""

    strength: float = setting(
        3.0,
        "η: how far along the concept direction the target lies (the paper tries 2 to 3.5).",
        least=-1000,
        most=1000,
    )
    length: int = setting(
        5,
        "K: tokens of the prompt. With 16 the concept's words drown in the others (chosen on dog, bus and apple).",
        unit="tokens",
        least=1,
    )
    positions: int = setting(
        24, "How many first states are compared; those behind belong to padding.", unit="states", least=1
    )
    population: int = setting(64, "Prompts in a generation.", unit="prompts", least=4)
    generations: int = setting(200, "Generations.", unit="generations", least=1)
    mutation: float = setting(0.25, "Probability that a child has one of its tokens replaced.", most=1)
    seed: int = setting(0, "Seed of all that is random.", most=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions < self.length + 2:
            raise InvalidSetting(
                "Ring-A-Bell compares at least as many positions as its prompts have tokens, and 2 more"
            )


def ring_a_bell(pipe: Pipeline, concept: Concept, prompts: Sequence[str], config: RingABellConfig) -> list[str]:
    """For each of `prompts`, which do not name the concept, one that the text encoder takes for it.

    The pipeline's first text encoder is attacked as the model has it, whatever eraser is attached. No mention of the
    concept stands in what comes back. Raises ExciseError for a concept without pairs.
    """
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no pairs to take a direction from; give it some")
    tokenizer = tokenizer_of(pipe, "text_encoder")
    encoder = encoder_of(pipe, "text_encoder")

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        with unedited():
            states: Tensor = encoder(ids.to(next(encoder.parameters()).device))[0]
        return states.float().cpu()

    def tokens(texts: Sequence[str]) -> Tensor:
        ids: Tensor = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        # A causal encoder's first states do not depend on what is cut off.
        return ids[:, : config.positions]

    direction = concept_direction(
        encode(tokens([pair.concept for pair in concept.pairs])),
        encode(tokens([pair.deconcept for pair in concept.pairs])),
    )
    words = vocabulary(tokenizer, concept.mentions)
    blank = tokens([""])[0]
    found = []
    for n, prompt in enumerate(prompts):
        target = encode(tokens([prompt]))[0] + config.strength * direction
        generator = torch.Generator().manual_seed(config.seed + n)
        best = search(encode, target, words, blank, config, generator)
        found.append(str(tokenizer.decode(best)))
    return found


def concept_direction(with_concept: Tensor, without: Tensor) -> Tensor:
    """`[T, d]`: the mean over pairs of what the concept changes in the states `[P, T, d]` (the paper's ĉ)."""
    return (with_concept - without).mean(0)


def vocabulary(tokenizer: Any, mentions: Sequence[str]) -> Tensor:
    """Ids of the tokens a prompt may be made of: whole plain words, none of them a mention or part of one.

    Only whole words come back from text as the tokens they were.
    """
    parts = {part.lower() for mention in mentions for part in mention.split()}
    ids = []
    for token, index in tokenizer.get_vocab().items():
        word = token.removesuffix("</w>")
        plain = token.endswith("</w>") and word.isascii() and word.isalpha() and len(word) > 2
        if plain and not mentioned(word, tuple(mentions)) and not any(part in word for part in parts):
            ids.append(index)
    return torch.tensor(sorted(ids))


def search(
    encode: Encode, target: Tensor, words: Tensor, blank: Tensor, config: RingABellConfig, generator: torch.Generator
) -> Tensor:
    """Ids `[K]` of the prompt whose states are nearest to `target` `[T, d]` (mean squared error) of all it tried.

    The better half of a generation lives on; its children join the head of one parent to the tail of another, and some
    have a token replaced. `blank` `[T]` are the ids of the empty prompt: its first id, K tokens, then its padding.
    """
    half = config.population // 2

    def pick(n: int) -> Tensor:
        return words[torch.randint(len(words), (n,), generator=generator)]

    def distance(prompts: Tensor) -> Tensor:
        ids = blank.repeat(len(prompts), 1)
        ids[:, 1 : 1 + config.length] = prompts
        return (encode(ids) - target).square().mean((1, 2))

    alive = pick(2 * half * config.length).reshape(2 * half, config.length)
    loss = distance(alive)
    for _ in range(config.generations):
        order = loss.argsort()[:half]
        parents, kept = alive[order], loss[order]
        mothers, fathers = (torch.randint(half, (half,), generator=generator) for _ in range(2))
        cut = torch.randint(1, config.length + 1, (half, 1), generator=generator)
        children = torch.where(torch.arange(config.length) < cut, parents[mothers], parents[fathers])
        changed = torch.rand(half, generator=generator) < config.mutation
        place = torch.randint(config.length, (half,), generator=generator)
        children[changed, place[changed]] = pick(half)[changed]
        alive, loss = torch.cat([parents, children]), torch.cat([kept, distance(children)])
    return alive[int(loss.argmin())]
