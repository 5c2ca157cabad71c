"""What some neurons do on any number of prompts, in constant memory: scans of parts are merged to one of the whole.

Merging is associative and commutative, with exact counts, so a corpus may be divided in any way and read in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError

OCTAVES, STEPS = 20, 4
"""The histogram covers codes from 2^-10 to 2^10, with four bins an octave. Others count in the outer bins."""
EDGES = tuple(2 ** (n / STEPS - OCTAVES / 2) for n in range(OCTAVES * STEPS + 1))


@dataclass(frozen=True, order=True)
class Top:
    """A prompt on which a neuron fires."""

    below: float
    """The neuron's largest code in the prompt, negated, so that the strongest is the least."""
    part: int
    row: int
    """Where the prompt is: the part of the corpus, and the row of its file."""
    prompt: str

    @property
    def peak(self) -> float:
        return -self.below


@dataclass(frozen=True, eq=False)
class Scan:
    """What n neurons did on some prompts."""

    neurons: tuple[int, ...]
    prompts: int
    tokens: int
    """Scored tokens: words and EOS."""
    fired: Tensor
    """Prompts in which each neuron fires, `[n]` int64."""
    fired_tokens: Tensor
    """Tokens at which it fires, `[n]` int64."""
    histogram: Tensor
    """Prompts by the neuron's largest code in them, `[n, len(EDGES) + 1]` int64: below the first edge, between, above
    the last."""
    tops: tuple[tuple[Top, ...], ...]
    """The strongest prompts of each neuron, the strongest first; equal ones in the order of the corpus."""
    keep: int
    """How many of them are kept."""

    @classmethod
    def empty(cls, neurons: Sequence[int], keep: int) -> Scan:
        """Return the scan of no prompts."""
        none = torch.zeros(len(neurons), dtype=torch.int64)
        bins = torch.zeros(len(neurons), len(EDGES) + 1, dtype=torch.int64)
        return cls(tuple(neurons), 0, 0, none, none.clone(), bins, ((),) * len(neurons), keep)

    def with_codes(self, codes: Tensor, scored: Tensor, prompts: Sequence[str], part: int, rows: Sequence[int]) -> Scan:
        """Return the scan with more prompts.

        Args:
            codes: Codes of the neurons, 0 where they are silent, `[P, T, n]`.
            scored: Which tokens count, `[P, T]`.
            prompts: The P prompts.
            part: Part of the corpus that they are in.
            rows: Their rows in the file.
        """
        seen = codes * scored.unsqueeze(-1)
        peaks = seen.amax(1).double()
        tops = []
        for n in range(len(self.neurons)):
            best = peaks[:, n].topk(min(self.keep, len(peaks)))
            least = float(best.values[-1]) if len(peaks) else 0.0
            near = [at for at in range(len(peaks)) if 0 < float(peaks[at, n]) >= least]
            tops.append(tuple(Top(-float(peaks[at, n]), part, rows[at], prompts[at]) for at in near))
        edges = torch.tensor(EDGES, dtype=torch.float64)
        histogram = torch.zeros_like(self.histogram)
        for n in range(len(self.neurons)):
            firing = peaks[:, n][peaks[:, n] > 0].contiguous()
            histogram[n] = torch.bincount(torch.bucketize(firing, edges, right=True), minlength=len(EDGES) + 1)
        more = Scan(
            self.neurons,
            len(prompts),
            int(scored.sum()),
            (peaks > 0).sum(0),
            (seen > 0).sum((0, 1)),
            histogram,
            tuple(tops),
            self.keep,
        )
        return self.merged(more)

    def merged(self, other: Scan) -> Scan:
        """Return the scan of both corpora. Raises ExciseError for other neurons or another number of kept prompts."""
        if (self.neurons, self.keep) != (other.neurons, other.keep):
            raise ExciseError("these scans are of other neurons, or keep another number of prompts; scan again")
        both = zip(self.tops, other.tops, strict=True)
        tops = (tuple(sorted((*one, *two))[: self.keep]) for one, two in both)
        return Scan(
            self.neurons,
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.fired + other.fired,
            self.fired_tokens + other.fired_tokens,
            self.histogram + other.histogram,
            tuple(tops),
            self.keep,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the scan as JSON. Empty bins are left out."""
        rows = []
        for n, neuron in enumerate(self.neurons):
            bins = [
                {"from": _edge(b - 1), "to": _edge(b), "prompts": count}
                for b, count in enumerate(self.histogram[n].tolist())
                if count
            ]
            tops = [{"peak": top.peak, "part": top.part, "row": top.row, "prompt": top.prompt} for top in self.tops[n]]
            rows.append(
                {
                    "neuron": neuron,
                    "prompts": int(self.fired[n]),
                    "tokens": int(self.fired_tokens[n]),
                    "histogram": bins,
                    "top": tops,
                }
            )
        return {"prompts": self.prompts, "tokens": self.tokens, "keep": self.keep, "neurons": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scan:
        """Read what `to_json` returns. Raises ExciseError for anything else."""
        try:
            rows = data["neurons"]
            empty = cls.empty([int(row["neuron"]) for row in rows], int(data["keep"]))
            histogram = empty.histogram.clone()
            for n, row in enumerate(rows):
                for one in row["histogram"]:
                    histogram[n, _bin(one["from"], one["to"])] = int(one["prompts"])
            tops = tuple(
                tuple(
                    Top(-float(top["peak"]), int(top["part"]), int(top["row"]), str(top["prompt"]))
                    for top in row["top"]
                )
                for row in rows
            )
            fired, tokens = (torch.tensor([int(row[name]) for row in rows]) for name in ("prompts", "tokens"))
            return cls(
                empty.neurons, int(data["prompts"]), int(data["tokens"]), fired, tokens, histogram, tops, empty.keep
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ExciseError(f"this is not a scan ({type(error).__name__}: {error}); scan again") from error


def _top(row: Mapping[str, Any]) -> Top:
    return Top(-float(row["peak"]), int(row["part"]), int(row["row"]), str(row["prompt"]))


def _edge(n: int) -> float | None:
    """Return an edge of the histogram; None for the open ends."""
    return EDGES[n] if 0 <= n < len(EDGES) else None


def _bin(low: float | None, high: float | None) -> int:
    """Return the number of the bin between two edges."""
    if low is None and high is None:
        raise ValueError("a bin has no edge")
    if high is None:
        return len(EDGES)
    return round(STEPS * (math.log2(high) + OCTAVES / 2))
