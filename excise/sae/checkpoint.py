"""Checkpoint of an SAE training: enough to continue to the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from excise import files
from excise.errors import ExciseError
from excise.sae.config import TrainConfig
from excise.sae.model import TopKSAE

_STATE, _TENSORS = "state.json", "state.safetensors"
_SCHEMA = "excise.sae.checkpoint/2"


@dataclass
class State:
    """Everything that changes during training. The rest is in the config and the vectors."""

    sae: TopKSAE
    optimiser: torch.optim.Adam
    idle: Tensor
    """[m] int64: vectors since each latent last fired."""
    window: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """[mse, aux, L0, concept association], summed over the steps since the last line of the log."""
    step: int = 0
    seconds: float = 0.0
    """Time spent training, without pauses."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights that did best on the validation split, if there is one."""
    best_loss: float = math.inf
    stale: int = 0
    """Validation checks since then."""

    def save(self, folder: Path, config: TrainConfig, features: str) -> None:
        """Write into `folder` atomically. `features` is the digest of the vectors."""
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        tensors |= {"idle": self.idle, "window": self.window}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        data = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        state = {
            "schema": _SCHEMA,
            "step": self.step,
            "seconds": self.seconds,
            "best_loss": self.best_loss if self.best else None,
            "stale": self.stale,
            "config": config.to_json(),
            "features": features,
            "sha256": files.sha256(data),
        }
        files.write_folder(folder, {_STATE: json.dumps(state, indent=2) + "\n", _TENSORS: data})

    def restore(self, folder: Path, config: TrainConfig, features: str) -> bool:
        """Load what `save` wrote; return False if there is no checkpoint.

        Raises ExciseError if it is damaged, or belongs to another config or to other vectors.
        """
        if not folder.exists():
            return False
        again = f"delete {folder.parent} to start again"
        try:
            state = files.read_json(folder / _STATE)
            data = files.read_tensors(folder / _TENSORS)
            if state["schema"] != _SCHEMA or state["sha256"] != files.sha256(data):
                raise ValueError("its parts do not belong together")
            tensors = safetensors.torch.load(data)
            self._agree(state, config, features, again)
            self._take(tensors)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best_loss, self.stale = float(state["best_loss"] or math.inf), int(state["stale"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ExciseError(f"the checkpoint in {folder} is damaged ({error}); {again}") from error
        return True

    @staticmethod
    def _agree(state: dict[str, object], config: TrainConfig, features: str, again: str) -> None:
        saved, wanted = TrainConfig.from_json(state["config"]).to_json(), config.to_json()
        if different := [name for name in wanted if saved[name] != wanted[name]]:
            name = different[0]
            raise ExciseError(
                f"the unfinished training there has {name}={saved[name]!r}, not {wanted[name]!r}; "
                f"give the same settings to continue it, or {again}"
            )
        if state["features"] != features:
            raise ExciseError(f"the unfinished training there uses other features or labels; {again}")

    def _take(self, tensors: dict[str, Tensor]) -> None:
        device = self.idle.device
        self.sae.load_state_dict({n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, number, part = name.split(".")
                moments.setdefault(int(number), {})[part] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.best = {n.removeprefix("best."): t.to(device) for n, t in tensors.items() if n.startswith("best.")}
        self.idle, self.window = tensors["idle"].to(device), tensors["window"]
