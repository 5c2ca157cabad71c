"""Checkpoint of an SAE training: enough to continue to the same bits as an uninterrupted run.

Ranks that divide the latents write a file each, and state.json lists these. Any number of ranks continues from it.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from excise import files
from excise.errors import ExciseError
from excise.sae.config import TrainConfig
from excise.sae.model import DIVIDED, TopKSAE

_STATE = "state.json"
_SCHEMA, _OLD = "excise.sae.checkpoint/3", "excise.sae.checkpoint/2"


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
        """Write into `folder` atomically, together with the other ranks. `features` is the digest of the vectors.

        Raises ExciseError if a rank cannot write.
        """
        mesh, staged = self.sae.mesh, folder.with_name(folder.name + ".next")
        own = self.sae.mesh.rows(self.sae.config.m)
        name = f"state-{mesh.column}-of-{mesh.latents}.safetensors" if mesh.latents > 1 else "state.safetensors"

        def begin() -> None:
            if mesh.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)

        def write() -> str:
            if not mesh.writes:
                return ""
            data = safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in self._tensors().items()})
            files.write_atomic(staged / name, data)
            return json.dumps({"file": name, "rows": [own.start, own.stop], "sha256": files.sha256(data)})

        mesh.together(begin)
        parts = [files.parse_json(text) for text in mesh.texts(mesh.together(write)) if text]
        state = {
            "schema": _SCHEMA,
            "step": self.step,
            "seconds": self.seconds,
            "best_loss": self.best_loss if self.best else None,
            "stale": self.stale,
            "config": config.to_json(),
            "features": features,
            "ranks": {"data": mesh.data, "latents": mesh.latents},
            "parts": parts,
        }

        def put() -> None:
            if mesh.rank:
                return
            files.write_atomic(staged / _STATE, json.dumps(state, indent=2) + "\n")
            try:
                files.put_folder(staged, folder)
            except OSError as error:
                raise ExciseError(f"cannot write {folder}: {error.strerror or error}; free some space") from error

        mesh.together(put)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        tensors |= {"idle": self.idle, "window": self.window}
        return tensors | {f"best.{name}": value for name, value in self.best.items()}

    def restore(self, folder: Path, config: TrainConfig, features: str) -> bool:
        """Load what `save` wrote, this rank's latents alone; return False if there is no checkpoint.

        Raises ExciseError if it is damaged, or belongs to another config or to other vectors.
        """
        if not folder.exists():
            return False
        again = f"delete {folder.parent} to start again"
        try:
            state = files.read_json(folder / _STATE)
            if state["schema"] == _OLD:
                state["parts"] = [
                    {"file": "state.safetensors", "rows": [0, self.sae.config.m], "sha256": state["sha256"]}
                ]
            elif state["schema"] != _SCHEMA:
                raise ValueError("its format is unknown")
            self._agree(state, config, features, again)
            self._take(self._read(folder, state["parts"]))
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best_loss, self.stale = float(state["best_loss"] or math.inf), int(state["stale"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ExciseError(f"the checkpoint in {folder} is damaged ({error}); {again}") from error
        return True

    def _read(self, folder: Path, parts: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return this rank's tensors from the files of any number of ranks."""
        own = self.sae.mesh.rows(self.sae.config.m)
        number = {str(n): name for n, (name, _) in enumerate(self.sae.named_parameters())}
        found: dict[str, list[Tensor]] = {}
        end = 0
        for part in parts:
            path, (first, last) = folder / Path(part["file"]).name, part["rows"]
            if first != end or files.sha256(path) != part["sha256"]:
                raise ValueError("its parts do not belong together")
            end = last
            rows = slice(max(own.start, first) - first, min(own.stop, last) - first)
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    kind, _, rest = name.partition(".")
                    column, _, moment = rest.partition(".")
                    owner = number.get(column) if kind == "adam" and moment != "step" else rest
                    if name != "idle" and owner not in DIVIDED:
                        found.setdefault(name, [file.get_tensor(name)])
                    elif rows.start < rows.stop:
                        found.setdefault(name, []).append(file.get_slice(name)[rows.start : rows.stop])
        if end != self.sae.config.m:
            raise ValueError("some of its parts are missing")
        return {name: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in found.items()}

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
            raise ExciseError(
                f"the unfinished training there uses other features or labels, or an older order of shards; {again}"
            )

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
