"""Supervised training on a tiny pipeline's block and text states: labels in, an SAE with a neuron a concept out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.app.training import supervised
from excise.app.training.supervised import (
    Labels,
    assigned_by_score,
    concept_scores,
    text_scores,
    train_on_block,
    train_on_text,
)
from excise.errors import ExciseError
from excise.neurons.timesteps import score
from excise.sae import SAEConfig, Supervision, TopKSAE, TrainConfig, card, load, save
from excise.sites import block_site, capture
from excise.sites.activations.block_shards import BlockShards, Labelled, capture_blocks_to, label_table

CONCEPTS = ("gun", "cat", "dog", "grass")
GROUPS = (("gun", "cat", "dog"), ("grass",))
CONFIG = TrainConfig(expansion=2, k=4, lr=3e-3, batch=64, tokens=4000, log_every=10)
PROMPTS = [
    Labelled(f"a {thing}{place}", (thing, *(("grass",) if place else ())))
    for thing in CONCEPTS[:3]
    for place in ("", " on grass")
]


@pytest.fixture(scope="module")
def shards(build_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> BlockShards:
    pipe = build_pipe()
    site = block_site(pipe, "up_blocks.0.attentions.0")
    folder = tmp_path_factory.mktemp("blocks") / "features"
    return capture_blocks_to(folder, pipe, site, PROMPTS * 2, CONCEPTS, steps=2, batch_size=3, dtype=torch.float32)


def test_a_block_is_trained_on_with_and_without_labels(shards: BlockShards, tmp_path: Path) -> None:
    plain = train_on_block(shards, tmp_path / "plain", CONFIG, Labels(supervised=False))
    assert "supervision" not in card(tmp_path / "plain")
    assert card(tmp_path / "plain")["site"]["path"] == shards.site.path
    train_on_block(shards, tmp_path / "own", CONFIG, Labels(groups=GROUPS))
    told = Supervision.from_json(card(tmp_path / "own")["supervision"])
    assert (told.concepts, told.groups, told.assigned) == (CONCEPTS, (0, 0, 0, 1), (0, 1, 2, 3))
    tuned = Labels(groups=GROUPS, start=str(tmp_path / "plain"))
    train_on_block(shards, tmp_path / "tuned", CONFIG, tuned)
    told = Supervision.from_json(card(tmp_path / "tuned")["supervision"])
    assert list(told.assigned) == assigned_by_score(plain, shards, (0, 0, 0, 1))
    assert load(tmp_path / "tuned").config == plain.config


def test_scores_of_concepts_by_hand(shards: BlockShards, tmp_path: Path) -> None:
    sae = train_on_block(shards, tmp_path / "plain", replace(CONFIG, tokens=256), Labels(supervised=False))
    states = torch.cat([part.states for part in shards])
    labels = torch.cat([part.labels for part in shards])
    values, indices = sae.encode(states)
    dense = torch.zeros(*states.shape[:3], sae.config.m).scatter(-1, indices, values).double().detach()
    made = concept_scores(sae, shards)
    for c in range(len(CONCEPTS)):
        own, others = (dense[rows].mean((0, 2)) for rows in (labels[:, c], ~labels[:, c]))
        torch.testing.assert_close(made[c], score(own, others))


@pytest.mark.parametrize("most", [5, 8, 16, 512])
def test_early_stopping_looks_at_all_steps(shards: BlockShards, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Every n-th picture at a step, across shards, n such that no step is passed by."""
    monkeypatch.setattr(supervised, "LOOKED_AT", most)
    wanted = range(1, len(shards.files))
    made = supervised._thinned(shards, wanted)
    assert made is not None
    parts = [part for n, part in enumerate(shards) if n in wanted]
    states = torch.cat([part.states.flatten(0, 1) for part in parts])
    labels = torch.cat([part.labels.repeat_interleave(2, 0) for part in parts])
    stride = {5: 5, 8: 3, 16: 3, 512: 1}[most]
    assert torch.equal(made.states, states[::stride])
    assert torch.equal(made.labels, labels[::stride])
    assert len(made) <= most
    assert {n % 2 for n in range(0, len(states), stride)} == {0, 1}


