"""Supervised training of SAEs, on a block of the denoiser (SAEmnesia; without labels SAEuron) or on text states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.neurons.timesteps import Means, assign, score
from excise.pipeline import Pipeline
from excise.sae import Progress, Samples, Shards, Supervision, TopKSAE, TrainConfig, load, train
from excise.sae.parallel import ALONE, Mesh
from excise.sae.supervised import Negatives, Pooling
from excise.sae.trainer import check_ranks
from excise.sites import Site, capture
from excise.sites.activations.block_shards import BlockShard, BlockShards, Labelled, label_table
from excise.sites.activations.shards import narrowed

LOOKED_AT = 512
"""Number of validation samples for early stopping. On a block, a sample is a picture at one step."""


@dataclass(frozen=True)
class Labels:
    """How labels are used."""

    supervised: bool = True
    """Assign a neuron to every concept (SAEmnesia), or train on the patches alone (SAEuron)."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Concepts by macro-group, such as (objects, styles); if empty, all are in one group."""
    negatives: Negatives = "none"
    """See `excise.sae.Supervision`."""
    pooling: Pooling | None = None
    """See `excise.sae.Supervision`. By default the mean over a picture's patches, or the maximum over a prompt's
    states."""
    beta: float = 3.0
    eta: float = 0.1
    l1: float = 0.01
    """Weights of the terms. See `excise.sae.Supervision`."""
    start: str = ""
    """Folder of an SAE to fine-tune; if empty, train from scratch."""
    validation: float = 0.1
    """Share of the pictures or prompts held out for early stopping."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts of all groups, in order."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group))

    def __post_init__(self) -> None:
        if self.negatives not in get_args(Negatives):
            raise ExciseError(f"negatives cannot be {self.negatives!r}; choose {' or '.join(get_args(Negatives))}")


def train_on_block(
    shards: BlockShards,
    out: Path,
    config: TrainConfig,
    how: Labels,
    *,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    mesh: Mesh = ALONE,
) -> TopKSAE:
    """Train on the pictures' patches at every step and save into `out`. The same call resumes after an interruption.

    Few shards are read at a time, so that memory does not grow with their number. Ranks of `mesh` train together.

    Raises:
        ExciseError: A concept is in no group, no picture shows it, training fails, or a file cannot be written.
    """
    learnt, looked_at = _split(shards, how.validation if how.supervised else 0.0)
    init = load(Path(how.start)) if how.start else None

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
        _as_features(shards.chosen(learnt)),
        config,
        out,
        card=card,
        supervision=supervision,
        validation=validation,
        init=init,
        progress=progress,
        device=device,
        mesh=mesh,
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
    mesh: Mesh = ALONE,
) -> TopKSAE:
    """Train with the same supervision at a Site of a text encoder.

    A sample is a prompt, and a neuron's activity in it is its largest code over the prompt's states.

    Args:
        pipe: The pipeline.
        site: The Site.
        prompts: Labelled prompts.
        concepts: The labels.
        out: Folder of the SAE.
        config: Settings of the training.
        how: How labels are used.
        others: Prompts without labels, which only enter the reconstruction loss.
        bos: Whether to train on the first state too (`excise.app.training.text.train_sae`).
        progress: Called with the lines of the training's log.
        device: Device to train on.
        mesh: Ranks that train together; the first one reads the prompts.

    Raises:
        ExciseError: A label is unknown, or as `train_on_block`.
    """
    check_ranks(config, mesh, width=site.width, labels=how.supervised)
    labels = label_table([*prompts, *(Labelled(text, ()) for text in others)], concepts)
    texts = [*(p.prompt for p in prompts), *others]

    @unedited()
    def read() -> torch.Tensor:
        batches = list(capture(pipe, [site], texts))
        begin = int(not bos and not any(bool(batch.scored[:, 0].any()) for batch in batches))
        return _as_one([narrowed(batch.states[site][:, begin:]) for batch in batches])

    states = mesh.sent(mesh.together(lambda: None if mesh.rank else read()))
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
        card={"site": asdict(site), "corpus": f"{len(prompts)} labelled prompts and {len(others)} others", "bos": bos},
        supervision=supervision,
        validation=Samples(states[looked_at], labels[looked_at]) if held else None,
        init=init,
        progress=progress,
        device=device,
        mesh=mesh,
    )


def _as_one(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join batches `[n, T', d]` of different lengths into `[P, T, d]`.

    Shorter batches repeat their last state, which does not change the maximum over a prompt.
    """
    longest = max(batch.shape[1] for batch in batches)
    short = (longest - batch.shape[1] for batch in batches)
    return torch.cat([torch.cat([b, b[:, -1:].expand(-1, n, -1)], 1) for b, n in zip(batches, short, strict=True)])


def assigned_by_score(sae: TopKSAE, shards: BlockShards, groups: Sequence[int]) -> list[int]:
    """Assign a neuron to each concept: greedily, first group first, by SAEuron's score averaged over the steps."""
    return _greedy(concept_scores(sae, shards).mean(1), groups)


