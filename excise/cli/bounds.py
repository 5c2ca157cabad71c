"""Bounds of every numeric option, in one place: `typer.Option("--steps", **STEPS)`.

The upper bounds catch typing slips before any work begins. Real work comes nowhere near them.
"""

from __future__ import annotations

from typing import TypedDict

from excise.settings import LARGEST_FIRST_SEED


class Bounds(TypedDict):
    """Smallest and largest value, both allowed."""

    min: float
    max: float


COUNT: Bounds = {"min": 1, "max": 1_000_000}
"""Number of prompts, pairs, pictures per prompt, neurons or rows."""
COUNT_OR_NONE: Bounds = {"min": 0, "max": 1_000_000}
CORPUS: Bounds = {"min": 1, "max": 100_000_000}
"""Number of prompts read for a training run."""
CORPUS_OR_NONE: Bounds = {"min": 0, "max": 100_000_000}
PAIRS: Bounds = {"min": 2, "max": 1_000_000}
"""Number of prompt pairs. A single pair would leave none to hold out."""
FAMILY: Bounds = {"min": 2, "max": 1_000_000}
"""Prompts per family. A confidence interval needs two."""
STEPS: Bounds = {"min": 1, "max": 1000}
"""Denoising steps. Models are trained on 1,000 timesteps."""
SEED: Bounds = {"min": 0, "max": LARGEST_FIRST_SEED}
"""Seeds of pictures."""
TRAINING_SEED: Bounds = {"min": 0, "max": 2**31 - 1}
"""Seeds of SAE training, as `TrainConfig` takes them."""
GUIDANCE: Bounds = {"min": 0, "max": 100}
"""Guidance scale. Pictures burn out from about 20."""
STRENGTH: Bounds = {"min": -20, "max": 20}
"""Factor on an eraser's λ. Below 0 it amplifies the concept."""
LAMBDA: Bounds = {"min": 0, "max": 100}
POSITIVE_LAMBDA: Bounds = {"min": 0.01, "max": 100}
SHARE: Bounds = {"min": 0, "max": 1}
CODE: Bounds = {"min": 0, "max": 1_000_000}
"""Value of a neuron's code."""
NEURON: Bounds = {"min": 0, "max": 2**31 - 1}
"""Index of a neuron."""
EXPANSION: Bounds = {"min": 1, "max": 1024}
"""Neurons of an SAE per input dimension."""
K: Bounds = {"min": 1, "max": 65_536}
"""Neurons kept per vector, or turned down."""
SHORTLIST: Bounds = {"min": 0, "max": 65_536}
TRAINING_VECTORS: Bounds = {"min": 1, "max": 1_000_000_000_000}
BATCH: Bounds = {"min": 1, "max": 10_000_000}
RATE: Bounds = {"min": 0, "max": 1}
"""Learning rate."""
WEIGHT: Bounds = {"min": 0, "max": 1_000_000}
"""Weight of a loss term."""
TOKENS: Bounds = {"min": 1, "max": 100_000}
"""Tokens for a language model to write."""
JOBS: Bounds = {"min": 1, "max": 1024}
"""Processes, or questions asked at once."""
TABLE: Bounds = {"min": 1, "max": 4}
FIGURE: Bounds = {"min": 3, "max": 8}
PORT: Bounds = {"min": 0, "max": 65_535}
