"""SAEs are trained and measured on the model's own states, whatever is attached to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.app.erase.finding import token_codes
from excise.app.reading.corpus import Corpus
from excise.app.reading.group_states import TokenParts
from excise.app.reading.reading import Reading
from excise.app.training.labelled import train_block_sae
from excise.app.training.supervised import Labels, train_on_text
from excise.app.training.text import train_sae
from excise.erasers import Eraser, SAEEdit
from excise.sae import SAEConfig, TopKSAE, TrainConfig, card
from excise.sites import Site
from excise.sites.activations.block_shards import Labelled
from excise.sites.denoiser import block_site
from tests.app.reading.test_group_states import corpus

__all__ = ["corpus"]

PROMPTS = [f"a {thing} {place}" for thing in ("gun", "cat", "rose", "bus") for place in ("", "on grass", "on sand")]
CONFIG = TrainConfig(tokens=4096, batch=256, expansion=2, k=4)
ROWS = [Labelled(prompt, (prompt.split()[1],)) for prompt in PROMPTS]


@pytest.fixture
def loud(gun_eraser: Eraser, word_sae: TopKSAE) -> Eraser:
    """An eraser at the first layer that changes every prompt."""
    site = Site("text_encoder", "encoder.layers.0", 64)
    edit = SAEEdit.from_sae(word_sae, site, range(6, 40), gate="relu", lam=2.0)
    return replace(gun_eraser, edits=(edit,))


def of_api(pipe: Any, site: Site, out: Path) -> Any:
    return excise.train_sae(pipe, PROMPTS, site=site.path, out=out, tokens=4096, batch=256, expansion=2, k=4)


def of_shards(pipe: Any, site: Site, out: Path) -> Any:
    return train_sae(pipe, site, PROMPTS, CONFIG, out, card={}, padding=0.5, reading=Reading(states="stored"))


def of_labels(pipe: Any, site: Site, out: Path) -> Any:
    how = Labels(negatives="assigned")
    return train_on_text(pipe, site, ROWS, ("gun", "cat", "rose", "bus"), out, CONFIG, how)


def of_pictures(pipe: Any, site: Site, out: Path) -> Any:
    config, site = replace(CONFIG, batch=32, tokens=256), block_site(pipe, "up_blocks.0.attentions.0")
    return train_block_sae(
        pipe, site, [Labelled(text, ()) for text in PROMPTS[:2]], config, out, Labels(supervised=False), steps=2
    )


@pytest.mark.parametrize("train", [of_api, of_shards, of_labels, of_pictures])
def test_training(
    build_pipe: Any, tiny_site: Site, loud: Eraser, train: Callable[[Any, Site, Path], TopKSAE], tmp_path: Path
) -> None:
    pipe = build_pipe()
    with loud.attach(pipe, enabled=False):  # a wrapped encoder reads in other batches, which round otherwise
        alone = train(pipe, tiny_site, tmp_path / "alone").state_dict()
    with loud.attach(pipe) as attachment:
        beside = train(pipe, tiny_site, tmp_path / "attached").state_dict()
        assert attachment.status()["prompts_encoded"] == attachment.status()["rows_edited"] == 0
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    one, other = (card(tmp_path / name).get("metrics", {}) for name in ("alone", "attached"))
    assert {k: v for k, v in one.items() if "second" not in k} == {k: v for k, v in other.items() if "second" not in k}


def test_states_of_a_corpus_and_a_prompts_codes(tiny_pipe: Any, tiny_site: Site, loud: Eraser, corpus: Corpus) -> None:
    sae = TopKSAE(SAEConfig(tiny_site.width, 2 * tiny_site.width, 4), seed=3)

    def read() -> tuple[torch.Tensor, list[Any]]:
        states = TokenParts(corpus, 0.5).read(tiny_pipe, [tiny_site], 0)[tiny_site]
        return states, [token_codes(tiny_pipe, sae, tiny_site, "a gun on grass", neuron) for neuron in range(20)]

    with loud.attach(tiny_pipe, enabled=False):
        states, codes = read()
    with loud.attach(tiny_pipe):
        beside, codes_beside = read()
    assert torch.equal(states, beside) and codes == codes_beside
