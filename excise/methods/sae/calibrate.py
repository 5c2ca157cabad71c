"""Calibration of the threshold of gate="whole" and "threshold". It replaces TopK, so that k rows of an SAE suffice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting


class Calibration(NamedTuple):
    """Values for each neuron `[k]`, in units of the pre-activation."""

    threshold: Tensor
    quiet: Tensor
    """Largest pre-activation over every given position of every deconcept and control prompt, and of benign prompts
    but the loudest hundredth."""
    floor: Tensor
    """Value that 95 % of the concept rows kept by TopK exceed; nan if it keeps none."""
    typical: Tensor
    """Median over concept prompts of the prompt's largest pre-activation."""
    separable: Tensor
    """bool: typical is above quiet and above 0, so that a threshold can separate the sides."""
    agreement: Tensor
    """Share of concept rows on which threshold and TopK agree that the neuron is active or silent."""


BENIGN_SHARE = 0.01
"""Largest share of the benign prompts that may exceed q. Among a corpus's prompts, some show the concept in words that
are not its mentions."""


def calibrate(
    concept: Tensor, kept: Tensor, quiet: Tensor, margin: float = 0.1, benign: Tensor | None = None
) -> Calibration:
    """Return thresholds from pre-activations of concept prompts and of deconcept and control prompts.

    The rule, per neuron, with q = max(largest pre-activation in `quiet`, 0), and at least so large that no more than a
    hundredth of the `benign` prompts exceeds it:

        t = q + margin * (typical - q), but at most (q + floor) / 2 if floor > q, and never below q.

    So the neuron is silent on everything to keep, by a margin for unseen prompts, and the threshold loses no row that
    TopK would edit unless it lies in the range of the quiet prompts. If not separable, t = q, which keeps the silence.

    Args:
        concept: Pre-activations of concept prompts, `[P, T, k]`. Positions are all that are edited, padding included:
            a row that fires anywhere changes the picture.
        kept: `[P, T, k]` bool, whether TopK keeps the neuron.
        quiet: Pre-activations of deconcept and control prompts, `[Q, T, k]`.
        margin: Share from 0 to 1.
        benign: Pre-activations of prompts as users write them, `[B, T, k]`.

    Raises:
        ExciseError: for a margin outside 0..1 or an empty side.
    """
    if not 0 <= margin <= 1:
        raise InvalidSetting(f"the threshold's margin is {margin}; it is a share between 0 and 1")
    if not concept.numel() or not quiet.numel():
        raise ExciseError(
            "a threshold needs concept prompts and deconcept or control prompts; the concept lacks one side, add pairs"
        )
    loudest = quiet.flatten(0, 1).amax(0)
    if benign is not None:
        by_prompt = benign.amax(1).sort(0, descending=True).values
        loudest = torch.maximum(loudest, by_prompt[int(BENIGN_SHARE * len(by_prompt))])
    typical = concept.amax(1).median(0).values
    floor = torch.stack([_low(concept[..., i][kept[..., i]]) for i in range(concept.shape[-1])])
    q = loudest.clamp(min=0)
    separable = typical > q
    t = torch.where(separable, q + margin * (typical - q), q)
    t = torch.where(floor > q, torch.minimum(t, (q + floor) / 2), t)
    agreement = ((concept > t) == kept).double().flatten(0, 1).mean(0)
    return Calibration(t, loudest, floor, typical, separable, agreement)


def _low(values: Tensor) -> Tensor:
    """Return the 5 % quantile, nan if empty. It sorts, since torch.quantile refuses large inputs."""
    if not len(values):
        return torch.tensor(float("nan"), dtype=values.dtype, device=values.device)
    return values.sort().values[int(0.05 * (len(values) - 1))]
