"""A dictionary that is known: each concept has one direction of its own and comes in three variants, with one each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError
from excise.neurons.timesteps import assign
from excise.sae import Samples, Shards, Supervision, TopKSAE, TrainConfig, card, train

CONCEPTS, VARIANTS, WIDTH, VECTORS = 5, 3, 48, 6
CONFIG = TrainConfig(expansion=2, k=4, lr=3e-3, batch=384, tokens=200_000, dead_after=10_000, seed=3)
SUPERVISION = Supervision(
    tuple(f"concept {c}" for c in range(CONCEPTS)), (0, 0, 0, 1, 1), tuple(range(CONCEPTS)), negatives="assigned"
)


def planted(count: int, seed: int) -> Samples:
    """Two of a sample's six vectors show its concept in one of its variants; all of them hold background."""
    directions = F.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    own, variants, background = directions.split([CONCEPTS, CONCEPTS * VARIANTS, 64 - CONCEPTS * (1 + VARIANTS)])
    generator = torch.Generator().manual_seed(seed)
    concept = torch.randint(CONCEPTS, (count,), generator=generator)
    variant = concept * VARIANTS + torch.randint(VARIANTS, (count,), generator=generator)
    states = torch.zeros(count, VECTORS, WIDTH)
    for _ in range(2):
        rows = torch.randint(len(background), (count, VECTORS), generator=generator)
        states += background[rows] * (0.5 + torch.rand(count, VECTORS, 1, generator=generator))
    states[:, :2] += (own[concept] + 2 * variants[variant])[:, None]
    return Samples(states, F.one_hot(concept, CONCEPTS).bool())


def fired(sae: TopKSAE, samples: Samples) -> Tensor:
    """`[n, m]`: each latent's largest code in each sample."""
    values, indices = sae.encode(samples.vectors)
    dense = torch.zeros(len(values), sae.config.m).scatter(1, indices, values)
    return dense.view(len(samples), VECTORS, -1).amax(1).detach()


def separated(sae: TopKSAE, samples: Samples) -> Tensor:
    """`[C, m]`: the probability that a sample of the concept makes a latent fire more than another one does (AUROC)."""
    codes, made = fired(sae, samples), []
    for c in range(CONCEPTS):
        there, absent = codes[samples.labels[:, c]], codes[~samples.labels[:, c]]
        more = (there[:, None] > absent).double().mean((0, 1))
        made.append(more + 0.5 * (there[:, None] == absent).double().mean((0, 1)))
    return torch.stack(made)


@pytest.fixture(scope="module")
def unsupervised(tmp_path_factory: pytest.TempPathFactory) -> TopKSAE:
    return train(planted(3000, 1), CONFIG, tmp_path_factory.mktemp("toy") / "sae")


def test_an_unsupervised_sae_splits_a_concept_into_its_variants(unsupervised: TopKSAE) -> None:
    assert float(separated(unsupervised, planted(300, 2)).amax(1).mean()) < 0.9


@pytest.mark.parametrize("start", ["from scratch", "fine-tuned"])
def test_a_supervised_one_gives_each_concept_the_latent_it_was_assigned(
    unsupervised: TopKSAE, tmp_path: Path, start: str
) -> None:
    samples, own, init = planted(3000, 1), SUPERVISION, None
    if start == "fine-tuned":
        taken = tuple(assign(separated(unsupervised, samples[:300])))
        # With negatives a latent that begins as one variant's may stay so: where it is silent, ReLU passes no gradient.
        init, own = unsupervised, replace(own, assigned=taken, negatives="none")
    sae = train(samples, CONFIG, tmp_path / "sae", supervision=own, init=init)
    apart = separated(sae, planted(300, 2))
    assert apart.argmax(1).tolist() == list(own.assigned)
    assert float(apart.amax(1).min()) > 0.97
    written = card(tmp_path / "sae")
    assert Supervision.from_json(written["supervision"]) == own


