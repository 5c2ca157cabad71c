from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_compare(ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, sae_folder: Path) -> None:
    given = ("sae", "compare", sae_folder, "--model", model_folder, "--concepts", "gun,cat", "--n", 40)
    told = ask(*given)
    assert told["concepts"] == ["gun", "cat"]
    assert [own["name"] for own in told["saes"][0]["concepts"]] == ["gun", "cat"]
    shown = call(*given, "--by", "TPP").stdout
    assert "TPP↓" in shown and str(sae_folder) in shown.replace("\n", "")
    odd = call(*given, "--by", "beauty")
    assert odd.exit_code == 2 and "choose from i_cdf" in odd.stderr


def test_sweep(ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {noun} on grass\na picture of a {noun}\n" for noun in ("gun", "cat", "rose", "bus")))
    given = ("sae", "sweep", "--model", model_folder, "--prompts", prompts, "--concepts", "gun", "--n", 40)
    small = ("--sites", "encoder.layers.1", "--expansions", "2", "--k", "2,4", "--tokens", 500)
    told = ask(*given, *small, "--out", tmp_path / "sweep")
    assert sorted((row["m"], row["k"]) for row in told["saes"]) == [(128, 2), (128, 4)]
    assert call(*given, "--k", "few", "--out", tmp_path / "other").exit_code == 2
    alone = call("sae", "sweep", "--model", model_folder, "--out", tmp_path / "other")
    assert alone.exit_code == 2 and "--prompts" in alone.stderr
