"""Training of a TopK SAE: minutes on a CPU, interruptible at any step and resumable to the bit."""

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

from excise import files
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
"""Validation samples per batch."""
_LENGTH_OF = 1024
"""Vectors of the sample from which the encoder's length is computed."""
S = TypeVar("S", Tensor, Samples, Shard)


class Progress(NamedTuple):
    """One line of the log: means over the steps since the previous line."""

    step: int
    steps: int
    """Steps of the whole run."""
    tokens: int
    """Vectors trained on so far."""
    fvu: float
    """Fraction of variance unexplained, with the weights of each step."""
    aux: float
    """Auxiliary loss, before alpha."""
    l0: float
    """Positive latents per vector."""
    dead: float
    """Share of the latents that are dead now."""
    lr: float
    seconds: float
    """Time spent training, without pauses."""
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
    """Train an SAE and save it into the folder `out`.

    Until it is done, `out`.training holds a checkpoint and the log. The same call resumes from there: on a CPU with as
    many threads, to the same bits as an uninterrupted run. Ctrl-C finishes the step, writes a checkpoint and raises
    KeyboardInterrupt; a second Ctrl-C raises at once.

    Args:
        features: Vectors [N, d], Samples, or a function that returns shards of them at every call.
        config: Training settings.
        out: Folder for the SAE.
        card: Corpus, Site and the evaluation data that the corpus excludes; tokens, recipe and metrics are added.
            Metrics are measured on a sample of the training vectors.
        progress: Called with every line of the log.
        held_out: Further vectors [n, d] to measure metrics on.
        supervision: Gives every concept its own latent; needs Samples.
        validation: Other samples; a supervised training stops early if it no longer improves on them.
        init: SAE to continue from, of the shape that the config gives.
        measure: Returns further metrics of the finished SAE.
        device: Where to train.

    Returns:
        The trained SAE.

    Raises:
        ExciseError: if `out` is not empty, the features are unusable, a checkpoint there belongs to other settings,
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
        # Measuring and saving may be interrupted or find the disk full: keep the finished training.
        checkpoint()
        if interrupted():
            raise KeyboardInterrupt

    if state.best:
        state.sae.load_state_dict(state.best)
    sae = _in_data_units(state.sae, unit)
    threshold = config.dead_threshold * unit
    described = dict(card or {})
    described["tokens"] = state.step * batch
    described["recipe"] = {**config.to_json(), "vectors": statistics.vectors}
    if supervision is not None:
        described["supervision"] = supervision.to_json()
    described["metrics"] = {
        "train": evaluate(sae, torch.split(statistics.sample, 4096), threshold=threshold)._asdict(),
        "dead_share": float((state.idle >= window).double().mean()),
        "dead_window": window,
        "dead_threshold": threshold,
    }
    if held_out is not None:
        described["metrics"]["held_out"] = evaluate(sae, torch.split(held_out, 4096), threshold=threshold)._asdict()
    if measure is not None:
        described["metrics"].update(measure(sae))
    formats.save(sae, out, described, extra={LOG: files.read_file(work / LOG, files.TENSORS)})
    shutil.rmtree(work, ignore_errors=True)
    return sae


def learning_rate(config: TrainConfig, done: int, steps: int) -> float:
    """Return the learning rate after `done` of `steps`: constant, then linearly falling in the last `decay` of them."""
    falling = config.decay * steps
    return config.lr * min(1.0, (steps - done) / falling) if falling else config.lr


def _labels_digest(source: Source, supervision: Supervision, m: int, validation: Samples | None) -> bytes:
    """Return a digest of labels and validation samples. Raises ExciseError if a concept is in no sample."""
    own, shown = hashlib.sha256(), None
    for labels in source.labels():
        own.update(_bytes(labels))
        shown = labels.any(0) if shown is None else shown | labels.any(0)
    if shown is None:
        raise ExciseError("supervision needs Samples with labels, not bare vectors")
    supervision.check_labels(shown[None], m)
    for part in (validation.states, validation.labels) if validation is not None else ():
        own.update(_bytes(part))
    return own.digest()


def _digest(statistics: Statistics, supervision: Supervision | None, init: TopKSAE | None, asked: bytes) -> str:
    """Return a digest that, with the config, identifies a training."""
    own = hashlib.sha256(statistics.digest().encode() + asked)
    if supervision is not None:
        own.update(json.dumps(supervision.to_json()).encode())
    for tensor in init.state_dict().values() if init is not None else ():
        own.update(_bytes(tensor))
    return own.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _scaled(batch: S, unit: float, device: torch.device | str) -> S:
    """Convert to training units, in float32."""
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
                raise ExciseError(f"the SAE to continue from is {init.config}, the settings give {shape}")
            sae.load_state_dict(init.state_dict())
            sae.b_pre.div_(unit)
            sae.b_enc.div_(unit)
    sae.to(device)
    # Fused: on a CPU the per-tensor and foreach implementations take up to 25 times as long.
    optimiser = torch.optim.Adam(
        sae.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )
    return State(sae, optimiser, torch.zeros(shape.m, dtype=torch.int64, device=device))


@torch.no_grad()
def encoder_length(sae: TopKSAE, vectors: Tensor) -> float:
    """Return the factor of a fresh SAE's encoder that best reconstructs the vectors [N, d]; 1 if nothing fires.

    ReLU and TopK commute with a positive factor, so this is least squares in one number: <x, y> / <y, y>, where x and
    its reconstruction y are taken relative to `b_pre`. Encoder rows of length 1 overshoot, since the k latents' shares
    of x overlap. Gao et al. 2024 (appendix A.1) make y as long as x instead, which starts further off.
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
    """Take one step on the batch, in training units."""
    x = batch if isinstance(batch, Tensor) else batch.vectors
    codes = state.sae.encode_batch(x) if config.activation == "batchtopk" else state.sae.encode(x)
    reconstruction = state.sae.decode(codes)
    # Before the loss, as in OpenAI's code: a latent that fired in this batch is no longer dead.
    state.idle = idle_tokens(state.idle, codes, config.dead_threshold)
    parts = loss(state.sae, x, reconstruction, variance, state.idle >= window, config.alpha)
    total, association = parts.total, torch.zeros((), device=x.device)
    if supervision is not None and isinstance(batch, Samples):
        supervised = _terms(state.sae, batch, codes, supervision)
        total, association = total + supervised.total, supervised.association.detach()
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
    """Compute the loss on the validation samples, and keep the weights if it is the smallest so far."""
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
    """Create the folder, and truncate an older log to the checkpoint's `step`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in files.read_text(path, files.TENSORS).splitlines() if path.exists() else []:
            try:
                if files.parse_json(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break  # a line truncated by a crash; nothing follows it
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
    """Return the same SAE for vectors not divided by `unit`: ReLU and TopK commute with a positive factor."""
    sae.b_pre.mul_(unit)
    sae.b_enc.mul_(unit)
    sae.shortlist, sae.rough = 0, False
    sae.zero_grad(set_to_none=True)
    return sae.eval()
