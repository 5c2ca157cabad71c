"""SAEs as PEFT and transformers save, load and push models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.sae import SAEConfig, TopKSAE, card, load, saes_in, save, shape, update_card
from tests.hub_server import Hub

NAME = "someone/sae"
SITE = {"component": "text_encoder", "path": "encoder.layers.2", "width": 6}


@pytest.fixture
def sae() -> TopKSAE:
    made = TopKSAE(SAEConfig(d=6, m=12, k=2), seed=3)
    made.card = {"corpus": "a few prompts", "site": SITE}
    return made


def same(one: TopKSAE, other: TopKSAE) -> bool:
    return one.config == other.config and all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_named_by_a_text_or_a_path(kind: Any, sae: TopKSAE, tmp_path: Path) -> None:
    folder = kind(tmp_path / "sae")
    sae.save_pretrained(folder)
    back = TopKSAE.from_pretrained(folder)
    assert same(back, sae)
    assert back.card["site"] == SITE
    assert (back.card["tokens"], card(folder)) == (None, back.card)
    save(sae, kind(tmp_path / "other"), sae.card)
    assert [(tmp_path / name / "cfg.json").read_bytes() for name in ("sae", "other")] == [
        (tmp_path / "sae" / "cfg.json").read_bytes()
    ] * 2
    assert same(load(folder), sae)
    assert shape(folder) == sae.config
    assert list(saes_in(kind(tmp_path))) == ["other", "sae"]
    assert update_card(folder, {"corpus": "others"})["corpus"] == "others"
    back.save_pretrained(folder, card={"corpus": "none"})
    assert card(folder)["site"] is None


def test_an_sae_comes_back_from_the_hub_as_it_was(hub: Hub, sae: TopKSAE, tmp_path: Path) -> None:
    sae.card["corpus"] = "---\n```\n<script>"
    url = sae.push_to_hub(NAME)
    assert url == f"{hub.endpoint}/{NAME}/commit/{hub.repositories[NAME].branches['main']}"
    assert set(hub.files(NAME)) == {".gitattributes", "README.md", "cfg.json", "sae.safetensors"}
    page = hub.files(NAME)["README.md"].decode()
    assert f'excise.TopKSAE.from_pretrained("{NAME}")' in page
    assert page.count("```") - page.count("    ```") >= 2 and "\n<script>" not in page
    first = hub.repositories[NAME].branches["main"]
    hub.alter(NAME, {"malware.py": b"raise SystemExit", "second/cfg.json": hub.files(NAME)["cfg.json"]})
    hub.alter(NAME, {"second/sae.safetensors": hub.files(NAME)["sae.safetensors"], "cfg.json": b"{}"})
    back = TopKSAE.from_pretrained(NAME, revision=first, cache_dir=tmp_path / "cache")
    assert same(back, sae)
    assert back.card["corpus"] == sae.card["corpus"]
    assert same(TopKSAE.from_pretrained(NAME, subfolder="second", cache_dir=str(tmp_path / "cache")), sae)
    for snapshot in (tmp_path / "cache").glob("models--someone--sae/snapshots/*"):
        assert {path.name for path in snapshot.iterdir()} <= {"cfg.json", "sae.safetensors", "second"}
    with pytest.raises(excise.Tampered, match="does not describe an SAE"):
        TopKSAE.from_pretrained(NAME)


def test_what_cannot_be_had_is_one_clear_line(hub: Hub, sae: TopKSAE, tmp_path: Path) -> None:
    with pytest.raises(excise.NotFound, match=r"^someone/sae is not a folder, and no SAE was found on the hub"):
        TopKSAE.from_pretrained(NAME)
    with pytest.raises(excise.NotFound, match="cannot read"):
        TopKSAE.from_pretrained(tmp_path)
    with pytest.raises(excise.InvalidSetting, match="give OWNER/NAME"):
        sae.push_to_hub("not a/name")
    sae.save_pretrained(tmp_path / "sae")
    with pytest.raises(excise.InvalidSetting, match="has no revisions"):
        TopKSAE.from_pretrained(tmp_path / "sae", revision="main")
    weights = (tmp_path / "sae" / "sae.safetensors").read_bytes()
    (tmp_path / "sae" / "sae.safetensors").write_bytes(weights[:-1])
    with pytest.raises(excise.Tampered, match="is not the file"):
        TopKSAE.from_pretrained(tmp_path / "sae")
