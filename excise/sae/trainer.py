"""Training of a TopK SAE: minutes on a CPU, interruptible at any step and resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
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
from excise.sae.data import Features, Samples, Shard, Source, Statistics, as_bytes, geometric_median
from excise.sae.losses import idle_tokens, loss, step
from excise.sae.metrics import evaluate
from excise.sae.model import DIVIDED, Codes, TopKSAE
from excise.sae.parallel import ALONE, Mesh
from excise.sae.stream import Stream
from excise.sae.supervised import Supervision, Terms, terms

LOG = "log.jsonl"
_LOOK = 64
"""Validation samples per batch."""
_LENGTH_OF = 1024
"""Vectors of the sample from which the encoder's length is computed."""
_MEASURED = 4096
"""Vectors measured at a time."""
_PREACTIVATIONS = 1 << 26
"""Pre-activations computed at a time (256 MiB) outside of training, where fewer vectors have so many."""
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


def check_ranks(
    config: TrainConfig, mesh: Mesh, *, width: int | None = None, labels: bool = False, rows: int | None = None
) -> None:
    """Raise ExciseError unless ranks can train with these settings: to call before features are captured.

    `width` is that of the vectors, if it is known. `labels` says whether the training is supervised. `rows` is the
    number of vectors or samples in a batch; by default the most that `config` allows.
    """
    if width is not None:
        mesh.rows(config.sae(width).m)
    if labels and mesh.size > 1 and config.activation == "batchtopk":
        raise ExciseError("ranks train an SAE with labels by activation 'topk' alone; choose it, or leave out the mesh")
    if (most := config.batch if rows is None else rows) < mesh.data:
        raise ExciseError(f"a batch of {most} cannot be divided among {mesh.data} ranks; give fewer ranks")


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
    mesh: Mesh = ALONE,
) -> TopKSAE:
    """Train an SAE and save it into the folder `out`.

    Until it is done, `out`.training holds a checkpoint and the log. The same call resumes from there: on a CPU with as
    many threads, to the same bits as an uninterrupted run. Ctrl-C finishes the step, writes a checkpoint and raises
    KeyboardInterrupt; a second Ctrl-C raises at once.

    Args:
        features: Vectors [N, d], Samples, or Shards of them.
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
        mesh: Ranks that train the SAE together: each one calls this with the same arguments. They need a disk that
            all of them see. Rank 0 measures, calls `progress` and `measure`, and saves. With `supervision` the
            activation must be "topk".

    Returns:
        The trained SAE; on a rank other than 0 as it was saved.

    Raises:
        ExciseError: if `out` is not empty, the features are unusable, a checkpoint there belongs to other settings,
            labels are missing, training diverges, the disk refuses, or another rank failed.
    """
    out = Path(out)
    check_ranks(config, mesh, labels=supervision is not None)
    mesh.together(lambda: check_untrained(out))
    work = out.with_name(out.name + ".training")
    source = Source(features, seed=config.seed)
    statistics = _statistics(source, mesh)
    shape = config.sae(len(statistics.mean))
    rows = max(1, min(config.batch, source.vectors) // source.each)
    batch = rows * source.each
    check_ranks(config, mesh, labels=supervision is not None, rows=rows)
    steps = math.ceil(config.tokens / batch)
    unit = math.sqrt(statistics.variance) if config.units == "variance" else 1.0
    window = min(config.dead_after, source.vectors)

    asked = b"" if supervision is None else _labels_digest(source, supervision, shape.m, validation)
    digest = _digest(source.digest(statistics), supervision, init, asked)
    state = _start(shape, config, statistics, unit, torch.device(device), init, mesh)
    resumed = mesh.together(lambda: state.restore(work / "checkpoint", config, digest))
    if len(set(mesh.texts(str(state.step)))) > 1:
        raise ExciseError(f"not all ranks see {work}; train into a folder on a disk that all of them share")
    mesh.together(lambda: None if mesh.rank else _open_log(work / LOG, state.step if resumed else 0))
    variance = statistics.variance / unit**2
    stopped = False

    def checkpoint() -> None:
        state.save(work / "checkpoint", config, digest)

    def report(line: Progress) -> None:
        nonlocal stopped
        if mesh.rank:
            return
        _log(work / LOG, line)
        try:
            if progress is not None:
                progress(line)
        except KeyboardInterrupt:  # for all ranks, after this step
            stopped = True

    with interruptible() as interrupted:
        began = time.monotonic() - state.seconds
        stream = Stream(source, rows, device=device, mesh=mesh)
        while state.step < steps and not (supervision and state.stale >= supervision.patience):
            if mesh.any(stopped or interrupted()):
                checkpoint()
                raise KeyboardInterrupt
            lr = learning_rate(config, state.step, steps)
            own = _scaled(stream.batch(state.step, mesh.dealt), unit, device)
            _advance(state, own, batch, config, variance, window, lr, supervision)
            if supervision and validation and state.step % supervision.check_every == 0:
                _look(state, _scaled(validation, unit, device), variance, supervision)
            state.seconds = time.monotonic() - began
            if state.step % config.log_every == 0 or state.step == steps:
                mesh.together(partial(report, _line(state, config, steps, batch, window, lr)))
            if state.step % config.checkpoint_every == 0 and state.step < steps:
                checkpoint()
        # Measuring and saving may be interrupted or find the disk full: keep the finished training.
        checkpoint()
        if mesh.any(stopped or interrupted()):
            raise KeyboardInterrupt

    if state.best:
        state.sae.load_state_dict(state.best)
    whole = _whole(state)

    def finish() -> TopKSAE | None:
        if whole is None:
            return None
        sae, idle = _in_data_units(whole[0], unit), whole[1]
        threshold = config.dead_threshold * unit
        described = dict(card or {})
        described["tokens"] = state.step * batch
        described["recipe"] = {**config.to_json(), "vectors": source.vectors}
        if supervision is not None:
            described["supervision"] = supervision.to_json()
        parts = torch.split(statistics.sample, _fitting(_MEASURED, shape.m))
        described["metrics"] = {
            "train": evaluate(sae, parts, threshold=threshold)._asdict(),
            "dead_share": float((idle >= window).cpu().double().mean()),
            "dead_window": window,
            "dead_threshold": threshold,
        }
        if held_out is not None:
            parts = torch.split(held_out, _fitting(_MEASURED, shape.m))
            described["metrics"]["held_out"] = evaluate(sae, parts, threshold=threshold)._asdict()
        if measure is not None:
            described["metrics"].update(measure(sae))
        formats.save(sae, out, described, extra={LOG: files.read_file(work / LOG, files.TENSORS)})
        shutil.rmtree(work, ignore_errors=True)
        return sae

    saved = mesh.together(finish)
    return formats.load(out, device=device) if saved is None else saved


def learning_rate(config: TrainConfig, done: int, steps: int) -> float:
    """Return the learning rate after `done` of `steps`: constant, then linearly falling in the last `decay` of them."""
    falling = config.decay * steps
    return config.lr * min(1.0, (steps - done) / falling) if falling else config.lr


def _fitting(vectors: int, m: int) -> int:
    """Return how many of these vectors to encode at a time."""
    return max(1, min(vectors, _PREACTIVATIONS // m))


def _statistics(source: Source, mesh: Mesh) -> Statistics:
    """Return the vectors' statistics, read by rank 0 alone, so that they are the same bits on every rank."""
    found = mesh.together(lambda: source.statistics() if mesh.rank == 0 else None)
    variance = None if found is None else torch.tensor(found.variance, dtype=torch.float64)
    parts = (None, variance, None) if found is None else (found.mean, variance, found.sample)
    mean, variance, sample = map(mesh.sent, parts)
    return Statistics(mean, float(variance), sample)


def _labels_digest(source: Source, supervision: Supervision, m: int, validation: Samples | None) -> bytes:
    """Return a digest of labels and validation samples. Raises ExciseError if a concept is in no sample."""
    own, shown = hashlib.sha256(), None
    for labels in source.labels():
        own.update(as_bytes(labels))
        shown = labels.any(0) if shown is None else shown | labels.any(0)
    if shown is None:
        raise ExciseError("supervision needs Samples with labels, not bare vectors")
    supervision.check_labels(shown[None], m)
    for part in (validation.states, validation.labels) if validation is not None else ():
        own.update(as_bytes(part))
    return own.digest()


def _digest(features: str, supervision: Supervision | None, init: TopKSAE | None, asked: bytes) -> str:
    """Return a digest that, with the config, identifies a training on features with their own digest."""
    own = hashlib.sha256(features.encode() + asked)
    if supervision is not None:
        own.update(json.dumps(supervision.to_json()).encode())
    for tensor in init.state_dict().values() if init is not None else ():
        own.update(as_bytes(tensor))
    return own.hexdigest()


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
    mesh: Mesh,
) -> State:
    sae = TopKSAE(shape, seed=config.seed, mesh=mesh)
    sae.shortlist, sae.rough = config.shortlist, config.precision == "bfloat16"
    with torch.no_grad():
        if init is None:
            sae.b_pre.copy_(geometric_median(statistics.sample) / unit)
            sae.W_enc.mul_(encoder_length(sae, statistics.sample[:_LENGTH_OF] / unit))
        else:
            if init.config != shape:
                raise ExciseError(f"the SAE to continue from is {init.config}, the settings give {shape}")
            rows = mesh.rows(shape.m)
            sae.load_state_dict({n: t[rows] if n in DIVIDED else t for n, t in init.state_dict().items()})
            sae.b_pre.div_(unit)
            sae.b_enc.div_(unit)
    sae.to(device)
    # Hosts may round differently, by their number of threads.
    mesh.equalise(sae, DIVIDED)
    # Fused: on a CPU the per-tensor and foreach implementations take up to 25 times as long.
    optimiser = torch.optim.Adam(
        sae.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )
    return State(sae, optimiser, torch.zeros(len(sae.W_enc), dtype=torch.int64, device=device))


@torch.no_grad()
def encoder_length(sae: TopKSAE, vectors: Tensor) -> float:
    """Return the factor of a fresh SAE's encoder that best reconstructs the vectors [N, d]; 1 if nothing fires.

    ReLU and TopK commute with a positive factor, so this is least squares in one number: <x, y> / <y, y>, where x and
    its reconstruction y are taken relative to `b_pre`. Encoder rows of length 1 overshoot, since the k latents' shares
    of x overlap. Gao et al. 2024 (appendix A.1) make y as long as x instead, which starts further off.
    """
    explained = squares = 0.0
    for part in torch.split(vectors, _fitting(len(vectors), sae.config.m)):
        x, y = part - sae.b_pre, sae(part).reconstruction - sae.b_pre
        explained += float((x * y).sum())
        squares += float(y.square().sum())
    return explained / squares if explained > 0 else 1.0


def _advance(
    state: State,
    batch: Shard,
    vectors: int,
    config: TrainConfig,
    variance: float,
    window: int,
    lr: float,
    supervision: Supervision | None,
) -> None:
    """Take one step on this rank's part of a batch of so many vectors, in training units."""
    sae, mesh = state.sae, state.sae.mesh
    x = batch if isinstance(batch, Tensor) else batch.vectors
    share = len(x) / vectors
    codes = sae.encode_batch(x, vectors) if config.activation == "batchtopk" else sae.encode(x)
    reconstruction = sae.decode(codes)
    # Before the loss, as in OpenAI's code: a latent that fired in this batch is no longer dead.
    state.idle = idle_tokens(state.idle, codes, config.dead_threshold, vectors, mesh)
    parts = loss(sae, x, reconstruction, variance, state.idle >= window, config.alpha, share)
    total, association = parts.total, torch.zeros((), device=x.device)
    if supervision is not None and isinstance(batch, Samples):
        supervised = _terms(sae, batch, codes, supervision, vectors)
        total, association = total + supervised.total, supervised.association.detach() * share
    total.backward()  # type: ignore[no-untyped-call]
    mesh.add_gradients(sae)
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    step(sae, state.optimiser)
    l0 = (codes.values > 0).sum() / vectors
    figures = torch.stack([parts.mse.detach(), parts.aux.detach(), l0, association]).cpu().double()
    # Ranks with the same vectors have the same losses, but each one its own latents.
    state.window += mesh.total(figures if mesh.column == 0 else figures * torch.tensor([0, 0, 1, 0]))
    state.step += 1


def _terms(sae: TopKSAE, batch: Samples, codes: Codes, supervision: Supervision, vectors: int | None = None) -> Terms:
    """Return the supervised terms; of `vectors` in all, this rank has some. Without their number it has all."""
    own = _assigned(sae, batch.states, supervision)
    if sae.mesh.size == 1:
        return terms(own, codes.values, batch.labels, supervision)
    count = codes.values[..., 0].numel() if vectors is None else vectors
    mean = sae.mesh.summed(codes.values.sum()) / (count * sae.config.k)
    return terms(own, mean, batch.labels, supervision, ALONE if vectors is None else sae.mesh)


def _assigned(sae: TopKSAE, states: Tensor, supervision: Supervision) -> Tensor:
    """Return the assigned latents' pre-activations, [B, N, C], where each rank computes those of its own latents."""
    own, latents = sae.mesh.rows(sae.config.m), supervision.assigned
    columns = [c for c, latent in enumerate(latents) if own.start <= latent < own.stop]
    rows = torch.tensor([latents[c] - own.start for c in columns], dtype=torch.int64, device=states.device)
    found = F.linear(states - sae.mesh.spread(sae.b_pre), sae.W_enc[rows], sae.b_enc[rows])
    if sae.mesh.latents == 1:
        return found
    # A rank without any of them takes part too: its b_pre receives the others' gradients.
    at = torch.tensor(columns, dtype=torch.int64, device=states.device)
    return sae.mesh.summed(found.new_zeros(*states.shape[:-1], len(latents)).index_copy(-1, at, found))


@torch.no_grad()
def _look(state: State, validation: Samples, variance: float, supervision: Supervision) -> None:
    """Compute the loss on the validation samples, and keep the weights if it is the smallest so far."""
    losses = []
    for start in range(0, len(validation), _LOOK):
        part = validation[start : start + _LOOK]
        codes = state.sae.encode(part.vectors)
        mse = F.mse_loss(state.sae.decode(codes), part.vectors) / variance
        losses.append(float(mse + _terms(state.sae, part, codes, supervision).total))
    # Hosts may round differently, but ranks stop together.
    found = float(state.sae.mesh.sent(torch.tensor(sum(losses) / len(losses), dtype=torch.float64)))
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
    dead = state.sae.mesh.count((state.idle >= window).sum()) / state.sae.config.m
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


def _whole(state: State) -> tuple[TopKSAE, Tensor] | None:
    """Return the SAE and each latent's idle vectors on rank 0, None on the others."""
    sae, mesh = state.sae, state.sae.mesh
    if mesh.latents == 1:
        return (sae, state.idle) if mesh.rank == 0 else None
    # What it was trained with would double the memory.
    state.optimiser.state.clear()
    sae.zero_grad(set_to_none=True)
    if not mesh.writes:
        return None
    found = {n: mesh.gathered(t, sae.config.m) if n in DIVIDED else t for n, t in sae.state_dict().items()}
    idle = mesh.gathered(state.idle, sae.config.m)
    if mesh.rank or idle is None:
        return None
    whole = TopKSAE(sae.config)
    whole.load_state_dict(found)
    return whole.to(sae.b_pre.device), idle


@torch.no_grad()
def _in_data_units(sae: TopKSAE, unit: float) -> TopKSAE:
    """Return the same SAE for vectors not divided by `unit`: ReLU and TopK commute with a positive factor."""
    sae.b_pre.mul_(unit)
    sae.b_enc.mul_(unit)
    sae.shortlist, sae.rough, sae.mesh = 0, False, ALONE
    sae.zero_grad(set_to_none=True)
    return sae.eval()