def test_text_states_are_supervised_by_their_largest_code(tiny_pipe: Any, tiny_site: Any, tmp_path: Path) -> None:
    config, how = replace(CONFIG, batch=77 * 4, tokens=77 * 200), Labels(groups=GROUPS, negatives="assigned")
    others = ["nothing at all", "a picture of a tree"]
    train_on_text(tiny_pipe, tiny_site, PROMPTS * 4, CONCEPTS, tmp_path / "sae", config, how, others=others)
    told = card(tmp_path / "sae")
    assert told["supervision"]["pooling"] == "max"
    assert told["corpus"] == "24 labelled prompts and 2 others"


def test_prompts_padded_to_the_longest_of_their_batch_are_evened() -> None:
    short, long = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    made = supervised._as_one([short, long])
    assert torch.equal(made[:2, :3], short)
    assert torch.equal(made[:2, 3:], short[:, -1:].expand(-1, 2, -1))
    assert torch.equal(made[2:], long)


def test_fine_tuning_on_text_takes_the_neurons_that_score(tiny_pipe: Any, tiny_site: Any, tmp_path: Path) -> None:
    sae = TopKSAE(SAEConfig(tiny_site.width, 2 * tiny_site.width, 4), seed=3)
    save(sae, tmp_path / "plain", {})
    states = torch.cat(
        [batch.states[tiny_site] for batch in capture(tiny_pipe, [tiny_site], [p.prompt for p in PROMPTS])]
    )
    labels = label_table(PROMPTS, CONCEPTS)
    loudest = torch.zeros(len(PROMPTS), sae.config.m, dtype=torch.float64)
    for n, prompt in enumerate(states):
        for state in prompt:
            for value, i in zip(*(part.tolist() for part in sae.encode(state)), strict=True):
                loudest[n, i] = max(float(loudest[n, i]), value)
    found = text_scores(sae, states, labels)
    for c in range(len(CONCEPTS)):
        own, others = (loudest[rows].mean(0)[None] for rows in (labels[:, c], ~labels[:, c]))
        torch.testing.assert_close(found[c], score(own, others)[0])
    config = replace(CONFIG, batch=77 * 4, tokens=77 * 8)
    how = Labels(groups=GROUPS, start=str(tmp_path / "plain"), validation=0.0)
    train_on_text(tiny_pipe, tiny_site, PROMPTS, CONCEPTS, tmp_path / "tuned", config, how)
    told = Supervision.from_json(card(tmp_path / "tuned")["supervision"])
    taken: list[int] = []
    for own in found:
        taken.append(max((i for i in range(sae.config.m) if i not in taken), key=lambda i: float(own[i])))
    assert list(told.assigned) == taken


def test_what_cannot_be_learnt_is_said(tiny_pipe: Any, tiny_site: Any, shards: BlockShards, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="'grass' is in none of the 1 groups"):
        train_on_block(shards, tmp_path / "sae", CONFIG, Labels(groups=GROUPS[:1]))
    with pytest.raises(ExciseError, match="'grass' is not among the 2 concepts"):
        train_on_text(tiny_pipe, tiny_site, PROMPTS, CONCEPTS[:2], tmp_path / "sae", CONFIG, Labels())


def test_the_first_groups_concepts_choose_their_neurons_first() -> None:
    from excise.app.training.supervised import _greedy

    scores = torch.tensor([[5.0, 4.0, 0.0], [9.0, 1.0, 3.0]])
    assert _greedy(scores, [0, 0]) == [0, 2], "in the order they are named"
    assert _greedy(scores, [1, 0]) == [1, 0], "the second one's group is the first"
