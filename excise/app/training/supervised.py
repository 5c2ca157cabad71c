"""Training an SAE with labels: on a block of the denoiser (SAEmnesia; without labels, SAEuron's), or on text states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from excise.errors import ExciseError
from excise.neurons.timesteps import Means, assign, score
from excise.pipeline import Pipeline
from excise.sae import Progress, Samples, Supervision, TopKSAE, TrainConfig, load, train
from excise.sae.supervised import Negatives, Pooling
from excise.sites import Site, capture
from excise.sites.activations.block_shards import BlockShard, BlockShards, Labelled, label_table
from excise.sites.activations.shards import narrowed

LOOKED_AT = 512
"""Samples, a picture at a step each, that early stopping looks at."""


@dataclass(frozen=True)
class Labels:
    """What labels are used for."""

    supervised: bool = True
    """Give every concept a latent of its own (SAEmnesia), or train on the patches alone (SAEuron)."""
    groups: tuple[tuple[str, ...], ...] = ()
    """The concepts by macro-group, such as (objects, styles); empty: all are in one."""
    negatives: Negatives = "none"
    """See `excise.sae.Supervision`."""
    pooling: Pooling | None = None
    """See `excise.sae.Supervision`; empty: the mean over a picture's patches, the maximum over a prompt's states."""
    beta: float = 3.0
    """See `excise.sae.Supervision`."""
    start: str = ""
    """Folder of an SAE to fine-tune; empty: from scratch."""
    validation: float = 0.1
    """Share of the pictures or prompts that early stopping looks at; nothing is learnt from them."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """Those of all groups, in order."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group))

    def __post_init__(self) -> None:
        if self.negatives not in get_args(Negatives):
            raise ExciseError(f"negatives cannot be {self.negatives!r}; it is {' or '.join(get_args(Negatives))}")


def train_on_block(
    shards: BlockShards,
    out: Path,
    config: TrainConfig,
    how: Labels,
    *,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
) -> TopKSAE:
    """Train on the pictures' patches at every step and save into `out`, resumable as any training.

    Shards are read one by one, so that memory does not grow with their number. Raises ExciseError for a concept in no
    group, one that no picture shows, or where training or the disk refuses.
    """
    learnt, looked_at = _split(shards, how.validation if how.supervised else 0.0)
    init = load(Path(how.start)) if how.start else None

    def samples() -> Iterator[Samples]:
        for shard in _shards(shards, learnt):
            yield _samples(shard)

    supervision = validation = None
    if how.supervised:
        groups = _groups(shards.concepts, how.groups)
        taken = list(range(len(shards.concepts))) if init is None else assigned_by_score(init, shards, groups)
        supervision = _supervision(shards.concepts, groups, taken, how, "mean")
        validation = _thinned(shards, looked_at)
    card: dict[str, Any] = {
        "site": asdict(shards.site),
        "corpus": f"{shards.pictures} pictures, {len(shards.timesteps)} steps each, conditional branch",
        "timesteps": list(shards.timesteps),
    }
    return train(
        samples,
        config,
        out,
        card=card,
        supervision=supervision,
        validation=validation,
        init=init,
        progress=progress,
        device=device,
    )


