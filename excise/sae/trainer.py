"""Training a TopK SAE: on a CPU in minutes, interruptible at any step and resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError
from excise.interruption import interruptible
from excise.outputs import check_untrained
from excise.sae import formats
from excise.sae.checkpoint import State
from excise.sae.config import SAEConfig, TrainConfig
from excise.sae.data import Features, Samples, Shard, Source, Statistics, geometric_median
from excise.sae.losses import idle_tokens, loss, step
from excise.sae.metrics import evaluate
from excise.sae.model import Codes, TopKSAE
from excise.sae.supervised import Supervision, Terms, terms

LOG = "log.jsonl"
_LOOK = 64
"""Validation samples looked at together."""
_LENGTH_OF = 1024
"""Vectors of the sample that the encoder's length is worked out on."""
S = TypeVar("S", Tensor, Samples, Shard)


class Progress(NamedTuple):
    """One line of the log: means over the steps since the line before."""

    step: int
    steps: int
    """Of the whole run."""
    tokens: int
    """Vectors trained on so far."""
    fvu: float
    """Fraction of variance unexplained, as the weights stood at each step."""
    aux: float
    """Auxiliary loss, before alpha."""
    l0: float
    """Positive latents for a vector."""
    dead: float
    """Share of the latents dead now."""
    lr: float
    seconds: float
    """Spent training, pauses left out."""
    association: float = 0.0
    """Concept association loss of a supervised training."""


