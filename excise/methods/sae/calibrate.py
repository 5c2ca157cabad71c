"""Where to put the threshold of gate="whole" and "threshold", so that k rows of an SAE can stand in for its TopK."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting


class Calibration(NamedTuple):
    """Per neuron `[k]`, in units of the pre-activation."""

    threshold: Tensor
    quiet: Tensor
    """Largest pre-activation over every given position of every deconcept and control prompt."""
    floor: Tensor
    """What 95 % of the concept rows that TopK keeps exceed; nan where it keeps none."""
    typical: Tensor
    """Median over concept prompts of the prompt's largest pre-activation."""
    separable: Tensor
    """bool: typical is above quiet and above 0, so that a threshold can tell the sides apart."""
    agreement: Tensor
    """Share of concept rows on which threshold and TopK agree that the neuron is active or silent."""


def calibrate(concept: Tensor, kept: Tensor, quiet: Tensor, margin: float = 0.1) -> Calibration:
    """Thresholds from pre-activations of concept prompts `[P, T, k]` and of deconcept and control prompts `[Q, T, k]`.

    `kept` `[P, T, k]` bool: where TopK keeps the neuron. Positions are all that are edited, padding included: a row
    that fires anywhere changes the picture. The rule, per neuron, with q = max(quiet, 0):

        t = q + margin * (typical - q), but no more than (q + floor) / 2 where floor > q, and never below q.

    So it is silent on everything that must stay, by a margin for prompts not seen here, and gives up no row that TopK
    would edit unless it lies in the band of the quiet prompts. Not separable: t = q, which keeps the silence.
    Raises ExciseError for a margin outside 0..1 or an empty side.
    """
    if not 0 <= margin <= 1:
        raise InvalidSetting(f"the threshold's margin is {margin}; it is a share between 0 and 1")
    if not concept.numel() or not quiet.numel():
        raise ExciseError(
            "a threshold needs concept prompts and deconcept or control prompts; the concept lacks one side"
        )
    loudest = quiet.flatten(0, 1).amax(0)
    typical = concept.amax(1).median(0).values
    floor = torch.stack([_low(concept[..., i][kept[..., i]]) for i in range(concept.shape[-1])])
    q = loudest.clamp(min=0)
    separable = typical > q
    t = torch.where(separable, q + margin * (typical - q), q)
    t = torch.where(floor > q, torch.minimum(t, (q + floor) / 2), t)
    agreement = ((concept > t) == kept).double().flatten(0, 1).mean(0)
    return Calibration(t, loudest, floor, typical, separable, agreement)


def _low(values: Tensor) -> Tensor:
    """The 5 % quantile, nan if there is nothing. By sorting, since torch.quantile refuses large inputs."""
    if not len(values):
        return torch.tensor(float("nan"), dtype=values.dtype, device=values.device)
    return values.sort().values[int(0.05 * (len(values) - 1))]
