"""Products of vectors with a few rows of an SAE's matrices, and its first rows: pure functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Select(torch.autograd.Function):
    """Pre-activations computed before, at k indices per row, with the gradient of <x_n, W_i> + b_i at these alone.

    Plain autograd scatters the k gradients into a dense [N, m] and multiplies it by x: at m = 3072, k = 32 nearly all
    of it is zeros. One `embedding_bag` gives both products instead. Its output, sum_j g_nj W[i_nj], is x's gradient.
    Its own gradient with respect to W for the cotangent x, sum_nj g_nj x_n at row i_nj, is W's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, indices = ctx.saved_tensors
        grad = grad.contiguous()
        with torch.enable_grad():
            rows = weight.detach().requires_grad_()
            grad_x = F.embedding_bag(indices, rows, per_sample_weights=grad, mode="sum")
            (grad_weight,) = torch.autograd.grad(grad_x, rows, x)
        grad_bias = grad.new_zeros(len(weight)).index_add_(0, indices.flatten(), grad.flatten())
        return grad_x.detach(), grad_weight, grad_bias, None, None


def selected(x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Return `values` [N, k], which are <x_n, W_i> + b_i at `indices` [N, k], with their gradients by x, W and b."""
    made: Tensor = _Select.apply(x, weight, bias, values, indices)  # type: ignore[no-untyped-call]
    return made


def weighted_rows(weight: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Return sum_j values_nj W[indices_nj]: [N, k] and [N, k] -> [N, d]."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


@torch.no_grad()
def shortlisted(x: Tensor, weight: Tensor, bias: Tensor, k: int, spare: int) -> tuple[Tensor, Tensor]:
    """Return values and indices `[N, k]` of the k largest <x_n, W_i> + b_i among k + `spare` candidates.

    The candidates are the largest in bfloat16; their values are computed in float32. A latent that the bfloat16 product
    ranks behind the candidates is missed; a larger `spare` makes this rarer.
    """
    candidates = rough(x, weight, bias).topk(min(k + spare, len(weight)), dim=-1, sorted=False).indices
    # The gradient of sum_j s_nj W[i_nj] by its weights s, for the cotangent x, is <x_n, W[i_nj]>.
    with torch.enable_grad():
        shares = x.new_zeros(candidates.shape).requires_grad_()
        summed = F.embedding_bag(candidates, weight.detach(), per_sample_weights=shares, mode="sum")
        (exact,) = torch.autograd.grad(summed, shares, x)
    values, places = (exact + bias[candidates]).topk(k, dim=-1)
    return values, candidates.gather(1, places)


def rough(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return <x_n, W_i> + b_i, `[N, m]` bfloat16."""
    return F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())


def drawn(m: int, d: int, seed: int, rows: slice) -> Tensor:
    """Return these rows of `randn(m, d)`, without ever holding many more of them.

    PyTorch draws sixteen numbers at a time, so parts of a multiple of 16 rows continue each other.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.empty(rows.stop - rows.start, d)
    parts = max(1, m // _PART)
    for part in range(parts):
        begin, end = part * _PART, m if part == parts - 1 else (part + 1) * _PART
        numbers = torch.randn(end - begin, d, generator=generator)
        first, last = max(rows.start, begin), min(rows.stop, end)
        if first < last:
            own[first - rows.start : last - rows.start] = numbers[first - begin : last - begin]
    return own


_PART = 1 << 14
"""Rows drawn at a time."""