def train(
    features: Features,
    config: TrainConfig,
    out: Path | str,
    *,
    card: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    held_out: Tensor | None = None,
    supervision: Supervision | None = None,
    validation: Samples | None = None,
    init: TopKSAE | None = None,
    measure: Callable[[TopKSAE], Mapping[str, Any]] | None = None,
    device: torch.device | str = "cpu",
) -> TopKSAE:
    """Train on `features` ([N, d], Samples, or a function giving shards anew at each call) and save into the folder
    `out`.

    With `supervision`, on Samples, every concept gets a latent of its own; training then stops early where
    `validation` (other samples) gets no better. `init` is an SAE to go on from, of the shape that the config gives.

    `card` tells the corpus, the Site and what evaluation data the corpus excludes; tokens, recipe and metrics are added
    (on a sample of the training vectors and, where given, on `held_out` [n, d]; `measure` gives further ones of the
    finished SAE). Until it is done, `out`.training holds a checkpoint and the log; calling again with the same
    arguments goes on from there: on a CPU with as many threads, to the very bits of an uninterrupted run. Ctrl-C
    finishes the step, writes a checkpoint and raises KeyboardInterrupt; a second Ctrl-C raises at once. Raises
    ExciseError where `out` is not empty, the features are unusable, a checkpoint there belongs to other settings,
    labels are missing, training diverges, or the disk refuses.
    """
    out = Path(out)
    check_untrained(out)
    work = out.with_name(out.name + ".training")
    source = Source(features, seed=config.seed)
    statistics = source.statistics()
    shape = config.sae(len(statistics.mean))
    rows = max(1, min(config.batch, statistics.vectors) // statistics.each)
    batch = rows * statistics.each
    steps = math.ceil(config.tokens / batch)
    unit = math.sqrt(statistics.variance) if config.units == "variance" else 1.0
    window = min(config.dead_after, statistics.vectors)

    asked = b"" if supervision is None else _labels_digest(source, supervision, shape.m, validation)
    digest = _digest(statistics, supervision, init, asked)
    state = _start(shape, config, statistics, unit, torch.device(device), init)
    resumed = state.restore(work / "checkpoint", config, digest)
    _open_log(work / LOG, state.step if resumed else 0)
    variance = statistics.variance / unit**2

    def checkpoint() -> None:
        state.save(work / "checkpoint", config, digest)

    with interruptible() as interrupted:
        began = time.monotonic() - state.seconds
        batches = source.batches(rows, start=state.step, device=device)
        try:
            while state.step < steps and not (supervision and state.stale >= supervision.patience):
                if interrupted():
                    raise KeyboardInterrupt
                lr = learning_rate(config, state.step, steps)
                _advance(state, _scaled(next(batches), unit, device), config, variance, window, lr, supervision)
                if supervision and validation and state.step % supervision.check_every == 0:
                    _look(state, _scaled(validation, unit, device), variance, supervision)
                state.seconds = time.monotonic() - began
                if state.step % config.log_every == 0 or state.step == steps:
                    line = _line(state, config, steps, batch, window, lr)
                    _log(work / LOG, line)
                    if progress is not None:
                        progress(line)
                if state.step % config.checkpoint_every == 0 and state.step < steps:
                    checkpoint()
        except KeyboardInterrupt:
            checkpoint()
            raise
        # Measuring and saving may be interrupted or find the disk full: the steps must not have been for nothing.
        checkpoint()
        if interrupted():
            raise KeyboardInterrupt

    if state.best:
        state.sae.load_state_dict(state.best)
    sae = _in_data_units(state.sae, unit)
    threshold = config.dead_threshold * unit
    told = dict(card or {})
    told["tokens"] = state.step * batch
    told["recipe"] = {**config.to_json(), "vectors": statistics.vectors}
    if supervision is not None:
        told["supervision"] = supervision.to_json()
    told["metrics"] = {
        "train": evaluate(sae, torch.split(statistics.sample, 4096), threshold=threshold)._asdict(),
        "dead_share": float((state.idle >= window).double().mean()),
        "dead_window": window,
        "dead_threshold": threshold,
    }
    if held_out is not None:
        told["metrics"]["held_out"] = evaluate(sae, torch.split(held_out, 4096), threshold=threshold)._asdict()
    if measure is not None:
        told["metrics"].update(measure(sae))
    formats.save(sae, out, told, extra={LOG: (work / LOG).read_bytes()})
    shutil.rmtree(work, ignore_errors=True)
    return sae


def learning_rate(config: TrainConfig, done: int, steps: int) -> float:
    """For the step after `done` of `steps`: constant, then falling linearly over the last `decay` of them."""
    falling = config.decay * steps
    return config.lr * min(1.0, (steps - done) / falling) if falling else config.lr


def _labels_digest(source: Source, supervision: Supervision, m: int, validation: Samples | None) -> bytes:
    """Of the labels, and of the samples that early stopping looks at. Raises ExciseError where a concept is in none."""
    own, there = hashlib.sha256(), None
    for labels in source.labels():
        own.update(_bytes(labels))
        there = labels.any(0) if there is None else there | labels.any(0)
    if there is None:
        raise ExciseError("supervision needs Samples with labels, not bare vectors")
    supervision.check_labels(there[None], m)
    for part in (validation.states, validation.labels) if validation is not None else ():
        own.update(_bytes(part))
    return own.digest()


def _digest(statistics: Statistics, supervision: Supervision | None, init: TopKSAE | None, asked: bytes) -> str:
    """Tells one training from another, besides its config."""
    own = hashlib.sha256(statistics.digest().encode() + asked)
    if supervision is not None:
        own.update(json.dumps(supervision.to_json()).encode())
    for tensor in init.state_dict().values() if init is not None else ():
        own.update(_bytes(tensor))
    return own.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _scaled(batch: S, unit: float, device: torch.device | str) -> S:
    """In training units, in float32."""
    if isinstance(batch, Tensor):
        return batch.to(device) / unit
    return Samples(batch.states.to(device).float() / unit, batch.labels.to(device))


def _start(
    shape: SAEConfig,
    config: TrainConfig,
    statistics: Statistics,
    unit: float,
    device: torch.device,
    init: TopKSAE | None,
) -> State:
    sae = TopKSAE(shape, seed=config.seed)
    sae.shortlist, sae.rough = config.shortlist, config.precision == "bfloat16"
    with torch.no_grad():
        if init is None:
            sae.b_pre.copy_(geometric_median(statistics.sample) / unit)
            sae.W_enc.mul_(encoder_length(sae, statistics.sample[:_LENGTH_OF] / unit))
        else:
            if init.config != shape:
                raise ExciseError(f"the SAE to go on from is {init.config}, the settings give {shape}")
            sae.load_state_dict(init.state_dict())
            sae.b_pre.div_(unit)
            sae.b_enc.div_(unit)
    sae.to(device)
    # Fused: on a CPU the per-tensor and foreach kinds take up to 25 times as long.
    optimiser = torch.optim.Adam(
        sae.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )
    return State(sae, optimiser, torch.zeros(shape.m, dtype=torch.int64, device=device))


@torch.no_grad()
def encoder_length(sae: TopKSAE, vectors: Tensor) -> float:
    """The factor of a fresh SAE's encoder with which it reconstructs the vectors [N, d] best; 1 where nothing fires.

    ReLU and TopK commute with a positive factor, so that this is least squares by one number: <x, y> / <y, y>, of x and
    its reconstruction y as they stand to `b_pre`. Encoder rows of length 1 overshoot, since the k latents' shares of x
    overlap. Gao et al. 2024 (appendix A.1) make y as long as x instead, which starts further off.
    """
    x, y = vectors - sae.b_pre, sae(vectors).reconstruction - sae.b_pre
    explained = float((x * y).sum())
    return explained / float(y.square().sum()) if explained > 0 else 1.0


def _advance(
    state: State,
    batch: Shard,
    config: TrainConfig,
    variance: float,
    window: int,
    lr: float,
    supervision: Supervision | None,
) -> None:
    """One step on the batch, in training units."""
    x = batch if isinstance(batch, Tensor) else batch.vectors
    codes = state.sae.encode_batch(x) if config.activation == "batchtopk" else state.sae.encode(x)
    reconstruction = state.sae.decode(codes)
    # Before the loss, as in OpenAI's code: a latent that fired in this very batch is dead no more.
    state.idle = idle_tokens(state.idle, codes, config.dead_threshold)
    parts = loss(state.sae, x, reconstruction, variance, state.idle >= window, config.alpha)
    total, association = parts.total, torch.zeros((), device=x.device)
    if supervision is not None and isinstance(batch, Samples):
        told = _terms(state.sae, batch, codes, supervision)
        total, association = total + told.total, told.association.detach()
    total.backward()  # type: ignore[no-untyped-call]
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    step(state.sae, state.optimiser)
    l0 = (codes.values > 0).sum() / len(x)
    state.window += torch.stack([parts.mse.detach(), parts.aux.detach(), l0, association]).double().cpu()
    state.step += 1


def _terms(sae: TopKSAE, batch: Samples, codes: Codes, supervision: Supervision) -> Terms:
    rows = torch.tensor(supervision.assigned, device=batch.states.device)
    own = F.linear(batch.states - sae.b_pre, sae.W_enc[rows], sae.b_enc[rows])
    return terms(own, codes.values, batch.labels, supervision)


@torch.no_grad()
def _look(state: State, validation: Samples, variance: float, supervision: Supervision) -> None:
    """Note the loss on the validation samples, and keep the weights where it is the least so far."""
    losses = []
    for start in range(0, len(validation), _LOOK):
        part = validation[start : start + _LOOK]
        codes = state.sae.encode(part.vectors)
        mse = F.mse_loss(state.sae.decode(codes), part.vectors) / variance
        losses.append(float(mse + _terms(state.sae, part, codes, supervision).total))
    found = sum(losses) / len(losses)
    state.stale += 1
    if found < state.best_loss:
        state.best = {name: value.detach().clone() for name, value in state.sae.state_dict().items()}
        state.best_loss, state.stale = found, 0


def _line(state: State, config: TrainConfig, steps: int, batch: int, window: int, lr: float) -> Progress:
    since = (state.step - 1) % config.log_every + 1
    mse, aux, l0, association = (state.window / since).tolist()
    if not math.isfinite(mse + aux + association):
        raise ExciseError(
            f"training diverged before step {state.step}; lower lr (it is {config.lr:g}), or train in units='variance'"
        )
    state.window = torch.zeros_like(state.window)
    dead = float((state.idle >= window).double().mean())
    return Progress(state.step, steps, state.step * batch, mse, aux, l0, dead, lr, round(state.seconds, 3), association)


def _open_log(path: Path, step: int) -> None:
    """Make the folder; leave of an older log what the checkpoint at `step` knows of."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break  # a line cut short by a crash, and nothing after it
        path.write_text("".join(kept), encoding="utf-8")
    except OSError as error:
        raise ExciseError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _log(path: Path, line: Progress) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line._asdict()) + "\n")
    except OSError as error:
        raise ExciseError(f"cannot write {path}: {error.strerror or error}; free some space and go on") from error


@torch.no_grad()
def _in_data_units(sae: TopKSAE, unit: float) -> TopKSAE:
    """The same SAE for vectors not divided by `unit`: ReLU and TopK commute with a positive factor."""
    sae.b_pre.mul_(unit)
    sae.b_enc.mul_(unit)
    sae.shortlist, sae.rough = 0, False
    sae.zero_grad(set_to_none=True)
    return sae.eval()
