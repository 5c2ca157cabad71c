from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from excise.sites.activations.block_shards import load_block_shards
from tests.sae.ranks import torchrun

SMALL = ("--tokens", 500, "--expansion", 2, "--k", 4, "--batch", 64)
BLOCK = "up_blocks.0.attentions.0"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    rows = [f"a {thing} on {place},{thing},{place}" for thing in ("gun", "cat", "dog") for place in ("grass", "sand")]
    path.write_text("\n".join(["prompt,object,place", *rows, "a gun and a cat,gun; cat,"]) + "\n")
    return path


def test_a_block_with_labels_and_an_eraser_by_it(
    ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, captions: Path, tmp_path: Path
) -> None:
    common = ("--model", model_folder, "--block", BLOCK, "--prompts", captions, "--steps", 2, *SMALL)
    labels = ("--label", "object", "--label", "place", "--features", tmp_path / "features")
    made = ask("sae", "train-block", "--out", tmp_path / "sae", *common, *labels)
    own = made["card"]["supervision"]
    assert own["concepts"] == ["gun", "cat", "dog", "grass", "sand"]
    assert own["groups"] == [0, 0, 0, 1, 1]
    assert made["card"]["site"]["path"] == BLOCK
    assert load_block_shards(tmp_path / "features").pictures == 7
    plain = ask("sae", "train-block", "--out", tmp_path / "plain", *common, *labels, "--unsupervised")
    assert "supervision" not in plain["card"]
    tuned = ("--start", tmp_path / "plain")
    assert "supervision" in ask("sae", "train-block", "--out", tmp_path / "tuned", *common, *labels, *tuned)["card"]
    settings = (
        "--set",
        f"sae={tmp_path / 'sae'}",
        "--set",
        "steps=2",
        "--set",
        "pictures=3",
        "--set",
        "codes=threshold",
    )
    erased = ask(
        "erase", "gun", "--out", tmp_path / "gun", "--model", model_folder, "--method", "saemnesia", "--n", 6, *settings
    )
    assert erased["neurons"] == [0]
    assert erased["site"] == f"unet/{BLOCK}"
    options = ("--model", model_folder, "--method", "saemnesia", "--n", 6, *settings, "--set", "edit=replace")
    told = call("erase", "gun", "--out", tmp_path / "patches", *options)
    assert told.exit_code == 0, told.output
    assert f"neuron 0 at unet/{BLOCK}, replacement = 1" in " ".join(told.stdout.split())


