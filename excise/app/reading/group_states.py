"""The states of a tokenised corpus, row group by row group.

They are a function of the model and the group's number alone. How many there are follows from the counts in the
corpus's manifest, so a training finds any of them without reading the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from excise.app.reading.corpus import Corpus, Group
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.files import sha256
from excise.pipeline import Pipeline
from excise.sae import Shards
from excise.sae.data import permuted
from excise.sites import Site
from excise.sites.activations.length_buckets import capture_ids
from excise.sites.language import fingerprint
from excise.sites.site import encoder_of, tokenizer_of

_BATCH = 64
"""Prompts encoded at a time."""


@dataclass(frozen=True, eq=False)
class TokenParts:
    """The states of a corpus, with its row groups as parts."""

    corpus: Corpus
    padding: float = 1.0
    bos: bool = False

    def sizes(self) -> Sequence[int]:
        """Return the prompts of each group."""
        return [group.prompts for group in self.corpus.groups]

    def vectors(self) -> tuple[int, ...]:
        """Return the number of vectors in each group."""
        kept = 0 if self.bos else 1
        return tuple(g.tokens - kept * g.prompts + self._padding(g) for g in self.corpus.groups)

    def _padding(self, group: Group) -> int:
        """Return how many padding states of a group are kept: this share of them, rounded."""
        return round(self.padding * (group.prompts * self.corpus.positions - group.tokens))

    def about(self, pipe: Pipeline) -> dict[str, Any]:
        return {"corpus": self.corpus.digest, "padding": self.padding, "bos": self.bos, "batch_size": _BATCH}

    @unedited()
    def read(
        self, pipe: Pipeline, sites: Sequence[Site], number: int, progress: Callable[[int], Any] | None = None
    ) -> dict[Site, Tensor]:
        """Return the model's own states of a group, `[n, d]` at each Site.

        They are those of all words and EOS, and of a share of all padding states. These come from whole prompts in a
        random order, as many as hold so many; what the last one has more is left out.
        """
        component, group = sites[0].component, self.corpus.groups[number]
        ids, lengths = self.corpus.read(number)
        tokens = _padded(pipe, component, ids, lengths, self.corpus)
        parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
        wanted = self._padding(group)
        everything = wanted == group.prompts * self.corpus.positions - group.tokens
        for numbers, features in capture_ids(pipe, sites, tokens, _BATCH, whole=everything):
            for site in sites:
                parts[site].append((features if self.bos else features.without_bos()).vectors(site))
            if progress is not None:
                progress(len(numbers))
        if wanted and not everything:
            for site, states in self._of_padding(pipe, sites, tokens, number, wanted).items():
                parts[site].append(states)
        return {site: torch.cat(states) for site, states in parts.items()}

    def _of_padding(
        self, pipe: Pipeline, sites: Sequence[Site], tokens: tuple[Tensor, Tensor, Tensor], number: int, wanted: int
    ) -> dict[Site, Tensor]:
        ids, attention, scored = tokens
        order = torch.tensor(permuted(len(ids), f"padding of group {number}"))
        room = (attention[order] == 0).sum(1).cumsum(0)
        chosen = order[: int((room < wanted).sum()) + 1]
        parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
        few = ids[chosen], attention[chosen], scored[chosen]
        for numbers, features in capture_ids(pipe, sites, few, _BATCH, whole=True):
            rows = (few[1][numbers] == 0).flatten().nonzero()[:, 0]
            for site in sites:
                states = features.states[site].flatten(0, 1)
                parts[site].append(states.index_select(0, rows.to(states.device)))
        return {site: torch.cat(states)[:wanted] for site, states in parts.items()}


def in_memory(
    pipe: Pipeline, sites: Sequence[Site], parts: TokenParts, progress: Callable[[int], Any] | None = None
) -> dict[Site, Tensor]:
    """Return the states of all groups, `[N, d]` float32 at each Site."""
    read = [parts.read(pipe, sites, number, progress) for number in range(len(parts.corpus.groups))]
    return {site: torch.cat([states[site].float().cpu() for states in read]) for site in sites}


def made_when_needed(pipe: Pipeline, site: Site, parts: TokenParts) -> Shards:
    """Return shards whose states are computed whenever a training reads them. Ranks divide that."""
    about = {**parts.about(pipe), "model": fingerprint(encoder_of(pipe, site.component)), "site": site.key}
    return Shards(
        parts.vectors(),
        lambda number: parts.read(pipe, [site], number)[site],
        sha256(json.dumps(about).encode()),
        divided=True,
    )


def _padded(
    pipe: Pipeline, component: str, ids: Tensor, lengths: Tensor, corpus: Corpus
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and scored mask, each `[P, T]`, as the tokenizer pads them."""
    tokenizer = tokenizer_of(pipe, component)
    if int(ids.max()) >= corpus.vocabulary or int(lengths.max()) > corpus.positions:
        raise ExciseError(f"the corpus {corpus.folder} has ids that its tokenizer does not give; make it again")
    attention = torch.arange(corpus.positions) < lengths[:, None]
    padded = torch.full(attention.shape, int(tokenizer.pad_token_id))
    padded[attention] = ids
    scored = attention if tokenizer.bos_token_id is None else attention & (padded != tokenizer.bos_token_id)
    return padded, attention.long(), scored
