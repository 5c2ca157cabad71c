"""Loader: how each worker of an engine loads the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import load_pipeline
from excise.engine import Needs


@dataclass(frozen=True)
class Loader:
    """What `load_pipeline` needs. It is pickled, and the model is not."""

    model: str | None = None
    device: str = "cpu"
    weights: Weights = DEFAULT

    def __call__(self) -> Any:
        """Load the model. Raises ExciseError as `load_pipeline`."""
        return load_pipeline(self.model, self.device, self.weights)

    @property
    def needs(self) -> Needs:
        """A GPU of its own for each worker with the device `cuda`; other devices are named, and shared."""
        return Needs(gpus=1 if self.device == "cuda" else 0)
