"""Several prompts in one row of a causal text encoder, and what they begin with alike only once.

Every token keeps its own position and hears only what stands before it in its own prompt (a tree of prompts, with an
attention mask for it), so that its state is the one it has in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

_CLOSE = 1e-3
"""Of the largest value, by which states of a packed row may differ; rounding is a thousandth of it in float32."""
_ABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Rows(NamedTuple):
    """R rows of S places."""

    ids: Tensor
    """`[R, S]`, 0 where a row has no more."""
    positions: Tensor
    """`[R, S]`: which position of its prompt a place is."""
    heard: Tensor
    """`[R, S, S]` bool: which places each one attends to."""
    places: list[tuple[int, list[int]]]
    """Of every prompt its row, and where in it each of its tokens stands."""


def packed(prompts: Sequence[Sequence[int]], room: int) -> Rows:
    """Token ids of `prompts`, none longer than `room`, in rows of so many places. Neighbours share what they begin
    with: give them in lexicographic order."""
    places: list[tuple[int, list[int]]] = []
    rows: list[tuple[list[int], list[int], Any]] = []
    before: Sequence[int] = ()
    for prompt in prompts:
        alike = _alike(before, prompt)
        if not rows or len(rows[-1][0]) + len(prompt) - alike > room:
            rows.append(([], [], np.zeros((room, room), dtype=bool)))
            alike = 0
        ids, positions, heard = rows[-1]
        old = places[-1][1][:alike] if alike else []
        new = list(range(len(ids), len(ids) + len(prompt) - alike))
        ids += prompt[alike:]
        positions += range(alike, len(prompt))
        if new:
            heard[np.ix_(new, old)] = True
            heard[new[0] : new[-1] + 1, new[0] : new[-1] + 1] = np.tri(len(new), dtype=bool)
        places.append((len(rows) - 1, old + new))
        before = prompt
    longest = max(len(ids) for ids, _, _ in rows)
    for ids, _, heard in rows:
        rest = range(len(ids), longest)
        heard[rest, rest] = True  # a place that hears nothing has no softmax
    whole = [[torch.tensor([*row[n], *[0] * (longest - len(row[n]))]) for row in rows] for n in range(2)]
    masks = torch.from_numpy(np.stack([heard[:longest, :longest] for _, _, heard in rows]))
    return Rows(torch.stack(whole[0]), torch.stack(whole[1]), masks, places)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


@torch.no_grad()
def run_packed(encoder: nn.Module, rows: Rows) -> Any:
    """One of CLIP's text encoders on packed rows."""
    weight = next(encoder.parameters())
    mask = torch.zeros(rows.heard.shape, dtype=weight.dtype).masked_fill(~rows.heard, torch.finfo(weight.dtype).min)
    return encoder(
        rows.ids.to(weight.device, non_blocking=True),
        attention_mask=mask[:, None].to(weight.device, non_blocking=True),
        position_ids=rows.positions.to(weight.device, non_blocking=True),
    )


def unpacked(states: Tensor, rows: Rows) -> Tensor:
    """States `[R, S, d]` of packed rows prompt by prompt, `[P, T, d]`; behind a prompt's end its last state again."""
    longest = max(len(own) for _, own in rows.places)
    width = rows.ids.shape[1]
    at = torch.tensor(
        [[row * width + n for n in (*own, *[own[-1]] * (longest - len(own)))] for row, own in rows.places]
    )
    return states.flatten(0, 1)[at.to(states.device)]


@torch.no_grad()
def can_pack(encoder: nn.Module) -> bool:
    """Whether this encoder takes such masks: tried once, on two short rows. Some ways of computing attention do not. An
    encoder whose modules somebody has put something around (an eraser, an offloading) is left alone."""
    if any("forward" in vars(module) for module in encoder.modules()):
        return False
    if encoder not in _ABLE:
        _ABLE[encoder] = _tried(encoder)
    return _ABLE[encoder]


def _tried(encoder: nn.Module) -> bool:
    first = 10
    prompts = [[first, first + 1, first + 2], [first, first + 1, first + 3, first + 4]]
    device = next(encoder.parameters()).device
    rows = packed(prompts, 8)
    try:
        together = unpacked(run_packed(encoder, rows).last_hidden_state, rows).float()
        alone = [encoder(torch.tensor([prompt], device=device)).last_hidden_state[0].float() for prompt in prompts]
    except Exception:
        return False
    return all(
        float((own - together[n, : len(own)]).abs().max()) <= _CLOSE * float(own.abs().max())
        for n, own in enumerate(alone)
    )
