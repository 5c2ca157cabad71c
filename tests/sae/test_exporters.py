"""SAEs written for SAELens and sparsify. `test_libraries.py` loads them there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from excise.errors import ExciseError, InvalidSetting
from excise.sae import SAEConfig, TopKSAE, export, read_published
from excise.sae.exchange.exporters import FILES

D, M, K = 6, 20, 3
SITE = {"component": "text_encoder", "path": "encoder.layers.3", "width": D}
CARD = {"site": SITE, "corpus": "captions.txt: 8 prompts", "model": "bundled", "metrics": {"fvu": 0.1}}
PUBLISHED = Path(__file__).parent / "published"


@pytest.fixture
def sae() -> TopKSAE:
    """An SAE without a zero, a unit row or a symmetry."""
    made = TopKSAE(SAEConfig(d=D, m=M, k=K))
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    made.card = dict(CARD)
    return made


@pytest.mark.parametrize("to", FILES)
def test_what_is_exported_is_imported_bit_by_bit(to: str, sae: TopKSAE, tmp_path: Path) -> None:
    export(sae, tmp_path / "there", to)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(FILES[to])
    again = read_published(tmp_path / "there")
    assert again.config == sae.config and again.card == CARD
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(("to", "theirs"), [("saelens", "sae_lens"), ("sparsify", "sparsify")])
def test_it_has_the_settings_and_tensors_that_the_library_writes(
    to: str, theirs: str, sae: TopKSAE, tmp_path: Path
) -> None:
    export(sae, tmp_path / "ours", to)
    config, weights = FILES[to]
    ours, written = (json.loads((folder / config).read_text()) for folder in (tmp_path / "ours", PUBLISHED / theirs))
    assert set(ours) - {"excise"} == set(written)
    same = set(written) - {"metadata", "expansion_factor", "normalize_decoder"}
    assert {key: ours[key] for key in same} == {key: written[key] for key in same}
    if to == "saelens":
        assert ours["metadata"]["sae_lens_version"] == written["metadata"]["sae_lens_version"]
        assert ours["metadata"]["hook_name"] == "text_encoder.encoder.layers.3"
    made, known = load_file(tmp_path / "ours" / weights), load_file(PUBLISHED / theirs / weights)
    assert {name: (each.shape, each.dtype) for name, each in made.items()} == {
        name: (each.shape, each.dtype) for name, each in known.items()
    }


def test_only_unit_rows_are_to_be_normalised_by_sparsify(sae: TopKSAE, tmp_path: Path) -> None:
    unit = TopKSAE(sae.config)
    export(sae, tmp_path / "any", "sparsify")
    export(unit, tmp_path / "unit", "sparsify")
    stated = [json.loads((tmp_path / name / "cfg.json").read_text())["normalize_decoder"] for name in ("any", "unit")]
    assert stated == [False, True]


@pytest.mark.parametrize("to", FILES)
def test_an_sae_that_was_changed_since_keeps_only_its_site(to: str, sae: TopKSAE, tmp_path: Path) -> None:
    export(sae, tmp_path / "there", to)
    weights = tmp_path / "there" / FILES[to][1]
    tensors = load_file(weights)
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, weights)
    assert read_published(tmp_path / "there").card == {"site": SITE}


@pytest.mark.parametrize(
    "kept", ["a card", {"card": 3}, {"card": {"site": "here"}}, {"card": {"site": {**SITE, "width": 7}}}]
)
def test_a_card_that_is_none_is_refused(kept: Any, sae: TopKSAE, tmp_path: Path) -> None:
    export(sae, tmp_path / "there", "sparsify")
    config = tmp_path / "there" / "cfg.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "excise": kept}))
    with pytest.raises(ExciseError, match=r"unknown excise .*; export it again"):
        read_published(tmp_path / "there")


def test_what_cannot_be_written_leaves_nothing(sae: TopKSAE, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="cannot be written for 'keras'; choose saelens or sparsify"):
        export(sae, tmp_path / "there", "keras")
    with pytest.raises(ExciseError, match="cannot be written as json"):
        export(sae, tmp_path / "there", "saelens", card={"corpus": tmp_path})
    sae.W_dec.data[3, 2] = float("nan")
    with pytest.raises(ExciseError, match="W_dec contains NaN"):
        export(sae, tmp_path / "there", "saelens")
    assert not (tmp_path / "there").exists()
    shutil.copytree(PUBLISHED / "dictionary_learning", tmp_path / "there")
    with pytest.raises(ExciseError, match="holds other files"):
        export(TopKSAE(sae.config), tmp_path / "there", "saelens")


def test_half_precision_and_another_card(sae: TopKSAE, tmp_path: Path) -> None:
    half = sae.half()
    export(half, tmp_path / "there", "saelens", card={"site": None})
    again = read_published(tmp_path / "there")
    assert torch.equal(again.W_enc, half.W_enc.float()) and again.card == {"site": None}
