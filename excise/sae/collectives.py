"""Collectives with gradients: what ranks send each other in the forward pass and in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Summed(torch.autograd.Function):
    """Sum over ranks; every part gets the whole sum's gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        whole = part.contiguous().clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Spread(torch.autograd.Function):
    """Value that every rank has, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.contiguous().clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class Joined(torch.autograd.Function):
    """Rows of all ranks, one rank after another; only the own ones have a gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], place: int, group: Any) -> Tensor:
        ctx.own = slice(sum(counts[:place]), sum(counts[: place + 1]))
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded, group=group)
        return torch.cat([rows[:count] for rows, count in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad[ctx.own], None, None, None