def test_a_block_without_labels(ask: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a gun\na cat\n")
    where = ("--model", model_folder, "--block", BLOCK, "--prompts", tmp_path / "prompts.txt", "--steps", 2)
    made = ask("sae", "train-block", "--out", tmp_path / "sae", *where, *SMALL, "--activation", "batchtopk")
    assert "supervision" not in made["card"]
    assert made["card"]["recipe"]["activation"] == "batchtopk"
    assert not (tmp_path / "sae.features").exists()


def test_text_states_with_labels(ask: Callable[..., Any], model_folder: Path, captions: Path, tmp_path: Path) -> None:
    where = ("--model", model_folder, "--site", "encoder.layers.1", "--prompts", captions, "--label", "object")
    made = ask("sae", "train-text", "--out", tmp_path / "sae", *where, *SMALL, "--negatives", "assigned")
    assert made["card"]["supervision"]["pooling"] == "max"
    assert made["card"]["supervision"]["negatives"] == "assigned"
    assert made["card"]["site"]["path"] == "encoder.layers.1"


def test_a_preset_sets_the_whole_loss_and_options_take_precedence(
    ask: Callable[..., Any], model_folder: Path, captions: Path, tmp_path: Path
) -> None:
    where = ("--model", model_folder, "--site", "encoder.layers.1", "--prompts", captions, "--label", "object", *SMALL)
    wanted = {"negatives": "assigned", "pooling": "each", "beta": 3.0, "eta": 0.0, "l1": 0.0}
    for n, (options, change) in enumerate(
        (((), {}), (("--beta", 0.5), {"beta": 0.5}), (("--negatives", "balanced"), {"negatives": "balanced"}))
    ):
        out = tmp_path / f"sae{n}"
        made = ask("sae", "train-text", "--out", out, *where, "--preset", "g-sae", *options)["card"]["supervision"]
        assert {name: made[name] for name in wanted} == wanted | change
        assert made["assigned"] == [0, 1, 2], "the first latents are reserved, one a concept"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give either --prompts FILE or --recipe reference"),
        (("--recipe", "soup"), "give either --prompts FILE or --recipe reference"),
        (("--recipe", "reference", "--label", "colour"), "no column 'colour'; they have object and style"),
        (("--prompts", "captions.csv", "--label", "colour"), "no column 'colour'; the columns are"),
        (("--prompts", "empty.csv", "--label", "object"), "column 'object' of"),
        (("--prompts", "captions.txt", "--label", "object"), "labels need columns"),
        (("--prompts", "captions.csv", "--label", "object", "--negatives", "some"), "choose none or assigned"),
        (("--prompts", "captions.csv", "--preset", "other"), "no preset 'other'; there is saemnesia and g-sae"),
        (("--prompts", "captions.csv", "--model", "somewhere"), "--model needs --block"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    options: tuple[str, ...], complaint: str, call: Callable[..., Any], captions: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("prompt,object\na gun,\n")
    (tmp_path / "captions.txt").write_text("a gun\n")
    given = [tmp_path / option if option.endswith((".csv", ".txt")) else option for option in options]
    result = call("sae", "train-block", "--out", tmp_path / "sae", *given)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (
        "trains without labels" in call("sae", "train-text", "--out", tmp_path / "sae", "--recipe", "reference").stderr
    )


def test_a_published_sae_is_imported(call: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path) -> None:
    there, out = tmp_path / "SAEmnesia", tmp_path / "sae"
    there.mkdir()
    (there / "cfg.json").write_text(json.dumps({"d_in": 8, "num_latents": 32, "k": 4}))
    shapes = {"encoder.weight": (32, 8), "encoder.bias": (32,), "W_dec": (32, 8), "b_dec": (8,)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, there / "sae.safetensors")
    assert "name where it was trained" in call("sae", "import", there, "--out", out).stderr
    made = ask("sae", "import", there, "--out", out, "--block", "up_blocks.1.attentions.1")
    assert made["card"]["site"] == {"component": "unet", "path": "up_blocks.1.attentions.1", "width": 8}
    assert ask("sae", "info", out) == made
    again = call("sae", "import", there, "--out", out, "--block", "up_blocks.1.attentions.1")
    assert again.exit_code == 2
    assert "choose another" in again.stderr
    text = ask("sae", "import", there, "--out", tmp_path / "text", "--site", "text_encoder_2/encoder.layers.9")
    assert text["card"]["site"] == {"component": "text_encoder_2", "path": "encoder.layers.9", "width": 8}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train-text", "train-block"])
def test_torchrun_trains_on_labels(
    command: str, ask: Callable[..., Any], model_folder: Path, captions: Path, tmp_path: Path
) -> None:
    place = ("--site", "encoder.layers.1") if command == "train-text" else ("--block", BLOCK, "--steps", 2)
    few = (*SMALL[:-1], 320)  # four prompts of 76 states a batch
    common = ("sae", command, "--model", model_folder, *place, "--prompts", captions, "--label", "object", *few)
    one = ask(*common, "--out", tmp_path / "one")["card"]
    done = torchrun("-m", "excise", *common, "--out", tmp_path / "two", "--parallel", "data=2", number=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved in") == 1, "rank 0 reports for both"
    two = ask("sae", "info", tmp_path / "two")["card"]
    assert two["metrics"]["train"]["fvu"] == pytest.approx(one["metrics"]["train"]["fvu"], rel=1e-3)
    assert two["supervision"] == one["supervision"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.csv", "one", "two"]