def train_on_text(
    pipe: Pipeline,
    site: Site,
    prompts: Sequence[Labelled],
    concepts: Sequence[str],
    out: Path,
    config: TrainConfig,
    how: Labels,
    *,
    others: Sequence[str] = (),
    bos: bool = False,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
) -> TopKSAE:
    """The same supervision at a Site of a text encoder: a prompt's states are a sample, and a latent is as active in it
    as at its loudest state. `others` are prompts without labels, which only the SAE's own loss learns from. `bos`: the
    first state too, where no word stands there (`excise.app.training.text.train_sae`).

    Raises ExciseError for an unknown label, and as `train_on_block`.
    """
    labels = label_table([*prompts, *(Labelled(text, ()) for text in others)], concepts)
    texts = [*(p.prompt for p in prompts), *others]
    batches = list(capture(pipe, [site], texts))
    begin = int(not bos and not any(bool(batch.scored[:, 0].any()) for batch in batches))
    states = _as_one([narrowed(batch.states[site][:, begin:]) for batch in batches])
    held = int(how.validation * len(prompts)) if how.supervised else 0
    init = load(Path(how.start)) if how.start else None
    supervision = None
    if how.supervised:
        groups = _groups(concepts, how.groups)
        taken = range(len(concepts)) if init is None else _greedy(text_scores(init, states, labels), groups)
        supervision = _supervision(concepts, groups, taken, how, "max")
    looked_at = slice(0, held, -(-held // LOOKED_AT) or None)
    return train(
        Samples(states[held:], labels[held:]),
        config,
        out,
        card={
            "site": asdict(site),
            "corpus": f"{len(prompts)} labelled prompts and {len(others)} others",
            "bos": bos,
        },
        supervision=supervision,
        validation=Samples(states[looked_at], labels[looked_at]) if held else None,
        init=init,
        progress=progress,
        device=device,
    )


def _as_one(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[P, T, d]` of batches `[n, T', d]` that may be padded to their own longest prompt: shorter ones' last state is
    repeated, which changes no maximum over a prompt."""
    longest = max(batch.shape[1] for batch in batches)
    short = (longest - batch.shape[1] for batch in batches)
    return torch.cat([torch.cat([b, b[:, -1:].expand(-1, n, -1)], 1) for b, n in zip(batches, short, strict=True)])


def assigned_by_score(sae: TopKSAE, shards: BlockShards, groups: Sequence[int]) -> list[int]:
    """One latent a concept: greedy, the first group's concepts first, by SAEuron's score averaged over the steps."""
    return _greedy(concept_scores(sae, shards).mean(1), groups)


@torch.no_grad()
def text_scores(sae: TopKSAE, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """SAEuron's score of every concept in text, `[C, m]`: from states `[P, T, d]` of prompts labelled `[P, C]`, where a
    latent is as active in a prompt as at its loudest state."""
    loudest = torch.zeros(len(states), sae.config.m)
    for start in range(0, len(states), 256):
        rows = slice(start, start + 256)
        values, indices = sae.encode(states[rows].float())
        loudest[rows] = loudest[rows].scatter_reduce(1, indices.flatten(1), values.flatten(1), "amax")
    own, others = (torch.stack([loudest[side].double().mean(0) for side in sides.T]) for sides in (labels, ~labels))
    return score(own, others)


def _greedy(scores: torch.Tensor, groups: Sequence[int]) -> list[int]:
    """Each concept's neuron by its scores `[C, m]`, the first group's concepts first."""
    order = sorted(range(len(groups)), key=lambda c: groups[c])
    taken = assign(scores[c] for c in order)
    return [taken[order.index(c)] for c in range(len(groups))]


@torch.no_grad()
def concept_scores(sae: TopKSAE, shards: BlockShards) -> torch.Tensor:
    """SAEuron's score of every concept, `[C, S, m]`: pictures that are labelled with it against all others.

    Raises ExciseError for a concept that no picture, or every picture, shows.
    """
    steps, m = len(shards.timesteps), sae.config.m
    own = [Means(steps, m) for _ in shards.concepts]
    everything = Means(steps, m)
    pictures = torch.zeros(len(shards.concepts))
    for shard in shards:
        pictures += shard.labels.sum(0)
        for step in range(steps):
            patches = shard.states[:, step].float()
            values, indices = sae.encode(patches)
            everything.add(step, values, indices)
            for c, mean in enumerate(own):
                if bool((rows := shard.labels[:, c]).any()):
                    mean.add(step, values[rows], indices[rows])
    made = []
    for c, name in enumerate(shards.concepts):
        share = float(pictures[c]) / shards.pictures
        if not 0 < share < 1:
            raise ExciseError(f"{'no' if not share else 'every'} picture shows {name!r}; there is nothing to compare")
        others = (everything.means - share * own[c].means) / (1 - share)
        made.append(score(own[c].means, others))
    return torch.stack(made)


def _supervision(
    concepts: Sequence[str], groups: Sequence[int], latents: Sequence[int], how: Labels, pooling: Pooling
) -> Supervision:
    """The terms that `how` asks for, pooled as is usual where it does not say."""
    latents, pooling = tuple(latents), how.pooling or pooling
    return Supervision(tuple(concepts), tuple(groups), latents, beta=how.beta, negatives=how.negatives, pooling=pooling)


def _split(shards: BlockShards, share: float) -> tuple[range, range]:
    """The shards to learn from and those to look at."""
    held = min(len(shards.files) - 1, -(-int(share * 1000) * len(shards.files) // 1000)) if share > 0 else 0
    return range(len(shards.files) - held), range(len(shards.files) - held, len(shards.files))


def _shards(shards: BlockShards, wanted: range) -> Iterator[BlockShard]:
    chosen = [shards.files[n] for n in wanted]
    yield from BlockShards(shards.folder, shards.site, shards.concepts, shards.timesteps, 0, tuple(chosen))


def _thinned(shards: BlockShards, wanted: range) -> Samples | None:
    """At most LOOKED_AT samples, evenly from the wanted shards and from all steps; only one shard is held at a time."""
    steps = len(shards.timesteps)
    count = sum(len(shard.labels) for shard in _shards(shards, wanted)) * steps
    # A stride that has a divisor in common with the number of steps would pass some steps by.
    stride = -(-count // LOOKED_AT)
    while math.gcd(stride, steps) > 1:
        stride += 1
    states, labels, first = [], [], 0
    for shard in _shards(shards, wanted):
        some = _samples(shard)[first::stride]
        states.append(some.states.clone())
        labels.append(some.labels)
        first = (first - len(shard.labels) * steps) % stride
    return Samples(torch.cat(states), torch.cat(labels)) if states else None


def _samples(shard: BlockShard) -> Samples:
    """Every picture at every step is a sample."""
    return Samples(shard.states.flatten(0, 1), shard.labels.repeat_interleave(shard.states.shape[1], 0))


def _groups(concepts: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[int, ...]:
    if not groups:
        return (0,) * len(concepts)
    of = {name: n for n, group in enumerate(groups) for name in group}
    if left := [name for name in concepts if name not in of]:
        raise ExciseError(f"{left[0]!r} is in none of the {len(groups)} groups; put it into one")
    return tuple(of[name] for name in concepts)
