"""Training objective of the TopK SAE, and the constraints around a step (Gao et al. 2024, sections 2.3 and A.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.sae.model import Codes, TopKSAE
from excise.sae.parallel import ALONE, Mesh
from excise.sae.sparse import selected, weighted_rows


class Loss(NamedTuple):
    """Terms of one batch's loss, each a scalar. Where ranks divide the batch, their terms add up to its own."""

    total: Tensor
    """mse + alpha * aux."""
    mse: Tensor
    """MSE(x̂, x) / Var(x)."""
    aux: Tensor
    """MSE(ê, e) / Var(e), zero if no latent is dead."""


def loss(
    sae: TopKSAE,
    x: Tensor,
    reconstruction: Tensor,
    variance: float,
    dead: Tensor,
    alpha: float,
    share: float = 1.0,
) -> Loss:
    """Return L = MSE(x̂, x) / Var(x) + α MSE(ê, e) / Var(e).

    Args:
        sae: The SAE.
        x: Vectors [N, d].
        reconstruction: x̂, [N, d].
        variance: Mean over the d dimensions of the training set's variance; a batch's own would weight batches
            unequally.
        dead: [m] bool.
        alpha: α; with 0 the auxiliary term is not computed.
        share: Share of the batch's vectors that x is, where ranks divide the batch (`TopKSAE.mesh`).
    """
    mse = F.mse_loss(reconstruction, x) / variance * share
    aux = aux_loss(sae, x, reconstruction, dead, share) if alpha else mse.new_zeros(())
    return Loss(mse + alpha * aux, mse, aux)


def aux_loss(sae: TopKSAE, x: Tensor, reconstruction: Tensor, dead: Tensor, share: float = 1.0) -> Tensor:
    """Return MSE(ê, e) / Var(e) with e = stopgrad(x - x̂): dead latents learn the live ones' error. Zero if none is.

    `x`, `reconstruction` [N, d]; `dead` [m] bool. Var(e) is the whole batch's, around its mean residual; of the term
    itself x has its `share`.
    """
    error = (x - reconstruction).detach()
    centre = sae.mesh.average(error.mean(0), share)
    variance = sae.mesh.average((error - centre).square().mean(), share)
    n_dead = sae.mesh.count(dead.sum())
    # A perfect reconstruction, or a batch of one, has nothing to teach: OpenAI's code turns the 0/0 into 0.
    if not n_dead or not bool(variance > 0):
        return x.new_zeros(())
    return F.mse_loss(aux_reconstruction(sae, x, dead, n_dead), error) / variance * share


def aux_reconstruction(sae: TopKSAE, x: Tensor, dead: Tensor, n_dead: int | None = None) -> Tensor:
    """Return ê [N, d] = W_decᵀ ReLU(the k_aux largest pre-activations of dead latents), without b_pre.

    b_pre gets no gradient. If all dead latents are kept, their rows are multiplied densely; otherwise only the kept
    ones are decoded and get a gradient, as in `TopKSAE.encode`. `n_dead` is their number on all ranks, by default that
    in `dead`.
    """
    rows = dead.nonzero()[:, 0]
    n_dead = len(rows) if n_dead is None else n_dead
    centred = x - sae.b_pre.detach()
    kept = aux_k(n_dead, sae.config.d)
    if kept == n_dead:
        return sae.mesh.summed(F.linear(centred, sae.W_enc[rows], sae.b_enc[rows]).relu() @ sae.W_dec[rows])
    with torch.no_grad():
        own = F.linear(centred, sae.W_enc[rows], sae.b_enc[rows])
        values, places = own.topk(min(kept, len(rows)), dim=-1, sorted=False)
        among = sae.mesh.kept(values, kept) if sae.mesh.latents > 1 else None
    if not len(rows):  # all dead latents are other ranks'
        return sae.mesh.summed(torch.zeros_like(x))
    indices = rows[places]
    codes = selected(centred, sae.W_enc, sae.b_enc, values, indices).relu()
    codes = codes if among is None else codes * among
    return sae.mesh.summed(weighted_rows(sae.W_dec, codes, indices))


def aux_k(n_dead: int, d: int) -> int:
    """Return min(n_dead, 2^⌊log2(d/2)⌋): a power of two near half the width (Gao et al. 2024, A.2), at least 1."""
    return min(n_dead, 1 << max(0, (d // 2).bit_length() - 1))


def idle_tokens(idle: Tensor, codes: Codes, threshold: float, vectors: int | None = None, mesh: Mesh = ALONE) -> Tensor:
    """Return the vectors since each latent last fired, [m] int64, after one more batch.

    A latent that fired anywhere in the batch, on any rank, starts again at zero; the others are idle for all its
    vectors, by default those of `codes`. A latent is dead if its number is too large.
    """
    peak = codes.values.new_zeros(len(idle))
    peak.scatter_reduce_(0, codes.indices.flatten(), codes.values.detach().flatten(), "amax")
    peak = mesh.most(peak)
    vectors = codes.values[..., 0].numel() if vectors is None else vectors
    return torch.where(peak > threshold, 0, idle + vectors)


@torch.no_grad()
def project_gradient(sae: TopKSAE) -> None:
    """Remove from W_dec's gradient what is parallel to each row: the step must turn a unit vector, not stretch it."""
    gradient = sae.W_dec.grad
    if gradient is not None:
        # One dot product per row, without copies as large as the decoder.
        along = torch.bmm(gradient.unsqueeze(1), sae.W_dec.unsqueeze(2)).squeeze(2)
        gradient.addcmul_(along, sae.W_dec, value=-1)


@torch.no_grad()
def renormalise(sae: TopKSAE) -> None:
    """Make W_dec's rows unit vectors again, after the step, so that the saved rows have unit norm."""
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(sae.W_dec.dtype).tiny))


def step(sae: TopKSAE, optimiser: torch.optim.Optimizer) -> None:
    """Project, step, renormalise, in this order, and clear the gradients."""
    project_gradient(sae)
    optimiser.step()
    renormalise(sae)
    optimiser.zero_grad()
