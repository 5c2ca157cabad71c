"""Packing of several prompts into one row of a causal text encoder, computing shared prefixes once.

Every token keeps its position and attends only to the tokens before it in its prompt (a tree of prompts with an
attention mask), so that its state is the same as in a row by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

_CLOSE = 1e-3
"""Tolerated difference of packed states, relative to the largest value. Rounding in float32 is a thousandth of it."""
_ABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Rows(NamedTuple):
    """R packed rows of S places."""

    ids: Tensor
    """`[R, S]` token ids, 0 after a row's end."""
    positions: Tensor
    """`[R, S]`: each token's position in its prompt."""
    attended: Tensor
    """`[R, S, S]` bool: the places that each one attends to."""
    places: list[tuple[int, list[int]]]
    """Each prompt's row, and the places of its tokens there."""


def packed(prompts: Sequence[Sequence[int]], room: int) -> Rows:
    """Pack token ids of `prompts`, none longer than `room`, into rows of up to `room` places.

    Neighbouring prompts share their common prefix, so pass them in lexicographic order.
    """
    places: list[tuple[int, list[int]]] = []
    rows: list[tuple[list[int], list[int], Any]] = []
    before: Sequence[int] = ()
    for prompt in prompts:
        alike = _common_prefix(before, prompt)
        if not rows or len(rows[-1][0]) + len(prompt) - alike > room:
            rows.append(([], [], np.zeros((room, room), dtype=bool)))
            alike = 0
        ids, positions, attended = rows[-1]
        old = places[-1][1][:alike] if alike else []
        new = list(range(len(ids), len(ids) + len(prompt) - alike))
        ids += prompt[alike:]
        positions += range(alike, len(prompt))
        if new:
            attended[np.ix_(new, old)] = True
            attended[new[0] : new[-1] + 1, new[0] : new[-1] + 1] = np.tri(len(new), dtype=bool)
        places.append((len(rows) - 1, old + new))
        before = prompt
    longest = max(len(ids) for ids, _, _ in rows)
    for ids, _, attended in rows:
        rest = range(len(ids), longest)
        attended[rest, rest] = True  # the softmax over no place is undefined
    whole = [[torch.tensor([*row[n], *[0] * (longest - len(row[n]))]) for row in rows] for n in range(2)]
    masks = torch.from_numpy(np.stack([attended[:longest, :longest] for _, _, attended in rows]))
    return Rows(torch.stack(whole[0]), torch.stack(whole[1]), masks, places)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


@torch.no_grad()
def run_packed(encoder: nn.Module, rows: Rows) -> Any:
    """Run a CLIP text encoder on packed rows."""
    weight = next(encoder.parameters())
    mask = torch.zeros(rows.attended.shape, dtype=weight.dtype)
    mask = mask.masked_fill(~rows.attended, torch.finfo(weight.dtype).min)
    return encoder(
        rows.ids.to(weight.device, non_blocking=True),
        attention_mask=mask[:, None].to(weight.device, non_blocking=True),
        position_ids=rows.positions.to(weight.device, non_blocking=True),
    )


def unpacked(states: Tensor, rows: Rows) -> Tensor:
    """Return the states `[R, S, d]` of packed rows by prompt, `[P, T, d]`. Each prompt's last state fills its row."""
    longest = max(len(places) for _, places in rows.places)
    width = rows.ids.shape[1]
    at = torch.tensor(
        [[row * width + n for n in (*places, *[places[-1]] * (longest - len(places)))] for row, places in rows.places]
    )
    return states.flatten(0, 1)[at.to(states.device)]


@torch.no_grad()
def can_pack(encoder: nn.Module) -> bool:
    """Whether this encoder supports such masks, which some implementations of attention do not. It is tested once, on
    two short prompts. An encoder with wrapped modules (by an eraser, an offloading) is not packed."""
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
        float((states - together[n, : len(states)]).abs().max()) <= _CLOSE * float(states.abs().max())
        for n, states in enumerate(alone)
    )
