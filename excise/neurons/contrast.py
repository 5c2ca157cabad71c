"""Contrast of SAEs: how well each separates concepts, by Safe-SAIL's metrics that need neither explanations nor models.

Safe-SAIL (Weng et al. 2025, arXiv 2509.18127) compares SAEs on concept contrastive query pairs by L0,t, "the number of
features that distinguish a concept above threshold t", and I_CDF, "their expected distinguishing frequency". Its full
text and code for this are not public; this is our formalisation of these words. For pairs j = 1..P,
δ_ij = 1[a⁺_ij > τ and a⁻_ij = 0] with a the largest code over a prompt's scored tokens, freq_i = mean_j δ_ij,
L0,t = #{i: freq_i ≥ t}, and I_CDF = ∫₀¹ L0,t dt, the area under that curve, which is Σ_i freq_i.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from excise.errors import ExciseError, InvalidSetting
from excise.neurons.scores import PromptCodes
from excise.neurons.validation import activations


def distinguishing_frequency(concept: PromptCodes, deconcept: PromptCodes, threshold: float = 0.0) -> Tensor:
    """Return freq_i `[m]`, float64: the share of pairs that the neuron distinguishes.

    It must exceed `threshold` (τ, in codes) on the concept side and be silent on the deconcept side. Raises ExciseError
    if the sides differ in number or width, or there are no pairs.
    """
    if len(concept.values) != len(deconcept.values) or concept.m != deconcept.m or not len(concept.values):
        raise ExciseError(
            f"{len(concept.values)} concept prompts of {concept.m} neurons against {len(deconcept.values)} of "
            f"{deconcept.m}: give pairs, read by one SAE"
        )
    return ((activations(concept) > threshold) & (activations(deconcept) == 0)).double().mean(0)


def l0_t(frequency: Tensor, t: float) -> int:
    """Return L0,t: how many neurons distinguish the concept in at least a share `t` of the pairs, 0 < t <= 1."""
    if not 0 < t <= 1:
        raise InvalidSetting(f"t is {t}; it is a share of the pairs, above 0 and at most 1")
    # A frequency is a count over P: without the margin 0.3 would miss 30 of 100.
    return int((frequency >= t - 1e-9).sum())


def i_cdf(frequency: Tensor) -> float:
    """Return I_CDF = ∫₀¹ L0,t dt = Σ_i freq_i: the number of neurons that distinguish the concept, weighted by freq."""
    return float(frequency.double().sum())


@dataclass(frozen=True)
class Contrast:
    """How well an SAE separates one concept."""

    frequency: Tensor
    """`[m]` freq_i."""

    @property
    def best(self) -> float:
        """The largest frequency: how often the best neuron separates the concept."""
        return float(self.frequency.max())

    @property
    def concentration(self) -> float:
        """The best neuron's share of I_CDF, 0..1: 1 if one neuron alone carries the concept.

        Ours, not Safe-SAIL's. Many neurons that separate a concept are many to explain; for erasing by one neuron they
        mean that the concept is split. 0 if none does.
        """
        total = i_cdf(self.frequency)
        return self.best / total if total else 0.0

    def row(self, t: float = 0.5) -> dict[str, float | int]:
        """Return the figures by name."""
        return {
            "i_cdf": i_cdf(self.frequency),
            "l0_t": l0_t(self.frequency, t),
            "best": self.best,
            "concentration": self.concentration,
        }


def contrast(concept: PromptCodes, deconcept: PromptCodes, threshold: float = 0.0) -> Contrast:
    """Compare one concept's pairs. Raises ExciseError as `distinguishing_frequency`."""
    return Contrast(distinguishing_frequency(concept, deconcept, threshold))
