"""One SAE on several ranks against the same training in one process."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import excise.sae.trainer as trainer
from excise.errors import ExciseError
from excise.sae import Progress, SAEConfig, TopKSAE, TrainConfig, load, train
from excise.sae.losses import aux_k, loss
from excise.sae.model import DIVIDED
from excise.sae.parallel import ALONE, Mesh
from excise.sae.sparse import drawn
from tests.sae.ranks import on_ranks

D, STEPS = 32, 50
CONFIG = TrainConfig(
    expansion=8, k=4, lr=3e-3, batch=65, tokens=65 * STEPS, log_every=1, checkpoint_every=1000, dead_after=400, seed=4
)
"""65 vectors a batch: two ranks have 33 and 32 of them. More latents die than the auxiliary loss keeps."""


def features() -> torch.Tensor:
    """Sums of a few of 60 directions, from rare to frequent."""
    generator = torch.Generator().manual_seed(1)
    directions = F.normalize(torch.randn(60, D, generator=torch.Generator().manual_seed(0)), dim=1)
    on = torch.rand(900, 60, generator=generator) < torch.linspace(0.002, 0.15, 60)
    return (on * (1 + torch.rand(900, 60, generator=generator))) @ directions + 0.5


def trained(mesh: Mesh, out: Path, config: TrainConfig) -> tuple[list[Progress], dict[str, torch.Tensor]]:
    """Return the log's lines, which rank 0 alone has, and the trained tensors."""
    lines: list[Progress] = []
    sae = train(features(), config, out, mesh=mesh, progress=lines.append)
    return lines, {name: value.detach().clone() for name, value in sae.state_dict().items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Progress]:
    lines, _ = trained(ALONE, tmp_path_factory.mktemp("alone") / "sae", CONFIG)
    assert lines[-1].dead * 8 * D > aux_k(8 * D, D), "else all dead latents would be kept"
    assert lines[-1].fvu < 0.9 * lines[0].fvu
    return lines


def agree(lines: list[Progress], known: list[Progress]) -> None:
    """Assert what is promised of ranks: the mse within 1e-5, equal dead counts."""
    assert [line.step for line in lines] == [line.step for line in known]
    assert [line.fvu for line in lines] == pytest.approx([line.fvu for line in known], rel=1e-5)
    assert [line.dead for line in lines] == [line.dead for line in known]
    assert [line.l0 for line in lines] == pytest.approx([line.l0 for line in known], rel=1e-6)


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2), (3, 1)], ids=str)
def test_ranks_train_what_one_process_does(tmp_path: Path, alone: list[Progress], sizes: tuple[int, int]) -> None:
    found = on_ranks(sizes, trained, tmp_path / "store", tmp_path / "sae", CONFIG)
    agree(found[0][0], alone)
    assert all(not lines for lines, _ in found[1:]), "only rank 0 reports"
    saved = load(tmp_path / "sae").state_dict()
    for _, tensors in found:
        assert all(torch.equal(saved[name], tensors[name]) for name in saved), "every rank has the same bits"


def trained_naively(mesh: Mesh, out: Path, which: str) -> list[Progress]:
    """Train as `trained` does, but with one statistic left to each rank, as wrapping an SAE in DDP would."""
    if which == "Var(e)":
        Mesh.average = lambda self, mean, share: mean  # type: ignore[method-assign]
    elif which == "fired":
        Mesh.most = lambda self, values: values  # type: ignore[method-assign]
    elif which == "vectors":
        counted = trainer.idle_tokens
        trainer.idle_tokens = lambda idle, codes, threshold, vectors, mesh: counted(idle, codes, threshold, None, mesh)  # type: ignore[assignment]
    return trained(mesh, out, CONFIG)[0]


@pytest.mark.parametrize("which", ["Var(e)", "fired", "vectors"])
def test_a_statistic_of_one_rank_alone_would_be_noticed(tmp_path: Path, alone: list[Progress], which: str) -> None:
    lines = on_ranks((2, 1), trained_naively, tmp_path / "store", tmp_path / "sae", which)[0]
    assert [line.step for line in lines] == [line.step for line in alone], "it trains on"
    with pytest.raises(AssertionError):
        agree(lines, alone)


SHAPE = SAEConfig(d=10, m=47, k=6)


def sae_of(mesh: Mesh = ALONE) -> TopKSAE:
    """An SAE with biases of its own, or this rank's rows of it."""
    whole, sae = TopKSAE(SHAPE, seed=3), TopKSAE(SHAPE, seed=3, mesh=mesh)
    rows = mesh.rows(SHAPE.m)
    with torch.no_grad():
        whole.b_enc.copy_(0.2 * torch.randn(SHAPE.m, generator=torch.Generator().manual_seed(8)))
        sae.b_enc.copy_(whole.b_enc[rows])
        sae.b_pre.fill_(0.1)
    assert torch.equal(sae.W_enc, whole.W_enc[rows])
    return sae


