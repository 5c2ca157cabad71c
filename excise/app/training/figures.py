"""How well an SAE reconstructs a text encoder's states, by kind of position.

One figure over all positions flatters. A causal encoder's first state (BOS) is the same in every prompt and far from
all others: on the bundled model it is one vector in 77, a third and more of the variance, and easy to reconstruct. So
the kinds of position are measured apart, and beside each FVU, which a few long vectors may decide, stands a median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sae.data import geometric_median
from excise.sites import Site, capture
from excise.sites.activations.capture import Features
from excise.sites.site import tokenizer_of

ALL, BUT_BOS = "all", "all_but_bos"
KINDS = ("bos", "words", "end_of_text", "padding")
"""Every position is of one kind: "bos" is the first position where no word stands, and a template counts as words."""

SAMPLED = 80
"""Vectors of a prompt that the centre is taken of."""


@torch.no_grad()
def by_position(
    pipe: Pipeline, site: Site, sae: TopKSAE, prompts: Sequence[str], batch_size: int = 32
) -> dict[str, dict[str, Any]]:
    """Figures of the reconstruction of `prompts` at `site`, for all positions, for all but BOS, and for each kind.

    - `vectors`: how many.
    - `variance`: their share of sum ‖x - x̄‖² over all positions, x̄ the mean of all.
    - `fvu`: sum ‖x - SAE(x)‖² / sum ‖x - x̄‖², x̄ the mean of these vectors; None where they are all the same.
    - `median`: the median vector's ‖x - SAE(x)‖² / ‖x - c‖², c the geometric median of all vectors but BOS
      (of `SAMPLED` a prompt), which no outlier moves far.

    Kinds that no prompt has are left out; a language model's padding and first state, which no SAE is trained on, are
    not measured. Raises ExciseError where there are no prompts, and as `capture`.
    """
    if not prompts:
        raise ExciseError("there are no prompts to measure the SAE on; check the prompts file")

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in capture(pipe, [site], prompts, batch_size):
            kinds = _kinds(batch, tokenizer_of(pipe, site.component))
            states, kinds = batch.states[site].flatten(0, 1), kinds.flatten()
            if batch.kept is not None:
                rows = batch.kept.flatten().nonzero()[:, 0]
                states, kinds = states[rows.to(states.device)], kinds[rows]
            yield states, kinds

    sample: list[Tensor] = []
    for states, kinds in read():
        own = states[(kinds != KINDS.index("bos")).to(states.device)]
        sample.append(own[:: max(1, len(own) // (batch_size * SAMPLED))].cpu().float())
    centre = geometric_median(torch.cat(sample))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    offsets = torch.zeros(len(KINDS), site.width, dtype=torch.float64)
    for states, kinds in read():
        error = (states.to(sae.W_enc) - sae(states.to(sae.W_enc))[0]).cpu().double().square().sum(1)
        off = states.cpu().double() - centre
        parts.append((kinds, error, off.square().sum(1)))
        offsets.index_add_(0, kinds, off)
    kinds, error, squares = (torch.cat(some) for some in zip(*parts, strict=True))
    variation = _variation(squares, offsets.sum(0), len(kinds))
    middle = offsets.sum(0) / len(kinds)

    def figures(wanted: Sequence[int]) -> dict[str, Any]:
        rows = torch.isin(kinds, torch.tensor(wanted))
        own, offset = squares[rows], offsets[list(wanted)].sum(0)
        about_all = float(own.sum() - 2 * offset @ middle + len(own) * middle.square().sum())
        within = _variation(own, offset, len(own))
        # States that are one and the same vary by rounding alone.
        alike = within <= 1e-9 * float(own.sum()) or len(own) < 2
        ratios = error[rows] / own.clamp_min(torch.finfo(torch.float64).tiny)
        return {
            "vectors": len(own),
            "variance": about_all / variation if variation > 0 else None,
            "fvu": None if alike else float(error[rows].sum()) / within,
            "median": float(ratios.median()),
        }

    there = [number for number in range(len(KINDS)) if bool((kinds == number).any())]
    groups = {ALL: there, BUT_BOS: [n for n in there if KINDS[n] != "bos"], **{KINDS[n]: [n] for n in there}}
    return {name: figures(wanted) for name, wanted in groups.items() if wanted}


def _kinds(batch: Features, tokenizer: Any) -> Tensor:
    """`[B, T]` int64, numbers in KINDS."""
    scored, ids = batch.scored.cpu().bool(), batch.ids.cpu()
    places = torch.arange(scored.shape[1]).expand_as(scored)
    last = torch.where(scored, places, -1).amax(1, keepdim=True)
    kinds = torch.full_like(ids, KINDS.index("words"))
    kinds[~scored & (places > last)] = KINDS.index("padding")
    if (eos := getattr(tokenizer, "eos_token_id", None)) is not None:
        kinds[scored & (places == last) & (ids == eos)] = KINDS.index("end_of_text")
    kinds[:, 0][~scored[:, 0] & (last[:, 0] > 0)] = KINDS.index("bos")
    return kinds


def _variation(squares: Tensor, offset: Tensor, count: int) -> float:
    """sum ‖x - x̄‖², from the vectors' squared distances to some point and the sum of their offsets from it."""
    return float(squares.sum() - offset.square().sum() / count) if count else 0.0


def default_prompts() -> list[str]:
    """256 captions of the bundled model, drawn apart from those its SAE was trained on."""
    from excise import reference

    return list(reference.sae_corpus(captions=256, english=0, seed=7))
