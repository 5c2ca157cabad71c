"""Labelled prompts from files: their order, what is refused, and that it is refused before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler

from excise.app.training.labelled import labelled_prompts, train_block_sae
from excise.app.training.supervised import Labels
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, TrainConfig, save
from excise.sites import block_site
from excise.sites.activations.block_shards import Labelled


def written(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["prompt,object,colour", *rows]) + "\n")
    return path


def test_a_file_sorted_by_concept_is_shuffled(tmp_path: Path) -> None:
    """The last pictures are those that early stopping looks at; they must not be one concept's alone."""
    sorted_rows = [f"a {name} {n},{name}," for name in ("gun", "cat", "dog", "cow") for n in range(32)]
    path = written(tmp_path / "a.csv", sorted_rows)
    rows, groups = labelled_prompts(path, ("object",))
    assert groups == (("gun", "cat", "dog", "cow"),)
    assert sorted(row.prompt for row in rows) == sorted(line.split(",")[0] for line in sorted_rows)
    assert all(row.concepts == (row.prompt.split()[1],) for row in rows)
    for part in (rows[:-32], rows[-32:]):
        assert {label for row in part for label in row.concepts} == {"gun", "cat", "dog", "cow"}
    assert labelled_prompts(path, ("object",))[0] == rows


def test_a_label_of_two_columns_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", ["an orange,orange,", "an orange gun,gun,orange"])
    with pytest.raises(ExciseError, match="'orange' is a label in two columns"):
        labelled_prompts(path, ("object", "colour"))


def test_features_of_another_model_or_sampler_are_not_gone_on_with(build_pipe: Any, tmp_path: Path) -> None:
    pipe, how = build_pipe(), Labels(supervised=False)
    site = block_site(pipe, "up_blocks.0.attentions.0")
    rows, config = [Labelled("a gun", ()), Labelled("a cat", ())], TrainConfig(expansion=2, k=4, tokens=256, batch=32)

    def train(pipe: Any, out: str) -> None:
        train_block_sae(pipe, site, rows, config, tmp_path / out, how, steps=2, features=tmp_path / "features")

    train(pipe, "sae")
    train(build_pipe(), "the same again")
    with pytest.raises(ExciseError, match="holds something else"):
        train(build_pipe(1), "other weights")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ExciseError, match="holds something else"):
        train(pipe, "another sampler")


def test_an_sae_of_another_size_is_refused_before_drawing(build_pipe: Any, tmp_path: Path) -> None:
    save(TopKSAE(SAEConfig(16, 64, 4)), tmp_path / "start", {})
    pipe, how = build_pipe(), Labels(groups=(("gun",),), start=str(tmp_path / "start"))
    site = block_site(pipe, "up_blocks.0.attentions.0")
    with pytest.raises(ExciseError, match="the SAE to fine-tune is"):
        train_block_sae(pipe, site, [Labelled("a gun", ("gun",))], TrainConfig(expansion=2, k=4), tmp_path / "sae", how)
    for prompts in ([Labelled("a gun", ("gun",))], [Labelled("a cat", ()), Labelled("a dog", ())]):
        with pytest.raises(ExciseError, match="no prompt or every prompt shows 'gun'"):
            train_block_sae(pipe, site, prompts, TrainConfig(), tmp_path / "sae", Labels(groups=(("gun",),)))
    assert not (tmp_path / "sae.features").exists()
