from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.sae import load, read_published

PUBLISHED = Path(__file__).parents[2] / "sae" / "published"


@pytest.mark.parametrize("to", ["saelens", "sparsify"])
def test_export_and_import_again(
    to: str, ask: Callable[..., Any], call: Callable[..., Any], sae_folder: Path, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    sae = load(sae_folder)
    told = ask("sae", "export", sae_folder, "--to", to, "--out", there)
    assert told == {"out": str(there), "to": to, "d": sae.config.d, "m": sae.config.m, "k": sae.config.k}
    assert "neurons of width" in call("sae", "export", sae_folder, "--to", to, "--out", there, "--force").stdout
    made = ask("sae", "import", there, "--out", back)
    assert made["card"] == ask("sae", "info", sae_folder)["card"], "its Site and its corpus come along"
    assert torch.equal(load(back).W_dec, sae.W_dec)
    moved = ask("sae", "import", there, "--out", tmp_path / "moved", "--site", "encoder.layers.1")
    assert moved["card"]["site"]["path"] == "encoder.layers.1"
    assert "converted by `excise sae import`" in call("sae", "info", there).stderr


def test_what_export_refuses(call: Callable[..., Any], sae_folder: Path, tmp_path: Path) -> None:
    def why(*args: Any) -> str:
        result = call("sae", "export", *args)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        return str(line)

    before = {path.name: path.read_bytes() for path in sae_folder.iterdir()}
    assert "is the SAE that is read" in why(sae_folder, "--to", "sparsify", "--out", sae_folder, "--force")
    assert {path.name: path.read_bytes() for path in sae_folder.iterdir()} == before
    shutil.copytree(sae_folder, tmp_path / "several" / "text_encoder")
    shutil.copytree(sae_folder, tmp_path / "several" / "text_encoder_2")
    several = why(tmp_path / "several", "--to", "saelens", "--out", tmp_path / "there")
    assert "an SAE for each of text_encoder, text_encoder_2; name one" in several
    assert not (tmp_path / "there").exists()


def test_what_import_reads_and_refuses(call: Callable[..., Any], tmp_path: Path) -> None:
    site = ("--out", tmp_path / "sae", "--site", "encoder.layers.5")
    refused = call("sae", "import", PUBLISHED / "sae_lens-jumprelu", *site)
    assert refused.exit_code == 2 and "which keeps every code above a threshold" in refused.stderr
    assert not (tmp_path / "sae").exists()
    both = call("sae", "import", PUBLISHED / "sae_lens", *site, "--block", "up_blocks.1.attentions.1")
    assert both.exit_code == 2 and "not both" in both.stderr
    read = call("sae", "import", PUBLISHED / "sae_lens-standard", *site)
    assert read.exit_code == 0 and "keeps every positive code, so its k is 20" in read.stderr
    assert load(tmp_path / "sae").config == read_published(PUBLISHED / "sae_lens-standard").config
