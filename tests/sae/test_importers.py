"""SAEs in the formats that SAEuron, SAEmnesia and the k-sparse autoencoders are published in."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.importers import FOREIGN, read_published

D, M, K = 6, 20, 3


@pytest.fixture
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def sparsify(folder: Path, parts: dict[str, Tensor], **said: Any) -> Path:
    folder.mkdir()
    settings = {"d_in": D, "expansion_factor": 16, "num_latents": M, "k": K, "batch_topk": True, **said}
    (folder / "cfg.json").write_text(json.dumps(settings))
    save_file(parts, folder / "sae.safetensors")
    return folder


def k_sparse(folder: Path, parts: dict[str, Tensor], *, nested: bool) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"n_dirs_local": M, "d_model": D, "k": K, "auxk": 4}))
    names = {"encoder.weight": "encoder.weight", "encoder.bias": "latent_bias", "b_dec": "pre_bias"}
    saved = {names[name]: part for name, part in parts.items() if name in names}
    saved |= {"decoder.weight": parts["W_dec"].T.contiguous(), "stats_last_nonzero": torch.zeros(M)}
    torch.save({"state_dict": saved} if nested else saved, folder / "state_dict.pth")
    return folder


def by_hand(parts: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published forward pass, patch by patch."""
    rows = []
    for row in x:
        pre = (parts["encoder.weight"] @ (row - parts["b_dec"]) + parts["encoder.bias"]).relu()
        kept = pre.topk(K)
        made = sum(v * parts["W_dec"][i] for v, i in zip(kept.values, kept.indices, strict=True))
        rows.append(made + parts["b_dec"])
    return torch.stack(rows)


def test_all_three_formats_compute_what_they_were_published_for(parts: dict[str, Tensor], tmp_path: Path) -> None:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    folders = [
        sparsify(tmp_path / "a", parts),
        k_sparse(tmp_path / "b", parts, nested=False),
        k_sparse(tmp_path / "c", parts, nested=True),
    ]
    for folder in folders:
        sae = read_published(folder)
        assert (sae.config.d, sae.config.m, sae.config.k) == (D, M, K)
        torch.testing.assert_close(sae(x)[0].detach(), by_hand(parts, x))


class Evil:
    def __reduce__(self) -> Any:
        return print, ("a pickle ran",)


def test_a_pickle_that_would_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"k": K}))
    (tmp_path / "state_dict.pth").write_bytes(pickle.dumps({"encoder.weight": Evil()}))
    with pytest.raises(ExciseError, match="as tensors alone"):
        read_published(tmp_path)
    torch.save({"encoder.weight": Evil()}, tmp_path / "state_dict.pth")
    with pytest.raises(ExciseError, match="as tensors alone"):
        read_published(tmp_path)
    assert "a pickle ran" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_broken_bytes_are_one_line(parts: dict[str, Tensor], tmp_path: Path) -> None:
    folder = k_sparse(tmp_path / "a", parts, nested=False)
    whole, rng = (folder / "state_dict.pth").read_bytes(), random.Random(0)
    pickled = pickle.dumps({"encoder.weight": [1.0, 2.0], "k": "three"})
    said: list[str] = []
    for n in range(200):
        data = bytearray(whole if n % 2 else pickled)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (folder / "state_dict.pth").write_bytes(bytes(data[: rng.randint(1, len(data))] if n % 3 == 0 else data))
        try:
            read_published(folder)
        except ExciseError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in line for line in said)


def test_what_is_missing_or_odd_is_named(parts: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"has no cfg\.json or config\.json"):
        read_published(tmp_path)
    for n, (key, does) in enumerate(FOREIGN.items()):
        with pytest.raises(ExciseError, match=does):
            read_published(sparsify(tmp_path / f"foreign-{n}", parts, **{key: True}))
    with pytest.raises(ExciseError, match="activation 'groupmax'"):
        read_published(sparsify(tmp_path / "groups", parts, activation="groupmax"))
    with pytest.raises(ExciseError, match="further weights, W_skip"):
        read_published(sparsify(tmp_path / "skip", {**parts, "W_skip": torch.zeros(D, D)}))
    with pytest.raises(ExciseError, match=r"has no encoder\.bias or latent_bias"):
        read_published(sparsify(tmp_path / "short", {n: p for n, p in parts.items() if n != "encoder.bias"}))
    with pytest.raises(ExciseError, match=r"W_dec in .* is \(20, 5\), not \(20, 6\)"):
        read_published(sparsify(tmp_path / "odd", {**parts, "W_dec": parts["W_dec"][:, :5].contiguous()}))
    with pytest.raises(ExciseError, match="holds NaN"):
        read_published(sparsify(tmp_path / "nan", {**parts, "b_dec": torch.full((D,), float("nan"))}))
    folder = sparsify(tmp_path / "cut", parts)
    (folder / "sae.safetensors").write_bytes((folder / "sae.safetensors").read_bytes()[:50])
    with pytest.raises(ExciseError, match="as tensors alone"):
        read_published(folder)
    (folder / "cfg.json").write_text("{}")
    save_file(parts, folder / "sae.safetensors")
    with pytest.raises(ExciseError, match="do not say its k"):
        read_published(folder)
