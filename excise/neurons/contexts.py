"""Activity of neurons on a corpus: how often and how strongly they fire, in which prompts and at which tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.errors import ExciseError, NotFound
from excise.neurons.context import Context as Context
from excise.neurons.context import is_special as is_special
from excise.neurons.scores import PromptCodes


class Contexts:
    """Codes of a corpus, queried neuron by neuron; in memory, about 12 bytes per code.

    Args:
        codes: Codes of P prompts.
        tokens: [P][T], their tokens as text (see `Context`), unscored ones included.

    Raises:
        ExciseError: if their numbers differ, or nothing is scored.
    """

    def __init__(self, codes: PromptCodes, tokens: Sequence[Sequence[str]]) -> None:
        if len(codes.values) != len(tokens):
            raise ExciseError(f"there are codes of {len(codes.values)} prompts, but tokens of {len(tokens)}")
        self.m, self.tokens, self._scored = codes.m, tokens, codes.scored.cpu()
        self.positions = int(self._scored.sum())
        if not self.positions:
            raise ExciseError("no token is scored: the prompts are empty; choose another corpus")
        firing = (codes.values.cpu() > 0) & self._scored[..., None]
        prompt, position, _ = firing.nonzero().unbind(1)
        neuron, value = codes.indices.cpu()[firing].long(), codes.values.cpu()[firing].float()
        order = torch.argsort(neuron, stable=True)
        self._prompt, self._position, self._value = prompt[order].int(), position[order].int(), value[order]
        self._starts = torch.searchsorted(neuron[order].contiguous(), torch.arange(self.m + 1))

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.tokens)

    @property
    def density(self) -> Tensor:
        """`[m]` share of the scored tokens at which each neuron fires, float64."""
        return self._starts.diff().double() / self.positions

    def values(self, neuron: int) -> Tensor:
        """Return the neuron's codes wherever it fires, `[F]`. Raises NotFound for an index out of range."""
        return self._value[self._rows(neuron)]

    def histogram(self, neuron: int, bins: int = 20) -> tuple[list[int], float]:
        """Count its codes in `bins` equal intervals from 0 to its largest code; return counts and largest code."""
        values = self.values(neuron)
        top = float(values.max()) if len(values) else 0.0
        counts = torch.histc(values, bins, 0, top) if top else torch.zeros(bins)
        return [int(n) for n in counts], top

    def peaks(self, neuron: int) -> tuple[Tensor, Tensor]:
        """Return the prompts `[Q]` in which it fires and its largest code in each `[Q]`, by falling code."""
        rows = self._rows(neuron)
        prompts, where = torch.unique(self._prompt[rows].long(), return_inverse=True)
        peaks = torch.zeros(len(prompts)).scatter_reduce(0, where, self._value[rows], "amax")
        order = torch.argsort(peaks, descending=True, stable=True)
        return prompts[order], peaks[order]

    def top(self, neuron: int, n: int) -> list[Context]:
        """Return the `n` prompts in which it fires most, without duplicate texts."""
        found: dict[str, Context] = {}
        for prompt in self.peaks(neuron)[0].tolist():
            if len(found) == n:
                break
            context = self.context(prompt, neuron)
            found.setdefault(context.text, context)
        return list(found.values())

    def spread(self, neuron: int, n: int, seed: int = 0) -> list[Context]:
        """Return `n` prompts in which it fires: a random one from each of `n` equal parts of them, sorted by peak."""
        prompts, _ = self.peaks(neuron)
        generator = torch.Generator().manual_seed(seed)
        parts = [part for part in torch.tensor_split(prompts, n) if len(part)]
        drawn = [int(part[torch.randint(len(part), (1,), generator=generator)]) for part in parts]
        return [self.context(prompt, neuron) for prompt in drawn]

    def silent(self, neuron: int, n: int, seed: int = 0) -> list[Context]:
        """Return `n` random prompts in which it is silent, or fewer if there are not so many."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        fires = torch.zeros(len(self), dtype=torch.bool)
        fires[self._prompt[self._rows(neuron)].long()] = True
        fires |= ~self._scored.any(1)
        return [self.context(prompt, neuron) for prompt in order[~fires[order]][:n].tolist()]

    def context(self, prompt: int, neuron: int) -> Context:
        """Return one neuron's codes in one prompt."""
        rows = self._rows(neuron)
        own = self._prompt[rows] == prompt
        codes = torch.zeros(self._scored.shape[1])
        codes[self._position[rows][own].long()] = self._value[rows][own]
        kept = self._scored[prompt].nonzero()[:, 0].tolist()
        return Context(tuple(self.tokens[prompt][t] for t in kept), tuple(round(float(codes[t]), 6) for t in kept))

    def _rows(self, neuron: int) -> slice:
        if not 0 <= neuron < self.m:
            raise NotFound(f"there is no neuron {neuron}; the SAE has {self.m}, from 0 on")
        return slice(int(self._starts[neuron]), int(self._starts[neuron + 1]))
