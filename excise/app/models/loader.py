"""Loader: how each worker of an engine loads the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import load_pipeline
from excise.engine import Needs
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load
from excise.sites.site import encoder_of


@dataclass(frozen=True)
class Loader:
    """What `load_pipeline` needs. It is pickled, and the model is not."""

    model: str | None = None
    device: str = "cpu"
    weights: Weights = DEFAULT

    def __call__(self) -> Any:
        """Load the model. Raises ExciseError as `load_pipeline`."""
        return load_pipeline(self.model, self.device, self.weights)

    def with_sae(self, folder: str, component: str) -> tuple[Pipeline, TopKSAE]:
        """Load the model, and the SAE in a folder onto the device of one of its text encoders."""
        pipe = self()
        return pipe, load(Path(folder), device=next(encoder_of(pipe, component).parameters()).device)

    @property
    def needs(self) -> Needs:
        """A GPU of its own for each worker with the device `cuda`; other devices are named, and shared."""
        return Needs(gpus=1 if self.device == "cuda" else 0)
