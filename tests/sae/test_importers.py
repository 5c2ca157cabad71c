"""SAEs in the formats that SAEuron, SAEmnesia and the k-sparse autoencoders are published in."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, save
from excise.sae.exchange.importers import FOREIGN, read_published

D, M, K = 6, 20, 3


@pytest.fixture
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def sparsify(folder: Path, parts: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir()
    settings = {"d_in": D, "expansion_factor": 16, "num_latents": M, "k": K, "batch_topk": True, **settings}
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


PUBLISHED = Path(__file__).parent / "published"
"""Made by the libraries themselves: tests/sae/published.py."""


READ = (
    "sae_lens",
    "sae_lens-scaled",
    "sae_lens-uncentred",
    "sae_lens-bfloat16",
    "sae_lens-standard",
    "sae_lens-standard-checkpoint",
    "sae_lens-standard-trained",
    "sae_lens-topk-checkpoint",
    "sae_lens-topk-trained",
    "dictionary_learning",
    "sparsify",
    "sparsify-bfloat16",
)
REFUSED = {
    "sae_lens-jumprelu": "architecture jumprelu, which keeps every code above a threshold",
    "sae_lens-gated": "architecture gated, which lets one bias decide",
    "sae_lens-abstopk": "architecture abstopk, which keeps negative codes",
    "sae_lens-transcoder": "architecture transcoder, which predicts another layer",
    "sae_lens-layer_norm": "normalises every vector .normalize_activations='layer_norm'",
    "sae_lens-batchtopk-checkpoint": "architecture batchtopk, which is a checkpoint",
    "sae_lens-batchtopk-trained": "architecture jumprelu .trained as 'batchtopk'., which keeps every code above",
    "sae_lens-matryoshka-checkpoint": "architecture matryoshka_batchtopk, which is a checkpoint",
    "sae_lens-matryoshka-trained": "architecture jumprelu .trained as 'matryoshka_batchtopk'., which keeps",
    "dictionary_learning-batch": "BatchTopKSAE: it keeps every code above one threshold",
    "sparsify-groupmax": "the largest code of each of k groups .activation groupmax",
    "sparsify-skip": "adds a linear map of what it reads .skip_connection",
}
"""SAEs that the libraries wrote, and why they are refused."""


def assert_reads(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    sae = read_published(folder)
    with torch.no_grad():
        made, codes = sae(expected["x"])
        dense = torch.zeros_like(expected["codes"]).scatter(1, codes.indices, codes.values)
    torch.testing.assert_close(dense, expected["codes"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    assert sae.card == {}


def assert_refuses(folder: Path, why: str) -> None:
    with pytest.raises(ExciseError, match=why):
        read_published(folder)


@pytest.mark.parametrize("name", READ)
def test_what_is_read_gives_the_librarys_own_codes(name: str) -> None:
    assert_reads(PUBLISHED / name)


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(name: str) -> None:
    assert_refuses(PUBLISHED / name, REFUSED[name])


def test_what_is_refused_is_truly_another_kind() -> None:
    """Their thresholds keep a different number of codes for each vector."""
    for name in ("dictionary_learning-batch", "sae_lens-jumprelu", "sae_lens-batchtopk-trained"):
        kept = (load_file(PUBLISHED / name / "expected.safetensors")["codes"] > 0).sum(1)
        assert kept.min() < kept.max()


def test_a_standard_sae_of_saelens_keeps_every_positive_code(tmp_path: Path) -> None:
    sae = read_published(PUBLISHED / "sae_lens-standard")
    assert sae.config.k == sae.config.m == M
    other = read_published(copied("sae_lens-standard", tmp_path / "other", rescale_acts_by_decoder_norm=True, k=3))
    assert other.config == sae.config and torch.equal(other.W_enc, sae.W_enc), "SAELens ignores what topk alone has"


def copied(name: str, folder: Path, **settings: Any) -> Path:
    shutil.copytree(PUBLISHED / name, folder)
    (config,) = folder.glob("*.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return folder


def test_every_setting_that_is_not_understood_is_refused_by_name(tmp_path: Path) -> None:
    for n, (settings, match) in enumerate(
        [
            ({"architecture": "crosscoder"}, "SAELens's architecture crosscoder; only topk and standard"),
            ({"architecture": ["topk"]}, "only topk and standard"),
            ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "standard with tanh-relu"),
            ({"normalize_activations": "layer_norm"}, "normalises every vector .normalize_activations='layer_norm'"),
            ({"normalize_activations": "expected_average_only_in"}, "folds this into the weights when a training ends"),
            ({"normalize_activations": True}, "scales what it reads"),
            ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
            ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
            ({"use_hats": 3}, "unknown setting use_hats=3"),
            ({"d_sae": 21}, "number of latents 21, its tensors have 20"),
            ({"d_in": 7}, "width 7, its tensors have 6"),
            ({"activation_fn_kwargs": {"k": 3, "power": 2}}, "setting power=2"),
        ]
    ):
        with pytest.raises(ExciseError, match=match):
            read_published(copied("sae_lens", tmp_path / f"lens-{n}", **settings))
    trainer = json.loads((PUBLISHED / "dictionary_learning" / "config.json").read_text())["trainer"]
    for n, (changed, match) in enumerate(
        [
            ({"dict_class": "GatedAutoEncoder"}, "is a GatedAutoEncoder; only AutoEncoderTopK"),
            ({"group_fractions": [0.5, 0.5]}, "setting group_fractions"),
            ({"k": 4}, "state k 4, its tensors 3"),
        ]
    ):
        with pytest.raises(ExciseError, match=match):
            read_published(copied("dictionary_learning", tmp_path / f"dictionary-{n}", trainer={**trainer, **changed}))
    with pytest.raises(ExciseError, match="predicts another layer"):
        read_published(copied("dictionary_learning", tmp_path / "transcoder", buffer={"io": "in_and_out"}))
    with pytest.raises(ExciseError, match="unknown setting jump='a'"):
        read_published(copied("sparsify", tmp_path / "sparsify", jump="a"))


def test_saelens_of_version_5_said_topk_otherwise(tmp_path: Path) -> None:
    folder = copied("sae_lens", tmp_path / "old", activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    settings = json.loads((folder / "cfg.json").read_text())
    del settings["k"], settings["metadata"]
    (folder / "cfg.json").write_text(json.dumps({**settings, "architecture": "standard", "hook_name": "blocks.1.hook"}))
    expected = load_file(folder / "expected.safetensors")
    torch.testing.assert_close(read_published(folder)(expected["x"])[0].detach(), expected["reconstruction"])


def test_tensors_that_are_not_understood_are_refused_by_name(parts: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="unknown tensor threshold"):
        read_published(sparsify(tmp_path / "a", {**parts, "threshold": torch.ones(())}))
    folder = k_sparse(tmp_path / "b", parts, nested=False)
    saved = torch.load(folder / "state_dict.pth", weights_only=True)
    torch.save({**saved, "threshold": torch.ones(())}, folder / "state_dict.pth")
    with pytest.raises(ExciseError, match="unknown tensor threshold"):
        read_published(folder)
    torch.save({**saved, "scale": 2.0}, folder / "state_dict.pth")
    with pytest.raises(ExciseError, match="scale is not a tensor"):
        read_published(folder)


def test_what_is_no_folder_of_an_sae_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"no folder EleutherAI/sae-llama-3-8b-32x; .*hf download"):
        read_published(Path("EleutherAI/sae-llama-3-8b-32x"))
    assert read_published(PUBLISHED / "dictionary_learning" / "ae.pt").config.k == K, "by its file of weights"
    with pytest.raises(ExciseError, match=r"holds 24 SAEs in subfolders; name one, such as .*published.dict"):
        read_published(PUBLISHED)
    with pytest.raises(ExciseError, match=r"cfg\.json with sae_weights\.safetensors, config\.json with ae\.pt"):
        read_published(tmp_path)


def test_an_sae_of_ours_is_not_imported_again(tmp_path: Path) -> None:
    save(TopKSAE(SAEConfig(d=D, m=M, k=K)), tmp_path / "ours", {})
    with pytest.raises(ExciseError, match="already holds an SAE of Excise's own format"):
        read_published(tmp_path / "ours")


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
    messages: list[str] = []
    for n in range(200):
        data = bytearray(whole if n % 2 else pickled)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (folder / "state_dict.pth").write_bytes(bytes(data[: rng.randint(1, len(data))] if n % 3 == 0 else data))
        try:
            read_published(folder)
        except ExciseError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in line for line in messages)


def test_what_is_missing_or_odd_is_named(parts: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="does not hold a published SAE"):
        read_published(tmp_path)
    for n, (key, does) in enumerate(FOREIGN.items()):
        with pytest.raises(ExciseError, match=does):
            read_published(sparsify(tmp_path / f"foreign-{n}", parts, **{key: True}))
    with pytest.raises(ExciseError, match="activation groupmax"):
        read_published(sparsify(tmp_path / "groups", parts, activation="groupmax"))
    with pytest.raises(ExciseError, match="unknown tensor W_skip"):
        read_published(sparsify(tmp_path / "skip", {**parts, "W_skip": torch.zeros(D, D)}))
    with pytest.raises(ExciseError, match=r"has no tensor encoder\.bias"):
        read_published(sparsify(tmp_path / "short", {n: p for n, p in parts.items() if n != "encoder.bias"}))
    with pytest.raises(ExciseError, match=r"W_dec in .* is \(20, 5\), not \(20, 6\)"):
        read_published(sparsify(tmp_path / "odd", {**parts, "W_dec": parts["W_dec"][:, :5].contiguous()}))
    with pytest.raises(ExciseError, match="contains NaN"):
        read_published(sparsify(tmp_path / "nan", {**parts, "b_dec": torch.full((D,), float("nan"))}))
    folder = sparsify(tmp_path / "cut", parts)
    (folder / "sae.safetensors").write_bytes((folder / "sae.safetensors").read_bytes()[:50])
    with pytest.raises(ExciseError, match="as tensors alone"):
        read_published(folder)
    (folder / "cfg.json").write_text("{}")
    save_file(parts, folder / "sae.safetensors")
    with pytest.raises(ExciseError, match="do not state its k"):
        read_published(folder)
