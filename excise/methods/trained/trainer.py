"""Training changes of a U-Net's weights, as ESD and its kin do: the student, the loop, and going on after Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import WeightEdit
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.files import write_folder
from excise.interruption import interruptible
from excise.methods.configs.trained import TuningConfig
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.language import fingerprint

_WATCHING: ContextVar[Callable[[int, int, float], None] | None] = ContextVar("excise_tuning", default=None)
_STATE, _TENSORS = "state.json", "state.safetensors"


@contextmanager
def watching(progress: Callable[[int, int, float], None]) -> Iterator[None]:
    """Within it `progress` is told of every step of a training: how many are done, of how many, and the loss."""
    token = _WATCHING.set(progress)
    try:
        yield
    finally:
        _WATCHING.reset(token)


class Student:
    """A denoiser with changes ΔW of some layers' weights, which gradients reach. The denoiser itself is not written."""

    def __init__(self, denoiser: nn.Module, weights: Mapping[Site, nn.Parameter]) -> None:
        self.denoiser = denoiser
        names = {id(parameter): name for name, parameter in denoiser.named_parameters()}
        self._names = {site: names[id(weight)] for site, weight in weights.items()}
        self._own = {site: weight.detach() for site, weight in weights.items()}
        self.changes = {site: torch.zeros_like(own, dtype=torch.float32) for site, own in self._own.items()}
        for change in self.changes.values():
            change.requires_grad_()
        self._made: tuple[list[tuple[int, int]], dict[str, Tensor]] | None = None

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        """What it predicts, of `sample`'s shape."""
        own = self.weights()
        given = {"encoder_hidden_states": states, "return_dict": False, **more}
        with unedited():
            made: Tensor = torch.func.functional_call(self.denoiser, own, (sample, timestep), given)[0]
        return made

    def weights(self) -> dict[str, Tensor]:
        """W + ΔW by the parameters' names, as `torch.func.functional_call` takes them.

        Without gradients they are summed once for all steps of a picture: as long as no change was written.
        """
        now = [(id(change), change._version) for change in self.changes.values()]
        if self._made is not None and self._made[0] == now and not torch.is_grad_enabled():
            return self._made[1]
        self._made = None  # before others take its memory
        made = {
            name: (self._own[site].float() + self.change(site)).to(self._own[site].dtype)
            for site, name in self._names.items()
        }
        if not torch.is_grad_enabled():
            self._made = now, made
        return made

    def change(self, site: Site) -> Tensor:
        """ΔW of a layer as it is now, float32."""
        return self.changes[site]

    def edits(self) -> list[WeightEdit]:
        """The changes as they are saved, in half precision."""
        return [WeightEdit(site, delta=self.change(site).detach().half().cpu()) for site in self.changes]