@torch.no_grad()
def text_scores(sae: TopKSAE, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return SAEuron's score for every concept and neuron in text, `[C, m]`.

    It takes states `[P, T, d]` of prompts with labels `[P, C]`. A neuron's activity in a prompt is its largest code.
    """
    largest = torch.zeros(len(states), sae.config.m)
    for start in range(0, len(states), 256):
        rows = slice(start, start + 256)
        values, indices = sae.encode(states[rows].float())
        largest[rows] = largest[rows].scatter_reduce(1, indices.flatten(1), values.flatten(1), "amax")
    shown, others = (torch.stack([largest[side].double().mean(0) for side in sides.T]) for sides in (labels, ~labels))
    return score(shown, others)


def _greedy(scores: torch.Tensor, groups: Sequence[int]) -> list[int]:
    """Assign each concept a neuron by scores `[C, m]`, the first group's concepts first."""
    order = sorted(range(len(groups)), key=lambda c: groups[c])
    taken = assign(scores[c] for c in order)
    return [taken[order.index(c)] for c in range(len(groups))]


@torch.no_grad()
def concept_scores(sae: TopKSAE, shards: BlockShards) -> torch.Tensor:
    """Return SAEuron's score for every concept, step and neuron, `[C, S, m]`: labelled pictures against all others.

    Raises:
        ExciseError: No picture or every picture shows a concept.
    """
    steps, m = len(shards.timesteps), sae.config.m
    labelled = [Means(steps, m) for _ in shards.concepts]
    everything = Means(steps, m)
    pictures = torch.zeros(len(shards.concepts))
    for shard in shards:
        pictures += shard.labels.sum(0)
        for step in range(steps):
            patches = shard.states[:, step].float()
            values, indices = sae.encode(patches)
            everything.add(step, values, indices)
            for c, mean in enumerate(labelled):
                if bool((rows := shard.labels[:, c]).any()):
                    mean.add(step, values[rows], indices[rows])
    made = []
    for c, name in enumerate(shards.concepts):
        share = float(pictures[c]) / shards.pictures
        if not 0 < share < 1:
            raise ExciseError(f"{'no' if not share else 'every'} picture shows {name!r}; there is nothing to compare")
        others = (everything.means - share * labelled[c].means) / (1 - share)
        made.append(score(labelled[c].means, others))
    return torch.stack(made)


def _supervision(
    concepts: Sequence[str], groups: Sequence[int], latents: Sequence[int], how: Labels, pooling: Pooling
) -> Supervision:
    """Return the supervision that `how` describes, with `pooling` as its default."""
    weights: dict[str, Any] = {"beta": how.beta, "eta": how.eta, "l1": how.l1}
    own = how.pooling or pooling
    return Supervision(tuple(concepts), tuple(groups), tuple(latents), **weights, negatives=how.negatives, pooling=own)


def _split(shards: BlockShards, share: float) -> tuple[range, range]:
    """Return the indices of training shards and of validation shards."""
    held = min(len(shards.files) - 1, -(-int(share * 1000) * len(shards.files) // 1000)) if share > 0 else 0
    return range(len(shards.files) - held), range(len(shards.files) - held, len(shards.files))


def _as_features(shards: BlockShards) -> Shards:
    """Return the shards as training vectors, each picture at each step a sample."""
    shapes = [shards.shape(number) for number in range(len(shards.files))]

    def read(number: int) -> Samples:
        return _samples(shards.read(number))

    def labels(number: int) -> torch.Tensor:
        return shards.labels(number).repeat_interleave(shapes[number][1], 0)

    return Shards(tuple(n * steps for n, steps, _ in shapes), read, shards.digest, shapes[0][2], labels=labels)


def _thinned(shards: BlockShards, wanted: range) -> Samples | None:
    """Return at most LOOKED_AT samples, spread evenly over the wanted shards and all steps, one shard in memory."""
    steps = len(shards.timesteps)
    count = sum(len(shard.labels) for shard in shards.chosen(wanted)) * steps
    # A stride with a common divisor with the number of steps would skip some steps.
    stride = -(-count // LOOKED_AT)
    while math.gcd(stride, steps) > 1:
        stride += 1
    states, labels, first = [], [], 0
    for shard in shards.chosen(wanted):
        some = _samples(shard)[first::stride]
        states.append(some.states.clone())
        labels.append(some.labels)
        first = (first - len(shard.labels) * steps) % stride
    return Samples(torch.cat(states), torch.cat(labels)) if states else None


def _samples(shard: BlockShard) -> Samples:
    """Return each picture at each step as a sample."""
    return Samples(shard.states.flatten(0, 1), shard.labels.repeat_interleave(shard.states.shape[1], 0))


def _groups(concepts: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[int, ...]:
    if not groups:
        return (0,) * len(concepts)
    of = {name: n for n, group in enumerate(groups) for name in group}
    if left := [name for name in concepts if name not in of]:
        raise ExciseError(f"{left[0]!r} is in none of the {len(groups)} groups; add it to one")
    return tuple(of[name] for name in concepts)
