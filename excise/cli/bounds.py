"""What numbers the options take, all in one place: `typer.Option("--steps", **STEPS)`.

The upper bounds stop slips of the keyboard before any work; none is one that honest work comes near.
"""

from __future__ import annotations

from typing import TypedDict


class Bounds(TypedDict):
    """The least and the greatest value, both allowed."""

    min: float
    max: float


COUNT: Bounds = {"min": 1, "max": 1_000_000}
"""How many prompts, pairs, pictures a prompt, neurons or rows."""
COUNT_OR_NONE: Bounds = {"min": 0, "max": 1_000_000}
CORPUS: Bounds = {"min": 1, "max": 100_000_000}
"""How many prompts are read for a training."""
CORPUS_OR_NONE: Bounds = {"min": 0, "max": 100_000_000}
PAIRS: Bounds = {"min": 2, "max": 1_000_000}
"""Prompt pairs: one alone leaves none to hold out."""
FAMILY: Bounds = {"min": 2, "max": 1_000_000}
"""Prompts a family: an interval needs two."""
STEPS: Bounds = {"min": 1, "max": 1000}
"""Denoising steps: models are trained on 1,000 timesteps."""
SEED: Bounds = {"min": 0, "max": 2**63 - 1}
"""Seeds of pictures. Torch's generator takes up to 2^64 - 1, so that there is room for seeds that count up."""
TRAINING_SEED: Bounds = {"min": 0, "max": 2**31 - 1}
"""Seeds of an SAE's training, as its configuration takes them."""
GUIDANCE: Bounds = {"min": 0, "max": 100}
"""The guidance scale: pictures burn out from 20 or so."""
STRENGTH: Bounds = {"min": -20, "max": 20}
"""The factor of an eraser's λ; below 0 the concept is written in."""
LAMBDA: Bounds = {"min": 0, "max": 100}
POSITIVE_LAMBDA: Bounds = {"min": 0.01, "max": 100}
SHARE: Bounds = {"min": 0, "max": 1}
CODE: Bounds = {"min": 0, "max": 1_000_000}
"""A neuron's code."""
NEURON: Bounds = {"min": 0, "max": 2**31 - 1}
"""A neuron's number."""
EXPANSION: Bounds = {"min": 1, "max": 1024}
"""Neurons of an SAE for each input dimension."""
K: Bounds = {"min": 1, "max": 65_536}
"""Neurons kept for each vector, or turned down."""
SHORTLIST: Bounds = {"min": 0, "max": 65_536}
TRAINING_VECTORS: Bounds = {"min": 1, "max": 1_000_000_000_000}
BATCH: Bounds = {"min": 1, "max": 10_000_000}
RATE: Bounds = {"min": 0, "max": 1}
"""A learning rate."""
WEIGHT: Bounds = {"min": 0, "max": 1_000_000}
"""The weight of a loss's term."""
TOKENS: Bounds = {"min": 1, "max": 100_000}
"""Tokens that a language model writes."""
JOBS: Bounds = {"min": 1, "max": 1024}
"""Processes, or questions asked at a time."""
TABLE: Bounds = {"min": 1, "max": 4}
FIGURE: Bounds = {"min": 3, "max": 8}
