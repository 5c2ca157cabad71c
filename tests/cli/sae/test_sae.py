from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.sae.ranks import torchrun

SMALL = ("--tokens", 2000, "--expansion", 2, "--k", 4, "--batch", 256)


def test_train_and_info(ask: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a gun\na cat on grass\na dog in the sky\n")
    out = tmp_path / "sae"
    common = ("--model", model_folder, "--site", "encoder.layers.1", "--prompts", prompts)
    made = ask("sae", "train", "--out", out, *common, *SMALL)
    card = made["card"]
    assert card["site"] == {"component": "text_encoder", "path": "encoder.layers.1", "width": 64}
    assert card["prompts"] == 3
    assert "prompts.txt" in card["corpus"]
    assert ask("sae", "info", out)["card"] == card
    raw = ask("sae", "train", "--out", tmp_path / "raw", *common, *SMALL, "--raw")["card"]
    assert [one["recipe"]["units"] for one in (card, raw)] == ["variance", "raw"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", b"", "no prompts"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "UTF-8"),
        ("columns.csv", b"text,seed\na cat,1\n", "text, seed"),
        ("prompts.pdf", b"", ".txt, .csv"),
    ],
)
def test_bad_prompt_files(name: str, content: bytes, complaint: str, call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    result = call("sae", "train", "--out", tmp_path / "sae", "--prompts", tmp_path / name)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not (tmp_path / "sae").exists()


def test_a_corpus_is_asked_for_exactly_once(call: Callable[..., Any], tmp_path: Path) -> None:
    assert "--prompts" in call("sae", "train", "--out", tmp_path / "sae").stderr
    assert "known are" in call("sae", "train", "--out", tmp_path / "sae", "--recipe", "soup").stderr


def test_options_that_would_be_ignored_or_misread_are_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    out, prompts = tmp_path / "sae", tmp_path / "p.txt"
    prompts.write_text("a cat\n")
    mixed = call("sae", "train", "--out", out, "--prompts", prompts, "--exclude-eval")
    assert mixed.exit_code == 2
    assert "--recipe snce-sd14" in mixed.stderr
    bundled = call("sae", "train", "--out", out, "--recipe", "snce-sd14", "--exclude-eval")
    assert bundled.exit_code == 2
    assert "needs --model" in bundled.stderr


def test_processes_that_do_not_fit_are_refused(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    common = ("sae", "train", "--out", tmp_path / "sae", "--prompts", tmp_path / "p.txt")
    wrong = call(*common, "--parallel", "rows=2")
    assert wrong.exit_code == 2 and "write it as data=2,latents=4" in wrong.stderr
    alone = call(*common, "--parallel", "data=2")
    assert alone.exit_code == 2 and "torchrun --nproc-per-node 2" in alone.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--parallel data=2" in call(*common).stderr


def test_ranks_that_ray_would_start_are_refused_before_anything_is_read(
    call: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    """tests/engine/test_ray_ranks.py has a cluster; none is started here."""
    (tmp_path / "p.txt").write_text("a cat\n")
    common = ("sae", "train", "--out", tmp_path / "sae", "--prompts", tmp_path / "p.txt", "--model", model_folder)
    small = (*common, "--site", "encoder.layers.1", *SMALL)
    for wrong, says in (
        ((*common, "--parallel", "rows=2", "--engine", "ray"), "write it as data=2,latents=4"),
        ((*common, "--parallel", "data=2", "--engine", "ray", "--workers", 2), "leave out --engine and --workers"),
        ((*common, "--parallel", "data=2", "--engine", "ray:2"), "write ray, or ray://HOST:PORT"),
        ((*common, "--parallel", "data=2", "--engine", "processes:2"), "torchrun --nproc-per-node 2"),
        ((*small, "--parallel", "latents=129", "--engine", "ray"), "128 latents cannot be divided among 129 ranks"),
        ((*small, "--parallel", "data=257", "--engine", "ray"), "a batch of 256 cannot be divided among 257 ranks"),
    ):
        refused = call(*wrong)
        assert refused.exit_code == 2 and says in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1, "one line, before the first progress bar"
    if find_spec("ray") is None:
        missing = call(*small, "--parallel", "latents=2", "--engine", "ray")
        assert missing.exit_code == 2 and "pip install 'excise[ray]'" in missing.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "latents"), [(1, 2), (2, 2)])
def test_torchrun_trains_one_sae(
    model_folder: Path, tmp_path: Path, ask: Callable[..., Any], data: int, latents: int
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a gun\na cat on grass\na dog in the sky\n")
    longer = ("--tokens", 15_000, *SMALL[2:])  # the log has a line every 50 steps
    common = ("sae", "train", "--model", model_folder, "--site", "encoder.layers.1", "--prompts", prompts, *longer)
    one = ask(*common, "--out", tmp_path / "one")["card"]
    parallel = (*common, "--out", tmp_path / "ranks", "--parallel", f"data={data},latents={latents}")
    done = torchrun("-m", "excise", *parallel, number=data * latents)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved in") == done.stdout.count("corpus") == 1, "rank 0 reports for all"
    assert ask("sae", "info", tmp_path / "ranks")["card"]["recipe"] == one["recipe"]
    alone, ranks = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "ranks")
    )
    assert len(alone) > 1 and [line["dead"] for line in ranks] == [line["dead"] for line in alone]
    assert [line["fvu"] for line in ranks] == pytest.approx([line["fvu"] for line in alone], rel=1e-5)


def test_a_truncated_sae_is_refused(call: Callable[..., Any], sae_folder: Path) -> None:
    weights = sae_folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    result = call("sae", "info", sae_folder)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_the_papers_corpus(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from excise.app.training.text import recipe_prompts

    names = ["safe", "unsafe", "marked", "shared", "unsafe", "at the bound", "above it"]
    rows = {"prompt": names, "prompt_nsfw": [0.1, 0.9, 2.0, 0.8, 0.7, 0.5, 0.51]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    (tmp_path / "i2p.csv").write_text("prompt\nshared\nother\n")
    files = {"diffusiondb": tmp_path / "metadata.parquet", "i2p": tmp_path / "i2p.csv"}
    prompts, card = recipe_prompts("snce-sd14", **files)
    assert prompts[:2] == ["shared", "other"] and sorted(prompts[2:]) == ["above it", "unsafe"]
    assert card["excludes"] == []
    prompts, card = recipe_prompts("snce-sd14", exclude_eval=True, **files)
    assert sorted(prompts) == ["above it", "unsafe"], "what I2P has is left out of DiffusionDB too"
    assert card["excludes"] == ["i2p"]


def test_the_papers_corpus_is_a_sample_from_all_of_diffusiondb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from excise.app.training import text

    monkeypatch.setattr(text, "SNCE_PROMPTS", 40)
    rows = {"prompt": [f"prompt {n}" for n in range(400)], "prompt_nsfw": [0.9] * 400}
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    (tmp_path / "i2p.csv").write_text("prompt\nprompt 7\n")
    files = {"diffusiondb": tmp_path / "metadata.parquet", "i2p": tmp_path / "i2p.csv"}
    prompts, _ = text.recipe_prompts("snce-sd14", exclude_eval=True, **files)
    assert len(set(prompts)) == 40 and "prompt 7" not in prompts
    assert max(int(prompt.split()[1]) for prompt in prompts) > 300, "not its first rows"
    assert text.recipe_prompts("snce-sd14", exclude_eval=True, **files)[0] == prompts
