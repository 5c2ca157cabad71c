"""Reconstruction of a text encoder's states by an SAE, measured by kind of position.

A single figure over all positions looks too good. A causal encoder's first state (BOS) is the same in every prompt and
far from all others. On the bundled model it is one vector in 77, holds more than a third of the variance, and is easy
to reconstruct. So each kind of position is measured separately. A few long vectors may dominate an FVU, so a median is
given as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sae.data import geometric_median
from excise.sites import Site, capture
from excise.sites.activations.capture import Features
from excise.sites.site import tokenizer_of

ALL, BUT_BOS = "all", "all_but_bos"
KINDS = ("bos", "words", "end_of_text", "padding")
"""Kinds of positions. "bos" is a first position without a word. A template counts as words."""

SAMPLED = 80
"""Vectors of each prompt from which the centre is computed."""


@unedited()
@torch.no_grad()
def by_position(
    pipe: Pipeline, site: Site, sae: TopKSAE, prompts: Sequence[str], batch_size: int = 32
) -> dict[str, dict[str, Any]]:
    """Measure the reconstruction of `prompts` at `site`, for all positions, for all but BOS, and for each kind.

    Kinds that do not occur are left out. A language model's padding and first state are not measured, since SAEs are
    not trained on them.

    Returns:
        By name of the positions:

        - `vectors`: how many.
        - `variance`: their share of sum ‖x - x̄‖² over all positions, x̄ the mean of all.
        - `fvu`: sum ‖x - SAE(x)‖² / sum ‖x - x̄‖², x̄ the mean of these vectors; None if they are all the same.
        - `median`: the median over vectors of ‖x - SAE(x)‖² / ‖x - c‖², c the geometric median of all vectors but BOS
          (`SAMPLED` of each prompt), which is robust to outliers.

    Raises:
        ExciseError: There are no prompts, or as `capture`.
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
        without_bos = states[(kinds != KINDS.index("bos")).to(states.device)]
        sample.append(without_bos[:: max(1, len(without_bos) // (batch_size * SAMPLED))].cpu().float())
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
        chosen, offset = squares[rows], offsets[list(wanted)].sum(0)
        about_all = float(chosen.sum() - 2 * offset @ middle + len(chosen) * middle.square().sum())
        within = _variation(chosen, offset, len(chosen))
        # Equal states still vary by rounding.
        equal = within <= 1e-9 * float(chosen.sum()) or len(chosen) < 2
        ratios = error[rows] / chosen.clamp_min(torch.finfo(torch.float64).tiny)
        return {
            "vectors": len(chosen),
            "variance": about_all / variation if variation > 0 else None,
            "fvu": None if equal else float(error[rows].sum()) / within,
            "median": float(ratios.median()),
        }

    present = [number for number in range(len(KINDS)) if bool((kinds == number).any())]
    groups = {ALL: present, BUT_BOS: [n for n in present if KINDS[n] != "bos"], **{KINDS[n]: [n] for n in present}}
    return {name: figures(wanted) for name, wanted in groups.items() if wanted}


def _kinds(batch: Features, tokenizer: Any) -> Tensor:
    """Return the kind of each position as an index into KINDS, `[B, T]` int64."""
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
    """Return sum ‖x - x̄‖² from the vectors' squared distances to a point and the sum of their offsets from it."""
    return float(squares.sum() - offset.square().sum() / count) if count else 0.0


def default_prompts() -> list[str]:
    """Return 256 captions of the bundled model, sampled with another seed than its SAE's corpus."""
    from excise import reference

    return list(reference.sae_corpus(captions=256, english=0, seed=7))
