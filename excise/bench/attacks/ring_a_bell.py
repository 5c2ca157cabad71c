"""Ring-A-Bell: prompts without the concept's word whose text states resemble the concept's (Tsai et al. 2024).

It needs only the text encoder, neither the eraser nor the denoiser. A concept direction is added to the states of a
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
from excise.settings import LARGEST_FIRST_SEED, Settings, setting
from excise.sites.site import encoder_of, tokenizer_of

Encode = Callable[[Tensor], Tensor]
"""Function from token ids `[B, T]` to states `[B, T, d]`."""


@dataclass(frozen=True)
class RingABellConfig(Settings):
    """Budget of the attack. The paper's is length 16, 200 prompts and 3,000 generations, over all positions."""

    strength: float = setting(
        3.0,
        "η: distance of the target along the concept direction (the paper tries 2 to 3.5).",
        least=-1000,
        most=1000,
    )
    length: int = setting(
        5,
        "K: tokens of the prompt. With 16, the others drown out the concept's (tuned on dog, bus and apple).",
        unit="tokens",
        least=1,
    )
    positions: int = setting(
        24, "Number of first states to compare; those after them belong to padding.", unit="states", least=1
    )
    population: int = setting(64, "Prompts per generation.", unit="prompts", least=4)
    generations: int = setting(200, "Number of generations.", unit="generations", least=1)
    mutation: float = setting(0.25, "Probability that one token of a child is replaced.", most=1)
    seed: int = setting(0, "Random seed.", most=LARGEST_FIRST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions < self.length + 2:
            raise InvalidSetting(
                "Ring-A-Bell must compare at least 2 more positions than its prompts have tokens; raise `positions`"
            )


def ring_a_bell(pipe: Pipeline, concept: Concept, prompts: Sequence[str], config: RingABellConfig) -> list[str]:
    """Return, for each prompt without the concept, an attacking prompt whose text states resemble the concept's.

    The attack targets the pipeline's first text encoder without any attached eraser. No attacking prompt mentions the
    concept. Raises ExciseError for a concept without pairs.
    """
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no pairs to compute a direction from; give it some")
    tokenizer = tokenizer_of(pipe, "text_encoder")
    encoder = encoder_of(pipe, "text_encoder")

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        with unedited():
            states: Tensor = encoder(ids.to(next(encoder.parameters()).device))[0]
        return states.float().cpu()

    def tokens(texts: Sequence[str]) -> Tensor:
        ids: Tensor = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        # A causal encoder's first states do not depend on the tokens after them.
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
    """Return `[T, d]`: the mean difference, over pairs, of the states `[P, T, d]` with and without the concept (ĉ)."""
    return (with_concept - without).mean(0)


def vocabulary(tokenizer: Any, mentions: Sequence[str]) -> Tensor:
    """Return the ids of tokens that a prompt may use: whole plain words that are not a mention or part of one.

    Only whole words survive decoding to text and tokenizing again.
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
    """Return the ids `[K]` of the prompt found whose states are nearest to `target` `[T, d]` (mean squared error).

    The better half of each generation survives. A child joins the head of one parent to the tail of another, and some
    children have a token replaced. `blank` holds the ids `[T]` of the empty prompt; positions 1 to K are replaced.
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
