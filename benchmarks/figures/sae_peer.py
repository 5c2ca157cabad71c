"""Train one TopK SAE with one library, a round of steps for every line on standard input; for `sae_training.py`.

    python sae_peer.py '{"library": "sparsify", "data": "features.pt", "m": 3072, "k": 32, "batch": 4096, "lr": 4e-4,
                         "steps": 10, "rounds": 6, "seed": 0, "device": "cpu", "threads": 2}'

The script prints the seconds of every round (the first is warm-up), then, as JSON, how well the SAE does on held-out
vectors. It runs in an environment that has only torch and the library. Every library trains with the loop that its
users run, with that loop's defaults and the library's initial weights, and with plain Adam at one learning rate.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Trained = Callable[[Tensor], tuple[Tensor, Tensor]]
HELD_OUT = 8192


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    features = torch.load(job["data"], mmap=True, weights_only=True)
    held_out, features = features[:HELD_OUT].clone(), features[HELD_OUT:]
    trained = LIBRARIES[job["library"]](features, job)
    total, off, fired = 0.0, 0.0, torch.zeros(job["m"], dtype=torch.bool)
    mean = held_out.mean(0)
    with torch.no_grad():
        for x in held_out.split(1024):
            made, lit = trained(x.to(job["device"]))
            off += float((x - made.cpu()).square().sum())
            total += float((x - mean).square().sum())
            fired |= lit.cpu()
    print(json.dumps({"fvu": off / total, "silent": 1 - float(fired.float().mean())}), flush=True)


class Gate:
    """Timer that prints the seconds of each round and waits for a line before the next round."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.began = steps, 0, time.perf_counter()

    def __call__(self) -> None:
        """Count a step; call it at the end of every step."""
        self.done += 1
        if self.done % self.steps == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            print(time.perf_counter() - self.began, flush=True)
            sys.stdin.readline()
            self.began = time.perf_counter()


def batches(features: Tensor, job: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the shuffled batches of the steps, and one more that is never timed: asking for it ends the last step."""
    gate = Gate(job["steps"])
    orders = torch.Generator().manual_seed(job["seed"])
    size, left = job["batch"], torch.empty(0, dtype=torch.int64)
    for step in range(job["steps"] * job["rounds"] + 1):
        if step:
            gate()
        if len(left) < size:
            left = torch.randperm(len(features), generator=orders)
        rows, left = left[:size], left[size:]
        yield features[rows].to(job["device"])


def excise(features: Tensor, job: dict[str, Any]) -> Trained:
    from excise.sae import TrainConfig, train

    gate = Gate(1)
    config = TrainConfig(
        expansion=job["m"] // features.shape[1],
        k=job["k"],
        lr=job["lr"],
        batch=job["batch"],
        tokens=job["batch"] * job["steps"] * job["rounds"],
        log_every=job["steps"],
        seed=job["seed"],
        **job["settings"],
    )
    with tempfile.TemporaryDirectory() as folder:
        sae = train(features, config, Path(folder) / "sae", progress=lambda line: gate(), device=job["device"])

    def trained(x: Tensor) -> tuple[Tensor, Tensor]:
        made, codes = sae(x)
        return made, _counted(codes.indices[codes.values > 0], job["m"])

    return trained


def dense(features: Tensor, job: dict[str, Any]) -> Trained:
    """Train with plain PyTorch: every product over all latents, gradients by autograd."""
    d, m = features.shape[1], job["m"]
    directions = F.normalize(torch.randn(m, d), dim=1).to(job["device"])
    W_enc, W_dec = (torch.nn.Parameter(directions.clone()) for _ in range(2))
    b_enc = torch.nn.Parameter(torch.zeros(m, device=job["device"]))
    b_pre = torch.nn.Parameter(features.mean(0).to(job["device"]))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_pre], lr=job["lr"], fused=True)
    variance = features.var(0).mean().to(job["device"])

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = F.linear(x - b_pre, W_enc, b_enc).topk(job["k"], dim=-1)
        codes = x.new_zeros(len(x), m).scatter(-1, indices, values.relu())
        return codes @ W_dec + b_pre, codes

    for x in batches(features, job):
        loss = F.mse_loss(run(x)[0], x) / variance
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
    return lambda x: (run(x)[0], (run(x)[1] > 0).any(0))


def saelens(features: Tensor, job: dict[str, Any]) -> Trained:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d = features.shape[1]
    shape = TopKTrainingSAEConfig(d_in=d, d_sae=job["m"], k=job["k"], device=job["device"], **job["settings"])
    sae = TopKTrainingSAE(shape)
    with torch.no_grad():
        sae.b_dec.copy_(features.mean(0))
    config = SAETrainerConfig(
        total_training_samples=job["batch"] * (job["steps"] * job["rounds"] + 1),
        train_batch_size_samples=job["batch"],
        lr=job["lr"],
        lr_end=job["lr"],
        device=job["device"],
    )
    SAETrainer(config, sae, batches(features, job)).fit()

    def trained(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = sae.encode(x)
        codes = codes.to_dense() if codes.is_sparse else codes
        return sae.decode(codes), (codes > 0).any(0)

    return trained


def sparsify(features: Tensor, job: dict[str, Any]) -> Trained:
    """Train as sparsify's trainer does on a layer's vectors; that trainer itself needs a language model."""
    import contextlib

    with contextlib.redirect_stdout(sys.stderr):
        from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(features.shape[1], SparseCoderConfig(num_latents=job["m"], k=job["k"]), job["device"])
    sae.b_dec.data = features.mean(0).to(job["device"])
    adam = torch.optim.Adam(sae.parameters(), lr=job["lr"])
    fired = torch.zeros(job["m"], dtype=torch.int64, device=job["device"])
    for x in batches(features, job):
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=None)
        fired[out.latent_indices.flatten()] = len(x)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    def trained(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae(x)
        return out.sae_out, _counted(out.latent_indices[out.latent_acts > 0], job["m"])

    return trained


def overcomplete(features: Tensor, job: dict[str, Any]) -> Trained:
    # It imports torchvision to show pictures, and a CPU build of torch lacks torchvision's operators; none is used
    # here.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from overcomplete.sae import TopKSAE, train_sae

    sae = TopKSAE(features.shape[1], nb_concepts=job["m"], top_k=job["k"], device=job["device"])
    adam = torch.optim.Adam(sae.parameters(), lr=job["lr"])

    def loss(x: Tensor, made: Tensor, *others: Tensor) -> Tensor:
        return F.mse_loss(made, x)

    # It has no bias; centring gives it the vectors that the others have after theirs.
    mean = features.mean(0).to(job["device"])
    centred = (x - mean for x in batches(features, job))
    train_sae(sae, centred, loss, adam, nb_epochs=1, monitoring=0, device=job["device"])
    sae.eval()

    def trained(x: Tensor) -> tuple[Tensor, Tensor]:
        _, codes, made = sae(x - mean)
        return made + mean, (codes > 0).any(0)

    return trained


def _counted(indices: Tensor, m: int) -> Tensor:
    return torch.bincount(indices.flatten(), minlength=m) > 0


LIBRARIES: dict[str, Callable[[Tensor, dict[str, Any]], Trained]] = {
    "excise": excise,
    "dense": dense,
    "saelens": saelens,
    "sparsify": sparsify,
    "overcomplete": overcomplete,
}


if __name__ == "__main__":
    main()
