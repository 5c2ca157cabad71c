"""Packing of several prompts into one row of a causal text encoder, computing shared prefixes once.

Every token keeps its position and attends only to the tokens before it in its prompt (a tree of prompts with an
attention mask), so that its state is the same as in a row by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_CLOSE = 1e-3
"""Tolerated difference of packed states, relative to the largest value. Rounding in float32 is a thousandth of it."""
_ABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Rows(NamedTuple):
    """R packed rows of S places, with P prompts of at most T tokens."""

    ids: Tensor
    """`[R, S]` token ids, 0 after a row's end."""
    positions: Tensor
    """`[R, S]`: each token's position in its prompt."""
    attended: Tensor
    """`[R, S, S]` bool: the places that each one attends to."""
    at: Tensor
    """`[P, T]`: row times S plus place of each prompt's tokens; its last one is repeated."""


def packed(ids: Tensor, lengths: Tensor, room: int) -> Rows:
    """Pack prompts, none longer than `room`, into rows of up to `room` places.

    Neighbouring prompts share their common prefix, so pass them in lexicographic order.

    Args:
        ids: Token ids `[P, at least T]`.
        lengths: Number of tokens `[P]` of each prompt, at least 1.
        room: Places of a row.
    """
    steps, numbers = torch.arange(int(lengths.max())), torch.arange(len(ids))[:, None]
    ids = ids[:, : len(steps)]
    real = steps < lengths[:, None]
    equal = (ids[1:] == ids[:-1]) & real[1:] & real[:-1]
    prefixes = [0, *equal.long().cumprod(1).sum(1).tolist()]
    row, used, placed = -1, room, []
    for length, shared in zip(lengths.tolist(), prefixes, strict=True):
        if row < 0 or used + length - shared > room:
            row, used, shared = row + 1, 0, 0
        placed.append((row, used, shared))
        used += length - shared
    rows, begins, shares = torch.tensor(placed).T
    own = steps >= shares[:, None]
    # The last prompt, up to this one, whose token at this position was not yet in the row.
    owner = torch.where(own, numbers, -1).cummax(0).values
    place = torch.where(real, begins[owner] + steps - shares[owner], -1)
    own &= real
    count, width = row + 1, int(place.max()) + 1
    flat = rows[:, None] * width + place

    def spread(values: Tensor) -> Tensor:
        made = torch.zeros(count * width, dtype=values.dtype)
        made[flat[own]] = values.expand_as(own)[own]
        return made.view(count, width)

    positions, filled = spread(steps), spread(torch.ones(1, 1, dtype=torch.bool))
    # A token attends to a place if that is where its own prompt has a token, at a position up to its own.
    there = place[spread(numbers)].gather(2, positions[:, None].expand(-1, width, -1))
    attended = (there == torch.arange(width)) & (positions[:, None] <= positions[:, :, None])
    # Places after a row's end attend to themselves, since the softmax over no place is undefined.
    attended = torch.where(filled[:, :, None], attended, torch.eye(width, dtype=torch.bool))
    last = flat.gather(1, lengths[:, None] - 1)
    return Rows(spread(ids), positions, attended, torch.where(real, flat, last))


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
    return states.flatten(0, 1)[rows.at.to(states.device, non_blocking=True)]


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
    rows = packed(torch.tensor([[*prompts[0], 0], prompts[1]]), torch.tensor([3, 4]), 8)
    try:
        together = unpacked(run_packed(encoder, rows).last_hidden_state, rows).float()
        alone = [encoder(torch.tensor([prompt], device=device)).last_hidden_state[0].float() for prompt in prompts]
    except Exception:
        return False
    return all(
        float((states - together[n, : len(states)]).abs().max()) <= _CLOSE * float(states.abs().max())
        for n, states in enumerate(alone)
    )
