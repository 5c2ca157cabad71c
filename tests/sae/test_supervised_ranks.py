"""An SAE with labels on several ranks against the same training in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.sae import Progress, Shards, TopKSAE, load, stream, train
from excise.sae.parallel import ALONE, Mesh
from excise.sae.supervised import terms
from excise.sae.trainer import _terms
from tests.sae.ranks import answers, on_ranks
from tests.sae.test_supervised_training import CONFIG as BASE
from tests.sae.test_supervised_training import SUPERVISION, VECTORS, planted

CONFIG = replace(BASE, batch=65 * VECTORS, tokens=65 * VECTORS * 30, log_every=1, checkpoint_every=10)
"""65 samples a batch: two ranks have 33 and 32 of them."""
FIRST, SPREAD = SUPERVISION.assigned, (3, 50, 95, 0, 60)
"""Assigned latents of 96: of two ranks, the first has all of them, or both have some."""


def trained(
    mesh: Mesh, out: Path, negatives: Any, stop: int = 0, assigned: tuple[int, ...] = FIRST
) -> tuple[list[Progress], dict[str, torch.Tensor]]:
    """Return the log's lines, which rank 0 alone has, and the trained tensors. Ctrl-C comes after step `stop`."""
    lines: list[Progress] = []

    def progress(line: Progress) -> None:
        lines.append(line)
        if line.step == stop:
            raise KeyboardInterrupt

    stream.BUFFER = 900
    samples = planted(400, 1)
    supervision = replace(SUPERVISION, assigned=assigned, negatives=negatives, check_every=5, patience=3, l1=0.5)
    shards = Shards.of([samples[n : n + 50] for n in range(0, 400, 50)])
    options: dict[str, Any] = {"supervision": supervision, "validation": planted(70, 2), "progress": progress}
    sae = train(shards, CONFIG, out, mesh=mesh, **options)
    return lines, {name: value.detach().clone() for name, value in sae.state_dict().items()}


def agree(lines: list[Progress], known: list[Progress]) -> None:
    """Assert what is promised of ranks: the losses within 1e-5, equal dead counts, the same last step."""
    assert [line.step for line in lines] == [line.step for line in known]
    assert [line.fvu for line in lines] == pytest.approx([line.fvu for line in known], rel=1e-5)
    assert [line.association for line in lines] == pytest.approx([line.association for line in known], rel=1e-5)
    assert [line.dead for line in lines] == [line.dead for line in known]


@pytest.mark.parametrize(
    ("sizes", "negatives", "assigned"),
    [((2, 1), "balanced", FIRST), ((1, 2), "none", SPREAD), ((2, 2), "assigned", FIRST)],
    ids=str,
)
def test_ranks_learn_the_labels_as_one_process_does(
    tmp_path: Path, sizes: tuple[int, int], negatives: str, assigned: tuple[int, ...]
) -> None:
    known, _ = trained(ALONE, tmp_path / "alone", negatives, 0, assigned)
    assert known[-1].association < 0.9 * known[0].association
    found = on_ranks(sizes, trained, tmp_path / "store", tmp_path / "sae", negatives, 0, assigned)
    agree(found[0][0], known)
    saved = load(tmp_path / "sae").state_dict()
    for _, tensors in found:
        assert all(torch.equal(saved[name], tensors[name]) for name in saved), "every rank has the same bits"


def trained_naively(mesh: Mesh, out: Path, which: str) -> list[Progress]:
    """Train as `trained` does, but with one thing left to each rank."""
    if which == "activities":
        Mesh.joined = lambda self, rows: rows  # type: ignore[method-assign]
    elif which == "shift":
        Mesh.spread = lambda self, value: value  # type: ignore[method-assign]
    return trained(mesh, out, "none")[0]


@pytest.mark.parametrize(("sizes", "which"), [((2, 1), "activities"), ((1, 2), "shift")], ids=str)
def test_terms_of_one_rank_alone_would_be_noticed(tmp_path: Path, sizes: tuple[int, int], which: str) -> None:
    known, _ = trained(ALONE, tmp_path / "alone", "none")
    lines = on_ranks(sizes, trained_naively, tmp_path / "store", tmp_path / "sae", which)[0]
    with pytest.raises(AssertionError):
        agree(lines, known)


def test_an_interrupted_training_with_labels_continues_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = on_ranks((2, 1), trained, tmp_path / "one", tmp_path / "whole", "none")[0][1]
    found = answers((2, 1), trained, tmp_path / "two", tmp_path / "sae", "none", 13)
    assert [error[0] for _, error in found] == ["KeyboardInterrupt"] * 2
    for _, tensors in on_ranks((2, 1), trained, tmp_path / "three", tmp_path / "sae", "none"):
        assert all(torch.equal(undisturbed[name], tensors[name]) for name in tensors)


def gradients(mesh: Mesh, negatives: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the gradient of all terms by a shift of every pre-activation, added up over the ranks, and the terms."""
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(11, VECTORS, 5, generator=generator)
    labels = torch.rand(11, 5, generator=generator) < 0.4
    layer = torch.nn.Linear(1, 5)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.zero_()
    shifted = own[mesh.dealt] + layer(torch.ones(1))
    found = terms(shifted, torch.zeros(()), labels[mesh.dealt], replace(SUPERVISION, negatives=negatives), mesh)
    found.total.backward()
    mesh.add_gradients(layer)
    assert layer.bias.grad is not None
    return layer.bias.grad, {name: float(value.detach()) for name, value in found._asdict().items()}


@pytest.mark.parametrize("negatives", ["none", "assigned", "balanced"])
def test_terms_and_gradients_are_those_of_the_whole_batch(tmp_path: Path, negatives: str) -> None:
    """11 samples on three ranks: 4, 4 and 3."""
    gradient, values = gradients(ALONE, negatives)
    for own, found in on_ranks((3, 1), gradients, tmp_path / "store", negatives):
        torch.testing.assert_close(own, gradient)
        assert found == pytest.approx(values, rel=1e-6)


def whole_terms(mesh: Mesh) -> float:
    """Return the supervised loss of samples that every rank has, as on the validation split."""
    sae, samples = TopKSAE(CONFIG.sae(48), seed=2, mesh=mesh), planted(20, 4)
    supervision = replace(SUPERVISION, l1=9.0, assigned=SPREAD)
    return float(_terms(sae, samples, sae.encode(samples.vectors), supervision).total.detach())


def test_the_loss_of_samples_that_all_ranks_have_is_whole(tmp_path: Path) -> None:
    found = on_ranks((2, 2), whole_terms, tmp_path / "store")
    assert found == pytest.approx([whole_terms(ALONE)] * 4, rel=1e-5)
