"""Training of changes of a model's weights, as in ESD: the student, the training loop, and resuming after Ctrl-C."""

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
from excise.erasers import Eraser, WeightEdit
from excise.erasers.edits.registry import Edit
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.files import parse_json, read_file, read_tensors, sha256, unmixed, write_folder
from excise.interruption import interruptible
from excise.methods.build import build_eraser
from excise.methods.configs.trained import TuningConfig
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.language import fingerprint

_WATCHING: ContextVar[Callable[[int, int, float], None] | None] = ContextVar("excise_tuning", default=None)
_STATE, _TENSORS = "state.json", "state.safetensors"


@contextmanager
def watch_training(progress: Callable[[int, int, float], None]) -> Iterator[None]:
    """Call `progress` after every training step in this context, with steps done, all steps and the loss."""
    token = _WATCHING.set(progress)
    try:
        yield
    finally:
        _WATCHING.reset(token)


class Student:
    """Model with trainable changes ΔW of some layers' weights. The model itself is not modified."""

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
        """Return the prediction, of `sample`'s shape."""
        own = self.weights()
        given = {"encoder_hidden_states": states, "return_dict": False, **more}
        with unedited():
            made: Tensor = torch.func.functional_call(self.denoiser, own, (sample, timestep), given)[0]
        return made

    def weights(self) -> dict[str, Tensor]:
        """Return W + ΔW by parameter name, as `torch.func.functional_call` takes them.

        Without gradients, they are summed once and cached until a change is written.
        """
        now = [(id(change), change._version) for change in self.changes.values()]
        if self._made is not None and self._made[0] == now and not torch.is_grad_enabled():
            return self._made[1]
        self._made = None  # free its memory before allocating the next
        made = {
            name: (self._own[site].float() + self.change(site)).to(self._own[site].dtype)
            for site, name in self._names.items()
        }
        if not torch.is_grad_enabled():
            self._made = now, made
        return made

    def change(self, site: Site) -> Tensor:
        """Return ΔW of a layer, float32."""
        return self.changes[site]

    def edits(self) -> list[Edit]:
        """Return the edits to save, in half precision."""
        return [WeightEdit(site, delta=self.change(site).detach().half().cpu()) for site in self.changes]


class LowRank(Student):
    """Student whose ΔW is a fixed change `before` plus a product of two low-rank factors."""

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
            # B, initially zero, stacked on Aᵀ: the optimiser takes one tensor per layer.
            down = torch.randn(weight[0].numel(), rank, generator=generator) / rank
            self.changes[site] = torch.cat([torch.zeros(len(weight), rank), down]).to(weight.device).requires_grad_()
        self.before = {site: change.to(weights[site].device) for site, change in before.items()}

    def change(self, site: Site) -> Tensor:
        up, down = self.factors(site)
        made = (up @ down).reshape(self._own[site].shape)
        return made if (before := self.before.get(site)) is None else before + made

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return B `[out, r]` and A `[r, in]` of a layer; a convolution's kernels are flattened."""
        return self.changes[site][: site.width], self.changes[site][site.width :].T

    def saved_factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return B and A of every layer as they are saved, in half precision on the CPU."""

        def saved(factor: Tensor) -> Tensor:
            return factor.detach().half().cpu().contiguous()

        return {site: (saved(up), saved(down)) for site in self.changes for up, down in [self.factors(site)]}


def layer_weights(unet: nn.Module, wanted: Callable[[str], bool]) -> dict[Site, nn.Parameter]:
    """Return the weights of a U-Net's linear and convolutional layers whose module paths are `wanted`."""
    layers: dict[str, Any] = dict(unet.named_modules())
    return {
        Site("unet", path, len(layer.weight)): layer.weight
        for path, layer in layers.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and wanted(path)
    }


