"""Planted features: the metrics tell a good SAE from a mixed one, and identification finds what was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from excise.neurons.contrast import contrast, i_cdf, l0_t
from excise.neurons.identification import identify
from excise.sae import TrainConfig, train
from tests.neurons.planted import CONCEPT, STRUCTURE, World, mixed, perfect, read

TOLERANCE = 0.1
"""Of eq. 6. With more features than dimensions every latent hears a little of the others: at `excise find`'s 0.02 the
concept's own is dropped in one world of nine, though the SAE has it; the structural one is at a quarter or more."""
RECIPE = TrainConfig(expansion=2, k=4, lr=3e-3, batch=512, tokens=400_000, decay=0.3, checkpoint_every=10_000)


def test_the_metrics_rank_a_good_sae_above_a_mixed_one() -> None:
    counts = []
    for seed in range(20):
        world = World(seed)
        sides = world.pairs()
        good, poor = (contrast(*(read(sae, side) for side in sides)) for sae in (perfect(world), mixed(world)))
        assert i_cdf(good.frequency) > i_cdf(poor.frequency)
        assert good.best > poor.best
        counts.append([l0_t(made.frequency, 0.75) for made in (good, poor)])
    assert all(good >= poor for good, poor in counts)
    assert sum(good > poor for good, poor in counts) >= 15


def found(world: World, folder: Path) -> tuple[bool, bool]:
    """Whether the first neuron of an SAE trained on the world is the concept's latent, and whether the structural
    feature's is anywhere among the first five."""
    sae = train(world.corpus(), RECIPE, folder)
    ranking = identify(*(read(sae, side) for side in world.pairs()), tolerance=TOLERANCE)
    cosine = sae.W_dec.detach() @ world.directions.T
    own, structural = int(cosine[:, CONCEPT].argmax()), int(cosine[:, STRUCTURE].argmax())
    first = [entry.index for entry in ranking.entries[:5]]
    return first[:1] == [own], structural in first


@pytest.mark.parametrize("seed", range(3))
def test_identification_finds_the_planted_feature_in_a_trained_sae(seed: int, tmp_path: Path) -> None:
    assert found(World(seed), tmp_path / "sae") == (True, False)


@pytest.mark.slow
def test_it_does_in_99_of_100_worlds(tmp_path: Path) -> None:
    worlds = [found(World(seed), tmp_path / str(seed)) for seed in range(200)]
    assert sum(own for own, _ in worlds) >= 198
    assert not any(structural for _, structural in worlds)
