"""Runs where SAELens, sparsify or dictionary_learning is installed, and without Excise.

    python tests/sae/published.py make LIBRARY FOLDER
    python tests/sae/published.py codes LIBRARY FOLDER STATES OUT

`make` writes tiny SAEs as the library itself does, each with what the library's own forward gives for random vectors.
tests/sae/published/ was made by it, with sae-lens 6.54.12, eai-sparsify 1.3.3 and dictionary-learning 0.1.0. `codes`
loads an SAE with the library, and writes what its forward gives for the file of states.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D, M, K = 6, 20, 3
Coder = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""Two functions of vectors: the codes `[N, m]`, and the reconstructions."""


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights, biases and decoder rows of unequal lengths, so that nothing is read well by chance."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = (drawn.abs() if name == "threshold" else drawn).to(parameter.dtype)


def expected(folder: Path, coder: Coder) -> None:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    save_file({"x": x, **given(coder, x)}, folder / "expected.safetensors")


def given(coder: Coder, x: Tensor) -> dict[str, Tensor]:
    encode, forward = coder
    with torch.no_grad():
        return {"codes": encode(x).contiguous(), "reconstruction": forward(x).contiguous()}


def sae_lens(folder: Path) -> None:
    import sae_lens as library

    shape: dict[str, Any] = {"d_in": D, "d_sae": M}
    for name, architecture, settings in (
        ("sae_lens", "topk", {"k": K}),
        ("sae_lens-scaled", "topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("sae_lens-uncentred", "topk", {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
        ("sae_lens-bfloat16", "topk", {"k": K, "dtype": "bfloat16"}),
        ("sae_lens-standard", "standard", {}),
        ("sae_lens-jumprelu", "jumprelu", {}),
        ("sae_lens-gated", "gated", {}),
        ("sae_lens-abstopk", "abstopk", {"k": K}),
        ("sae_lens-transcoder", "transcoder", {"d_out": D, "apply_b_dec_to_input": False}),
        ("sae_lens-layer_norm", "topk", {"k": K, "normalize_activations": "layer_norm"}),
    ):
        kind, config = library.registry.get_sae_class(architecture)
        sae = kind(config(**shape, **settings))
        fill(sae, 2)
        sae.save_model(folder / name)
        expected(folder / name, sae_lens_coder(folder / name))
    for name, architecture, settings in (
        ("topk", "topk", {"k": K}),
        ("standard", "standard", {}),
        ("batchtopk", "batchtopk", {"k": K}),
        ("matryoshka", "matryoshka_batchtopk", {"k": K, "matryoshka_widths": [5, M]}),
    ):
        kind, config = library.registry.get_sae_training_class(architecture)
        training = kind(config(**shape, **settings))
        fill(training, 2)
        if hasattr(training, "topk_threshold"):
            training.topk_threshold.fill_(1.5)
        training.save_model(folder / f"sae_lens-{name}-checkpoint")
        training.save_inference_model(folder / f"sae_lens-{name}-trained")
        for way in ("checkpoint", "trained"):
            expected(folder / f"sae_lens-{name}-{way}", sae_lens_coder(folder / f"sae_lens-{name}-trained"))


def sae_lens_coder(folder: Path) -> Coder:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, dtype="float32")
    return sae.encode, sae.forward


def sparsify(folder: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    for name, dtype, settings in (
        ("sparsify", None, {}),
        ("sparsify-bfloat16", torch.bfloat16, {}),
        ("sparsify-groupmax", None, {"activation": "groupmax", "k": 4}),
        ("sparsify-skip", None, {"skip_connection": True}),
    ):
        sae = SparseCoder(D, SparseCoderConfig(**{"num_latents": M, "k": K, **settings}), dtype=dtype)
        fill(sae, 4)
        sae.save_to_disk(folder / name)
        expected(folder / name, sparsify_coder(folder / name))


def sparsify_coder(folder: Path) -> Coder:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder).float()

    def encode(x: Tensor) -> Tensor:
        made = sae.encode(x)
        return torch.zeros(len(x), sae.num_latents).scatter(1, made.top_indices, made.top_acts)

    return encode, lambda x: sae(x).sae_out


def dictionary_learning(folder: Path) -> None:
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

    for name, kind, trainer in (
        ("dictionary_learning", AutoEncoderTopK, TopKTrainer),
        ("dictionary_learning-batch", BatchTopKSAE, BatchTopKTrainer),
    ):
        made = trainer(steps=2000, activation_dim=D, dict_size=M, k=K, layer=1, lm_name="tiny", device="cpu", seed=0)
        fill(made.ae, 3)
        made.ae.threshold.fill_(1.5)
        (folder / name).mkdir(parents=True, exist_ok=True)
        buffer = {"d_submodule": D, "io": "out", "ctx_len": 8, "device": "cpu"}
        (folder / name / "config.json").write_text(json.dumps({"trainer": made.config, "buffer": buffer}, indent=1))
        torch.save({key: value.cpu() for key, value in made.ae.state_dict().items()}, folder / name / "ae.pt")
        again = kind.from_pretrained(folder / name / "ae.pt", k=K)
        expected(folder / name, (again.encode, again.forward))


MAKE = {"saelens": sae_lens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}
LOAD = {"saelens": sae_lens_coder, "sparsify": sparsify_coder}


def main(command: str, library: str, folder: str, *files: str) -> None:
    if command == "make":
        MAKE[library](Path(folder))
    else:
        states, out = files
        save_file(given(LOAD[library](Path(folder)), load_file(states)["states"]), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