def train_eraser(
    pipe: Pipeline,
    student: Student,
    loss: Callable[[torch.Generator], Tensor],
    concept: Concept,
    method: str,
    config: TuningConfig,
    **adam: Any,
) -> Eraser:
    """Train the student's changes with `tune`, then build and self-test the eraser that holds them."""
    losses = tune(student, loss, config, training_digest(method, pipe, concept), **adam)
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return build_eraser(pipe, student.edits(), concept, method, config.settings, found)


def training_digest(method: str, pipe: Pipeline, concept: Concept, *more: Any) -> str:
    """Return a digest that identifies a training: method, concept, `more`, scheduler, some values of each weight."""
    parts = pipe.components.items()
    models = {name: fingerprint(part) for name, part in parts if isinstance(part, nn.Module)}
    described = [method, asdict(concept), models, dict(as_diffusers(pipe).scheduler.config), more]
    return hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode()).hexdigest()


def tune(
    student: Student,
    loss: Callable[[torch.Generator], Tensor],
    config: TuningConfig,
    key: str,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> list[float]:
    """Train the student's changes with Adam and return the losses of all steps.

    `loss` takes all its randomness from the given generator, which is seeded for each step; so a resumed training ends
    with the same bits. `key` is the training's digest, from `training_digest`. Raises ExciseError if the loss is not
    finite or the checkpoint belongs to another training. On Ctrl-C, finishes the step, writes the checkpoint and raises
    KeyboardInterrupt.
    """
    changes = list(student.changes.values())
    adam = torch.optim.Adam(changes, lr=config.lr, betas=betas, eps=eps)
    which = hashlib.sha256(json.dumps([key, config.settings], default=str).encode()).hexdigest()
    folder = Path(config.checkpoint) if config.checkpoint else None
    losses = _restored(folder, which, changes, adam) if folder is not None else []
    with interruptible() as interrupted:
        while len(losses) < config.iterations:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + len(losses))
            losses.append(_step(loss, generator, changes, adam))
            if not math.isfinite(losses[-1]):
                raise ExciseError(f"the loss is not finite after {len(losses)} steps; lower lr ({config.lr:g})")
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
    """Take one step of Adam and return the loss before it."""
    value = loss(generator)
    # Layers that the loss does not depend on stay as they are: attention maps do not depend on the last values.
    slopes = torch.autograd.grad(value, changes, allow_unused=True, materialize_grads=True)
    for change, slope in zip(changes, slopes, strict=True):
        change.grad = slope
    adam.step()
    adam.zero_grad()  # frees the gradients before the next step allocates its own
    return float(value.detach())


def _save(folder: Path, which: str, losses: Sequence[float], changes: Sequence[Tensor], adam: torch.optim.Adam) -> None:
    tensors = {f"change.{n}": change for n, change in enumerate(changes)}
    for n, moments in adam.state_dict()["state"].items():
        tensors |= {f"adam.{n}.{name}": value for name, value in moments.items()}
    data = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    state = {"training": which, "losses": list(losses), "sha256": sha256(data)}
    write_folder(folder, {_STATE: json.dumps(state) + "\n", _TENSORS: data})


def _restored(folder: Path, which: str, changes: Sequence[Tensor], adam: torch.optim.Adam) -> list[float]:
    """Load what `_save` wrote and return the losses so far: none if there is no folder, or no longer."""
    again = f"delete {folder} to start again, or name another folder"
    try:
        read = unmixed(folder, lambda: (read_file(folder / _STATE), read_tensors(folder / _TENSORS)))
    except OSError as error:
        if not folder.exists():  # whoever finished the same training meanwhile has removed it
            return []
        raise ExciseError(f"the checkpoint in {folder} is damaged ({error}); {again}") from error
    try:
        state, data = parse_json(read[0]), read[1]
        if state.get("sha256", found := sha256(data)) != found:
            raise ValueError(f"{_STATE} and {_TENSORS} are not of one step")
        tensors = safetensors.torch.load(data)
        if state["training"] != which:
            raise ExciseError(f"{folder} holds the checkpoint of another training; {again}")
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
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"the checkpoint in {folder} is damaged ({error}); {again}") from error