def test_training_stops_where_the_validation_samples_gain_no_more(tmp_path: Path) -> None:
    """What comes out is the best that was seen, not the last; and so it is where the run was interrupted after that."""
    few, own = planted(20, 1), replace(SUPERVISION, check_every=5, patience=3)

    def run(folder: str, until: int | None = None) -> TopKSAE:
        def stop(line: Any) -> None:
            if line.step == until:
                raise KeyboardInterrupt

        config = replace(CONFIG, log_every=1)
        return train(few, config, tmp_path / folder, supervision=own, validation=planted(60, 4), progress=stop)

    made = run("sae")
    lines = (tmp_path / "sae" / "log.jsonl").read_text().splitlines()
    last = len(lines)
    assert card(tmp_path / "sae")["tokens"] < CONFIG.tokens / 2
    best = last - 3 * 5
    for step, same in ((best, True), (last - 1, False)):
        with pytest.raises(KeyboardInterrupt):
            run(f"until {step}", step)
        there = safetensors.torch.load_file(tmp_path / f"until {step}.training" / "checkpoint" / "state.safetensors")
        assert torch.equal(there["sae.W_enc"], made.W_enc) is same
        for name, value in run(f"until {step}").state_dict().items():
            assert torch.equal(value, made.state_dict()[name]), name


def test_an_interrupted_supervised_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, tokens=12_000, log_every=5, checkpoint_every=10)
    own, samples, others = replace(SUPERVISION, check_every=4, patience=100), planted(300, 1), planted(60, 4)

    def run(folder: str, **options: Any) -> TopKSAE:
        return train(samples, config, tmp_path / folder, supervision=own, validation=others, **options)

    whole = run("whole")

    def stop(line: Any) -> None:
        if line.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("parts", progress=stop)
    again = run("parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["association"] < log[0]["association"]


@pytest.mark.parametrize("corrected", ["labels", "validation"])
def test_a_training_does_not_go_on_with_other_labels(tmp_path: Path, corrected: str) -> None:
    config = replace(CONFIG, tokens=6_000, log_every=5, checkpoint_every=5)

    def run(labels: Samples, validation: Samples, **options: Any) -> None:
        train(labels, config, tmp_path / "sae", supervision=SUPERVISION, validation=validation, **options)

    def stop(line: Any) -> None:
        if line.step == 10:
            raise KeyboardInterrupt

    right, wrong = [planted(300, 1), planted(60, 4)], []
    with pytest.raises(KeyboardInterrupt):
        run(*right, progress=stop)
    for name, samples in zip(("labels", "validation"), right, strict=True):
        wrong.append(Samples(samples.states, samples.labels.roll(1, 0)) if name == corrected else samples)
    with pytest.raises(ExciseError, match="other"):
        run(*wrong)


def test_samples_without_supervision_train_as_their_vectors_do(tmp_path: Path) -> None:
    config = replace(CONFIG, tokens=4000)
    assert train(planted(300, 1), config, tmp_path / "sae").config.d == WIDTH


def test_shards_of_samples_teach_as_much(tmp_path: Path) -> None:
    """Concepts that only one shard shows are learnt from it."""
    samples = planted(3000, 1)
    late = samples.labels[:, 0]

    shards = Shards.of([samples[rows] for rows in (~late, late)])
    apart = separated(train(shards, CONFIG, tmp_path / "sae", supervision=SUPERVISION), planted(300, 2))
    assert apart.argmax(1).tolist() == list(SUPERVISION.assigned)
    assert float(apart.amax(1).min()) > 0.97


def test_what_cannot_be_supervised_is_refused(tmp_path: Path) -> None:
    samples = planted(50, 1)

    def refused(match: str, features: Any = samples, **options: Any) -> None:
        with pytest.raises(ExciseError, match=match):
            train(features, CONFIG, tmp_path / "sae", **{"supervision": SUPERVISION, **options})

    refused("supervision needs Samples with labels", samples.vectors)
    refused("no sample shows 'concept 4'", Samples(samples.states, samples.labels & (torch.arange(5) < 4)))
    refused("labels for 4 concepts, not for 5", Samples(samples.states, samples.labels[:, :4]))
    refused("latent 99 was assigned", supervision=replace(SUPERVISION, assigned=(0, 1, 2, 3, 99)))
    refused("the SAE to continue from is", init=TopKSAE(CONFIG.sae(7)))
    refused("one kind", Shards((3, 3), lambda number: (samples, samples.vectors)[number][:3], "", VECTORS))
    with pytest.raises(ExciseError, match="samples are states"):
        Samples(samples.vectors, samples.labels)


def test_only_the_assigned_latents_are_supervised(unsupervised: TopKSAE, tmp_path: Path) -> None:
    """Without the SAE's own loss to follow, no other latent would move."""
    from excise.sae.trainer import _terms

    sae = TopKSAE(unsupervised.config)
    samples = planted(40, 5)
    _terms(sae, samples, sae.encode(samples.vectors), replace(SUPERVISION, l1=0.0)).total.backward()
    assert sae.W_enc.grad is not None
    assert sae.W_enc.grad.any(1).nonzero()[:, 0].tolist() == list(SUPERVISION.assigned)
