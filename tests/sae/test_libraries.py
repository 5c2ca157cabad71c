"""SAEs to and from SAELens and sparsify themselves, each in its own environment: `nox -s saes` makes both.

EXCISE_SAELENS_PYTHON and EXCISE_SPARSIFY_PYTHON name a Python with sae-lens and with eai-sparsify.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from excise import reference
from excise.sae import SAEConfig, TopKSAE, export, read_published
from excise.sites import Site, capture
from tests.sae import published
from tests.sae.test_importers import READ, REFUSED, assert_reads, assert_refuses

pytestmark = pytest.mark.slow
PYTHONS = {"saelens": "EXCISE_SAELENS_PYTHON", "sparsify": "EXCISE_SPARSIFY_PYTHON"}
PROMPTS = ("a gun on grass", "a cat on grass", "two red roses in a glass jar, oil painting", "a man holding a gun", "")


@pytest.fixture(scope="module", params=PYTHONS)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not os.environ.get(PYTHONS[name]):
        pytest.skip(f"{PYTHONS[name]} names no Python with {name}")
    return name


def run(library: str, *args: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [os.environ[PYTHONS[library]], published.__file__, args[0], library, *map(str, args[1:])]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def in_library(library: str, folder: Path, states: Tensor, work: Path) -> dict[str, Tensor]:
    """Return codes `[N, m]` and reconstructions that the library gives."""
    save_file({"states": states}, work / "states.safetensors")
    run(library, "codes", folder, work / "states.safetensors", work / "codes.safetensors")
    return load_file(work / "codes.safetensors")


@torch.no_grad()
def dense(sae: TopKSAE, states: Tensor) -> tuple[Tensor, Tensor]:
    made, codes = sae(states)
    return torch.zeros(len(states), sae.config.m).scatter(1, codes.indices, codes.values), made


def texts() -> Tensor:
    """Return real states `[N, 256]` of the bundled text encoder: of BOS, words, end and padding."""
    batches = capture(reference.load(), [Site("text_encoder", "encoder.layers.5", 256)], PROMPTS)
    return torch.cat([states.flatten(0, 1) for batch in batches for states in batch.states.values()]).float()


@pytest.mark.parametrize("kind", ["bundled", "supervised", "every code"])
def test_an_exported_sae_gives_the_same_codes_there_and_comes_back(kind: str, library: str, tmp_path: Path) -> None:
    sae = TopKSAE.read(reference.sae_folder("saemnesia-text" if kind == "supervised" else "snce"))
    if kind == "every code":
        whole = TopKSAE(SAEConfig(d=sae.config.d, m=sae.config.m, k=sae.config.m))
        whole.load_state_dict(sae.state_dict())
        sae = whole
    states = texts()
    export(sae, tmp_path / "there", library)
    there = in_library(library, tmp_path / "there", states, tmp_path)
    codes, made = dense(sae, states)
    assert torch.equal(codes > 0, there["codes"] > 0), "the same neurons fire"
    assert (codes > 0).sum() > len(states)
    scale = float(codes.max())
    assert float((codes - there["codes"]).abs().max()) < 1e-5 * scale
    assert float((made - there["reconstruction"]).abs().max()) < 1e-5 * float(states.abs().max())
    again = read_published(tmp_path / "there")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in sae.state_dict().items())
    assert again.card == sae.card and torch.equal(dense(again, states)[0], codes)


def test_what_the_library_writes_now_is_read_or_refused_by_name(library: str, tmp_path: Path) -> None:
    run(library, "make", tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    begins = {"saelens": "sae_lens", "sparsify": "sparsify"}[library]
    assert names == sorted(name for name in {*READ, *REFUSED} if name.startswith(begins))
    for name in names:
        if name in READ:
            assert_reads(tmp_path / name)
        else:
            assert_refuses(tmp_path / name, REFUSED[name])
