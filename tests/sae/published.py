"""Makes tests/sae/published/: tiny SAEs that the libraries themselves write, and what their own forward gives.

Run it by hand where these are installed: `python tests/sae/published.py`, with sae-lens 6.54.12,
dictionary-learning 0.1.0 and eai-sparsify 1.3.3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).parent / "published"
D, M, K = 6, 20, 3


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights, biases and decoder rows of unequal lengths, so that nothing is read well by chance."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)


def expected(folder: Path, encode: Callable[[Tensor], Tensor], forward: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = {"x": x, "codes": encode(x).contiguous(), "reconstruction": forward(x).contiguous()}
    save_file(expected, folder / "expected.safetensors")


def sae_lens(name: str, **settings: Any) -> None:
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=M, k=K, **settings))
    fill(sae, 2)
    sae.save_model(OUT / name)
    again = TopKSAE.load_from_disk(OUT / name)
    expected(OUT / name, again.encode, again.forward)


def dictionary_learning(name: str) -> None:
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

    kind, trainer = (BatchTopKSAE, BatchTopKTrainer) if "batch" in name else (AutoEncoderTopK, TopKTrainer)
    made = trainer(steps=2000, activation_dim=D, dict_size=M, k=K, layer=1, lm_name="tiny", device="cpu", seed=0)
    fill(made.ae, 3)
    made.ae.threshold.fill_(1.5)
    (OUT / name).mkdir(parents=True, exist_ok=True)
    buffer = {"d_submodule": D, "io": "out", "ctx_len": 8, "device": "cpu"}
    (OUT / name / "config.json").write_text(json.dumps({"trainer": made.config, "buffer": buffer}, indent=1))
    torch.save({key: value.cpu() for key, value in made.ae.state_dict().items()}, OUT / name / "ae.pt")
    again = kind.from_pretrained(OUT / name / "ae.pt", k=K)
    expected(OUT / name, again.encode, again.forward)


def sparsify(name: str) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K))
    fill(sae, 4)
    sae.save_to_disk(OUT / name)
    again = SparseCoder.load_from_disk(OUT / name)

    def encode(x: Tensor) -> Tensor:
        expected = again.encode(x)
        return torch.zeros(len(x), M).scatter(1, expected.top_indices, expected.top_acts)

    expected(OUT / name, encode, lambda x: again.decode(*again.encode(x)[:2]))


if __name__ == "__main__":
    sae_lens("sae_lens")
    sae_lens("sae_lens-scaled", rescale_acts_by_decoder_norm=True)
    sae_lens("sae_lens-uncentred", rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    dictionary_learning("dictionary_learning")
    dictionary_learning("dictionary_learning-batch")
    sparsify("sparsify")
