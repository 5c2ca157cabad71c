from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from excise import files
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, card, load, save


@pytest.fixture
def sae() -> TopKSAE:
    return TopKSAE(SAEConfig(4, 12, 3), seed=9)


@pytest.fixture
def folder(tmp_path: Path, sae: TopKSAE) -> Path:
    save(sae, tmp_path / "sae", {"corpus": "captions", "tokens": 77})
    return tmp_path / "sae"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_loaded_is_what_was_saved(folder, sae):
    loaded = load(folder)
    assert loaded.config == sae.config
    for name, value in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert sorted(p.name for p in folder.iterdir()) == ["cfg.json", "sae.safetensors"]


def test_a_card_says_what_was_told_and_null_for_the_rest(folder):
    assert card(folder) == {
        "corpus": "captions",
        "site": None,
        "tokens": 77,
        "recipe": None,
        "metrics": None,
        "excludes": None,
    }


def test_a_card_that_is_no_json_is_refused(tmp_path, sae):
    for value in (object(), float("nan")):
        with pytest.raises(ExciseError, match="card"):
            save(sae, tmp_path / "sae", {"metrics": value})
    assert not (tmp_path / "sae").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path, sae):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ExciseError, match=r"thesis\.txt"):
        save(sae, tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ExciseError, match="not the file"):
        load(folder)


def test_one_changed_bit_is_refused(folder):
    path = folder / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExciseError, match="not the file"):
        load(folder)


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ExciseError, match=name):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "excise.sae/2"}', '{"schema": "excise.sae/1"}'])
def test_a_broken_or_foreign_config_is_refused(folder, text):
    (folder / "cfg.json").write_text(text)
    for read in (load, card):
        with pytest.raises(ExciseError, match=r"cfg\.json"):
            read(folder)


def test_a_config_that_is_not_utf8_is_refused(folder):
    (folder / "cfg.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ExciseError, match="not json"):
        load(folder)


def test_a_shape_the_weights_do_not_have_is_refused(folder):
    edit(folder, sae={"d": 4, "m": 13, "k": 3})
    with pytest.raises(ExciseError, match="W_dec"):
        load(folder)


def test_an_unknown_setting_is_refused(folder):
    edit(folder, sae={"d": 4, "m": 12, "k": 3, "activation": "relu"})
    with pytest.raises(ExciseError, match="activation"):
        load(folder)


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor] | bytes) -> None:
    data = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
    (folder / "sae.safetensors").write_bytes(data)
    edit(folder, sha256={"sae.safetensors": files.sha256(data)})


def test_weights_that_fit_the_digest_but_not_the_model_are_refused(folder, sae):
    good = {name: t.clone() for name, t in sae.state_dict().items()}
    without = {name: t for name, t in good.items() if name != "b_pre"}
    for bad in (without, {**good, "extra": torch.zeros(1)}, {**good, "b_enc": good["b_enc"].double()}):
        replace_weights(folder, bad)
        with pytest.raises(ExciseError, match="announces"):
            load(folder)
    replace_weights(folder, {**good, "b_enc": torch.full((12,), torch.nan)})
    with pytest.raises(ExciseError, match="NaN"):
        load(folder)
    replace_weights(folder, b"not tensors")
    with pytest.raises(ExciseError, match="not a safetensors file"):
        load(folder)
