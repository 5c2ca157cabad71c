"""Views of edited neurons: what they fire on, with the concept and without it, and their nearest neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from excise.app.audit.reading import contexts_of
from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.concepts.sentences import GroupSentence
from excise.erasers import SAEEdit
from excise.erasers.proof.effects import Progress
from excise.neurons import flags
from excise.neurons.contexts import Context, Contexts
from excise.neurons.flags import Flag
from excise.neurons.wording import Use, effective_words, merged, occurrences, own_words, uses
from excise.pipeline import Pipeline
from excise.sae import TopKSAE

SIDES = ("concept", "deconcept", "controls", "benign")
"""The sets of prompts that a neuron is read on: with the concept, their counterparts without it, controls in the same
wording, and benign prompts."""
TOP = 8
"""Prompts shown for each side."""
USES = 12
"""Words shown for each neuron."""


@dataclass(frozen=True)
class Side:
    """A neuron on one side's prompts: how many it fires in, its largest code in each (descending), the top few."""

    prompts: int
    fired: int
    peaks: tuple[float, ...]
    top: tuple[Context, ...]


@dataclass(frozen=True)
class Neighbour:
    """A neuron with a similar decoder row, and the shares of concept prompts and controls in which it fires.

    splits: whether it carries the concept too.
    """

    neuron: int
    cosine: float
    concept: float
    controls: float
    splits: bool
    top: tuple[Context, ...]


@dataclass(frozen=True)
class NeuronView:
    """One edited neuron.

    exact: codes are the SAE's TopK codes; otherwise they are pre-activations above the eraser's threshold. uses: words
    that make the neuron fire, over all sides; free: the same over prompts without the concept. neighbours: None without
    the SAE.
    """

    site: str
    neuron: int
    exact: bool
    threshold: float
    sides: Mapping[str, Side]
    uses: tuple[Use, ...]
    effective_words: float
    free: tuple[Use, ...]
    neighbours: tuple[Neighbour, ...] | None

    def flags(self, *, several: bool = False) -> list[Flag | None]:
        """Return the neuron's flags. With `several` Sites the neuron's name includes its Site."""
        name = f"neuron {self.neuron}" + (f" at {self.site}" if several else "")
        near = [(n.neuron, n.cosine, n.concept, n.controls) for n in self.neighbours or ()]
        return [
            flags.structural(name, self.sides["controls"].prompts, self.sides["controls"].fired, self.free),
            flags.polysemantic(name, self.uses),
            flags.split_concept(name, near),
        ]


@dataclass(frozen=True)
class Pool:
    """All prompts that neurons are read on, each once on its side, and which of them hold a word for the concept."""

    prompts: tuple[str, ...]
    sides: Mapping[str, range]
    holds: tuple[bool, ...]
    own: frozenset[str]
    groups: range
    """Sentences about people, after all sides."""


def pool_of(concept: Concept, words: Sequence[str], benign: Sequence[str], groups: Sequence[GroupSentence]) -> Pool:
    """Return the prompts of a concept's pairs, its controls, benign prompts and sentences about groups."""
    sides = {
        "concept": [pair.concept for pair in concept.pairs],
        "deconcept": [pair.deconcept for pair in concept.pairs],
        "controls": list(concept.controls),
        "benign": list(benign),
        "groups": [text for sentence in groups for text in (sentence.text, sentence.without)],
    }
    prompts: list[str] = []
    ranges: dict[str, range] = {}
    for side, texts in sides.items():
        unique = list(dict.fromkeys(texts))
        ranges[side] = range(len(prompts), len(prompts) + len(unique))
        prompts += unique
    mentions = [*concept.mentions, *words]
    within = ranges["concept"]
    holds = tuple(n in within or mentioned(text, mentions) is not None for n, text in enumerate(prompts))
    return Pool(tuple(prompts), {side: ranges[side] for side in SIDES}, holds, own_words(mentions), ranges["groups"])


def view(
    pipe: Pipeline,
    edit: SAEEdit,
    sae: TopKSAE | None,
    pool: Pool,
    neighbours: int,
    progress: Progress = lambda done: None,
) -> tuple[list[NeuronView], dict[str, bool]]:
    """Return the edit's neurons, and whether any of them fires in each sentence about a group."""
    contexts = contexts_of(pipe, edit, sae, pool.prompts, progress)
    tokens = [contexts.context(n, edit.neurons[0]).tokens for n in range(pool.groups.start)]
    held = [n for n, holds in enumerate(pool.holds[: pool.groups.start]) if holds]
    rest = [n for n, holds in enumerate(pool.holds[: pool.groups.start]) if not holds]
    standing = (
        occurrences((tokens[n] for n in held), pool.own),
        occurrences(tokens[n] for n in rest),
    )
    views, fires = [], dict.fromkeys((pool.prompts[n] for n in pool.groups), False)
    for place, neuron in enumerate(edit.neurons):
        views.append(_neuron(edit, place, sae, contexts, pool, standing, neighbours))
        for prompt in contexts.peaks(neuron)[0].tolist():
            if prompt in pool.groups:
                fires[pool.prompts[prompt]] = True
    return views, fires


def _neuron(
    edit: SAEEdit,
    place: int,
    sae: TopKSAE | None,
    contexts: Contexts,
    pool: Pool,
    standing: tuple[Counter[str], Counter[str]],
    neighbours: int,
) -> NeuronView:
    neuron = edit.neurons[place]
    fired = [n for n in contexts.peaks(neuron)[0].tolist() if n < pool.groups.start]
    with_it = [contexts.context(n, neuron) for n in fired if pool.holds[n]]
    free = uses((contexts.context(n, neuron) for n in fired if not pool.holds[n]), standing[1])
    every = merged([uses(with_it, standing[0], pool.own), free], standing[0] + standing[1])
    return NeuronView(
        site=edit.site.key,
        neuron=neuron,
        exact=sae is not None,
        threshold=float(edit.threshold[place]),
        sides={name: _side(contexts, neuron, where) for name, where in pool.sides.items()},
        uses=tuple(every[:USES]),
        effective_words=effective_words(every),
        free=tuple(free),
        neighbours=None if sae is None else tuple(_nearest(sae, neuron, contexts, pool, neighbours)),
    )


def _side(contexts: Contexts, neuron: int, where: range, top: int = TOP) -> Side:
    prompts, peaks = contexts.peaks(neuron)
    found = [(n, peak) for n, peak in zip(prompts.tolist(), peaks.tolist(), strict=True) if n in where]
    shown = tuple(contexts.context(n, neuron) for n, _ in found[:top])
    return Side(len(where), len(found), tuple(round(peak, 4) for _, peak in found), shown)


def _nearest(sae: TopKSAE, neuron: int, contexts: Contexts, pool: Pool, n: int) -> list[Neighbour]:
    """Return the `n` neurons whose decoder rows have the largest cosine with this one's."""
    rows = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    cosines = rows @ rows[neuron]
    cosines[neuron] = -2.0
    found = []
    values, indices = cosines.topk(min(n, len(cosines) - 1))
    for cosine, index in zip(values.tolist(), indices.tolist(), strict=True):
        concept, controls = (_side(contexts, index, pool.sides[side]) for side in ("concept", "controls"))
        shares = concept.fired / concept.prompts, controls.fired / max(1, controls.prompts)
        everywhere = _side(contexts, index, range(pool.groups.start), 4)
        found.append(Neighbour(index, round(cosine, 4), *shares, flags.carries_too(*shares), everywhere.top))
    return found
