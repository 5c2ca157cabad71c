"""Settings with which ranks cannot train are refused before anything is generated or read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.app.training import labelled, supervised, text
from excise.app.training.supervised import Labels
from excise.errors import ExciseError
from excise.sae import TrainConfig
from excise.sae.parallel import Mesh
from excise.sae.trainer import check_ranks
from excise.sites import Site, block_site
from excise.sites.activations.block_shards import Labelled

ROWS = [Labelled("a gun", ("gun",)), Labelled("a cat", ())]
BATCHTOPK = TrainConfig(expansion=2, k=4, batch=32, activation="batchtopk")
TINY = TrainConfig(expansion=2, k=4, batch=1)
LABELS = Labels(groups=(("gun",),))


class First(Mesh):
    """The first of two ranks, without the other one."""

    def together(self, work: Callable[[], Any]) -> Any:
        return work()


class Began(Exception):
    """The work has begun."""


@pytest.fixture(autouse=True)
def begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def began(*_: Any, **__: Any) -> Any:
        raise Began

    monkeypatch.setattr(labelled, "capture_blocks_to", began)
    monkeypatch.setattr(supervised, "capture", began)
    monkeypatch.setattr(text, "vectors", began)


def block(pipe: Any, out: Path, config: TrainConfig, mesh: Mesh, how: Labels = LABELS) -> None:
    site = block_site(pipe, "up_blocks.0.attentions.0")
    labelled.train_block_sae(pipe, site, ROWS, config, out, how, mesh=mesh)


def with_labels(pipe: Any, out: Path, config: TrainConfig, mesh: Mesh) -> None:
    site = Site("text_encoder", "encoder.layers.2", 64)
    supervised.train_on_text(pipe, site, ROWS, ["gun"], out, config, LABELS, mesh=mesh)


def without_labels(pipe: Any, out: Path, config: TrainConfig, mesh: Mesh) -> None:
    site = Site("text_encoder", "encoder.layers.2", 64)
    text.train_sae(pipe, site, ["a gun"], config, out, card={}, mesh=mesh)


@pytest.mark.parametrize(
    ("train", "config", "says"),
    [
        (block, BATCHTOPK, "by activation 'topk' alone"),
        (with_labels, BATCHTOPK, "by activation 'topk' alone"),
        (block, TINY, "a batch of 1 cannot be divided among 2 ranks"),
        (with_labels, TINY, "a batch of 1 cannot be divided among 2 ranks"),
        (without_labels, TINY, "a batch of 1 cannot be divided among 2 ranks"),
    ],
)
def test_ranks_that_cannot_train_are_refused(
    tiny_pipe: Any, tmp_path: Path, train: Callable[..., None], config: TrainConfig, says: str
) -> None:
    with pytest.raises(ExciseError, match=says):
        train(tiny_pipe, tmp_path / "sae", config, First(data=2))
    with pytest.raises(Began):
        train(tiny_pipe, tmp_path / "sae", config, Mesh())
    with pytest.raises(Began):
        train(tiny_pipe, tmp_path / "sae", replace(config, activation="topk", batch=2), First(data=2))


@pytest.mark.parametrize("train", [block, with_labels, without_labels])
def test_more_ranks_than_latents_are_refused(tiny_pipe: Any, tmp_path: Path, train: Callable[..., None]) -> None:
    config = replace(TINY, batch=32)
    with pytest.raises(ExciseError, match=r"\d+ latents cannot be divided among 5000 ranks; give fewer ranks"):
        train(tiny_pipe, tmp_path / "sae", config, First(latents=5000))
    with pytest.raises(Began):
        train(tiny_pipe, tmp_path / "sae", config, First(latents=2))


def test_without_labels_ranks_train_by_batchtopk(tiny_pipe: Any, tmp_path: Path) -> None:
    for mesh in (First(data=2), First(latents=2)):
        with pytest.raises(Began):
            block(tiny_pipe, tmp_path / "sae", BATCHTOPK, mesh, replace(LABELS, supervised=False))
        with pytest.raises(Began):
            without_labels(tiny_pipe, tmp_path / "sae", BATCHTOPK, mesh)


def test_a_known_batch_must_have_a_row_for_each_rank() -> None:
    config = TrainConfig(batch=32)
    check_ranks(config, Mesh(data=4), rows=4)
    with pytest.raises(ExciseError, match="a batch of 3 cannot be divided among 4 ranks"):
        check_ranks(config, Mesh(data=4), rows=3)