def passes(mesh: Mesh, activation: str, n_dead: int) -> dict[str, Any]:
    """Return this rank's codes, losses and gradients of one batch of 21 vectors."""
    sae, x = sae_of(mesh), torch.randn(21, SHAPE.d, generator=torch.Generator().manual_seed(5))
    own = x[mesh.dealt]
    sae.shortlist = 4 if activation == "shortlist" else 0
    codes = sae.encode_batch(own, len(x)) if activation == "batchtopk" else sae.encode(own)
    dead = (torch.arange(SHAPE.m) >= SHAPE.m - n_dead)[mesh.rows(SHAPE.m)]
    parts = loss(sae, own, sae.decode(codes), 0.7, dead, 0.5, len(own) / len(x))
    parts.total.backward()
    mesh.add_gradients(sae)
    dense = torch.zeros(len(own), len(sae.W_enc)).scatter_add(1, codes.indices, codes.values.detach())
    return {
        "codes": dense,
        "terms": torch.stack([parts.mse, parts.aux]).detach(),
        "gradients": {name: parameter.grad for name, parameter in sae.named_parameters()},
    }


@pytest.mark.parametrize(
    ("sizes", "activation", "n_dead"),
    [((2, 3), "topk", 30), ((2, 3), "batchtopk", 3), ((1, 9), "topk", 20), ((2, 2), "shortlist", 20)],
    ids=str,
)
def test_codes_terms_and_gradients_are_those_of_the_whole(
    tmp_path: Path, sizes: tuple[int, int], activation: str, n_dead: int
) -> None:
    """47 latents on 3 or 9 ranks: of 9, each has fewer than k. The first of 3 has no dead ones."""
    whole = passes(ALONE, activation, n_dead)
    found = on_ranks(sizes, passes, tmp_path / "store", activation, n_dead)
    meshes = [Mesh(*sizes, rank) for rank in range(len(found))]
    for mesh, own in zip(meshes, found, strict=True):
        rows = mesh.rows(SHAPE.m)
        torch.testing.assert_close(own["codes"], whole["codes"][mesh.dealt, rows])
        for name, gradient in own["gradients"].items():
            of_these = whole["gradients"][name][rows] if name in DIVIDED else whole["gradients"][name]
            torch.testing.assert_close(gradient, of_these, rtol=1e-4, atol=1e-6)
        together = sum(other["terms"] for at, other in zip(meshes, found, strict=True) if at.column == mesh.column)
        torch.testing.assert_close(together, whole["terms"])
    assert float(whole["terms"][1]) > 0


def test_first_rows_are_drawn_in_parts_to_the_bits_of_one_draw() -> None:
    for m, d in ((3 * 16384 + 5, 3), (40_000, 1), (7, 2)):
        whole = torch.randn(m, d, generator=torch.Generator().manual_seed(6))
        assert torch.equal(drawn(m, d, 6, slice(0, m)), whole)
        for column in range(4):
            rows = Mesh(1, 4, column).rows(m)
            assert torch.equal(drawn(m, d, 6, rows), whole[rows])


def test_the_rows_of_all_ranks_are_all_rows() -> None:
    for m, ranks in ((47, 9), (8, 8), (10, 3)):
        cuts = [Mesh(2, ranks, rank).rows(m) for rank in range(ranks)]
        assert [n for cut in cuts for n in range(m)[cut]] == list(range(m))
    with pytest.raises(ExciseError, match="3 latents cannot be divided among 4 ranks"):
        Mesh(1, 4).rows(3)


def peak(mesh: Mesh, out: Path) -> int:
    """Train 2^20 latents for two steps, and return the most memory that this rank held, in bytes."""
    config = TrainConfig(expansion=1 << 16, k=8, batch=400, tokens=800, log_every=1, dead_after=1)
    train(torch.randn(450, 16, generator=torch.Generator().manual_seed(2)), config, out, mesh=mesh)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_two_ranks_hold_less_than_sixty_percent_each_of_a_million_latents(tmp_path: Path) -> None:
    """A fork's peak begins with what this process holds, so both are measured by forks of it."""
    whole = on_ranks((1, 1), peak, tmp_path / "store", tmp_path / "one", deadline=600)[0]
    halves = on_ranks((1, 2), peak, tmp_path / "store2", tmp_path / "two", deadline=600)
    assert max(halves) < 0.6 * whole
    assert load(tmp_path / "two").config.m == 1 << 20