class LowRank(Student):
    """A Student whose ΔW is what a layer was changed by `before`, and a product of two of a small rank."""

    def __init__(
        self,
        denoiser: nn.Module,
        weights: Mapping[Site, nn.Parameter],
        before: Mapping[Site, Tensor],
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(denoiser, weights)
        for site, weight in weights.items():
            # B, which begins at nothing, above Aᵀ: the optimiser takes one tensor a layer.
            down = torch.randn(weight[0].numel(), rank, generator=generator) / rank
            self.changes[site] = torch.cat([torch.zeros(len(weight), rank), down]).to(weight.device).requires_grad_()
        self.before = {site: change.to(weights[site].device) for site, change in before.items()}

    def change(self, site: Site) -> Tensor:
        up, down = self.factors(site)
        made = (up @ down).reshape(self._own[site].shape)
        return made if (before := self.before.get(site)) is None else before + made

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        """B `[out, r]` and A `[r, in]` of a layer; a convolution's kernels are flattened."""
        return self.changes[site][: site.width], self.changes[site][site.width :].T


def training(method: str, pipe: Pipeline, concept: Concept, *more: Any) -> str:
    """Tells one training from another: the method, the whole concept, what else is `more`, the pipeline's scheduler and
    a few values of all of its weights."""
    parts = pipe.components.items()
    models = {name: fingerprint(part) for name, part in parts if isinstance(part, nn.Module)}
    said = [method, asdict(concept), models, dict(as_diffusers(pipe).scheduler.config), more]
    return hashlib.sha256(json.dumps(said, default=str, sort_keys=True).encode()).hexdigest()


def tune(student: Student, loss: Callable[[torch.Generator], Tensor], config: TuningConfig, told: str) -> list[float]:
    """Adam on the student's changes; the losses of all steps.

    `loss` draws all that it needs from the generator it is given, which is seeded anew for each step; so a training
    goes on to the same bits. `told` says which one it is, as `training` does. Raises ExciseError where the loss is no
    number any more or the checkpoint is another training's; KeyboardInterrupt after the step that Ctrl-C fell into, the
    checkpoint written.
    """
    changes = list(student.changes.values())
    adam = torch.optim.Adam(changes, lr=config.lr)
    which = hashlib.sha256(json.dumps([told, config.settings], default=str).encode()).hexdigest()
    folder = Path(config.checkpoint) if config.checkpoint else None
    losses = _restored(folder, which, changes, adam) if folder is not None and folder.exists() else []
    with interruptible() as interrupted:
        while len(losses) < config.iterations:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + len(losses))
            losses.append(_step(loss, generator, changes, adam))
            if not math.isfinite(losses[-1]):
                raise ExciseError(f"the loss is no number any more after {len(losses)} steps; lower lr ({config.lr:g})")
            if (watcher := _WATCHING.get()) is not None:
                watcher(len(losses), config.iterations, losses[-1])
            due = len(losses) % config.checkpoint_every == 0 or len(losses) == config.iterations
            if folder is not None and (due or interrupted()):
                _save(folder, which, losses, changes, adam)
            if interrupted() and len(losses) < config.iterations:
                raise KeyboardInterrupt
    return losses


def _step(
    loss: Callable[[torch.Generator], Tensor],
    generator: torch.Generator,
    changes: Sequence[Tensor],
    adam: torch.optim.Adam,
) -> float:
    """One of Adam's; the loss before it."""
    value = loss(generator)
    # A layer that the loss does not depend on, as attention maps do not on the last values, stays as it is.
    slopes = torch.autograd.grad(value, changes, allow_unused=True, materialize_grads=True)
    for change, slope in zip(changes, slopes, strict=True):
        change.grad = slope
    adam.step()
    adam.zero_grad()  # or they would stand beside the next step's
    return float(value.detach())


def _save(folder: Path, which: str, losses: Sequence[float], changes: Sequence[Tensor], adam: torch.optim.Adam) -> None:
    tensors = {f"change.{n}": change for n, change in enumerate(changes)}
    for n, moments in adam.state_dict()["state"].items():
        tensors |= {f"adam.{n}.{name}": value for name, value in moments.items()}
    data = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    write_folder(folder, {_STATE: json.dumps({"training": which, "losses": list(losses)}) + "\n", _TENSORS: data})


def _restored(folder: Path, which: str, changes: Sequence[Tensor], adam: torch.optim.Adam) -> list[float]:
    """Take over what `_save` wrote; the losses so far."""
    again = f"delete {folder} to start afresh, or name another"
    try:
        state = json.loads((folder / _STATE).read_bytes())
        tensors = safetensors.torch.load((folder / _TENSORS).read_bytes())
        if state["training"] != which:
            raise ExciseError(f"{folder} keeps another training; {again}")
        with torch.no_grad():
            for n, change in enumerate(changes):
                change.copy_(tensors[f"change.{n}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, number, *rest = name.split(".", 2)
            if kind == "adam":
                moments.setdefault(int(number), {})[rest[0]] = value
        adam.load_state_dict({**adam.state_dict(), "state": moments})
        return [float(value) for value in state["losses"]]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"the checkpoint in {folder} is damaged ({error}); {again}") from error
