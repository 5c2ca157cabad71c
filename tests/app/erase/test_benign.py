"""Prompts as users write them: which ones a concept gets, and what SNCE does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import sae
from excise.app.erase.benign import with_benign
from excise.app.training import sae_cache
from excise.app.training.sae_cache import held_out, planned, train_planned
from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.concepts.everyday import BENIGN, everyday
from excise.erasers.artefact.verdict import in_words
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE, TrainConfig
from excise.statistics import wilson

Call = Callable[..., Any]
CONFIG = SNCEConfig(site="encoder.layers.2", permutations=20, lam=1.5, unit="code")
LIKE_GUNS = tuple(
    f"a photo of a gun-like {noun}, 35mm film" for noun in ("bus", "frog", "star", "house", "rose", "cat")
)


def test_everyday_prompts_differ_and_are_the_same_each_time() -> None:
    texts = everyday(BENIGN)
    assert len(set(texts)) == BENIGN and texts == everyday(BENIGN)
    assert texts != everyday(BENIGN, seed=1) and texts[:50] == everyday(50)
    assert not any(mentioned(text, ("child", "girl", "boy", "kid", "baby", "teenager", "naked")) for text in texts)
    with pytest.raises(ExciseError, match="ask for 0 to"):
        everyday(10**9)


def opened(pipe: Any, eraser: Any, prompts: tuple[str, ...]) -> int:
    """How many prompts the attached eraser changes."""
    with torch.no_grad():
        plain = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in prompts]
        with eraser.attach(pipe):
            edited = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in prompts]
    return sum(not torch.equal(one, other) for one, other in zip(plain, edited, strict=True))


def test_the_threshold_sees_every_second_benign_prompt_and_the_others_are_measured(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept
) -> None:
    prompts = ("a gun-like bus", "a photo of a gun-like frog", *everyday(14))
    plain = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    eraser = fit(tiny_pipe, replace(gun, benign=(*prompts, "the gun")), CONFIG, sae=word_sae)  # a mention is left out
    kept = [text for text in prompts if not mentioned(text, ("gun",))]
    assert len(kept) == len(everyday(14)), "hyphens end a word"
    assert opened(tiny_pipe, eraser, tuple(kept[::2])) == 0
    touched = opened(tiny_pipe, eraser, tuple(kept[1::2]))
    assert eraser.verdict["benign"] == {"touched": touched, "of": len(kept[1::2])}
    assert eraser.measured["fires"]["benign"] == pytest.approx(touched / len(kept[1::2]))
    assert eraser.edits[0].threshold >= plain.edits[0].threshold
    assert "benign" not in plain.verdict and "benign" not in plain.measured["fires"]
    most = 100 * wilson(touched, len(kept[1::2])).high
    assert dict(in_words(eraser.verdict))["benign prompts"].endswith(f"held out; up to {most:.1f} % in general (95 %)")


def test_an_edit_of_every_prompt_has_no_share_of_benign_ones(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    eraser = fit(tiny_pipe, replace(gun, benign=tuple(everyday(6))), replace(CONFIG, source="concept"), sae=word_sae)
    assert "benign" not in eraser.verdict


def test_which_prompts_a_concept_gets(tiny_pipe: Any, gun: Concept, tmp_path: Path) -> None:
    assert with_benign(gun, None).benign == ()
    assert with_benign(gun, tiny_pipe).benign == tuple(everyday(BENIGN))
    (tmp_path / "held_out.txt").write_text("a red tram\na frozen lake\n")
    assert with_benign(gun, tiny_pipe, sae=tmp_path).benign == ("a red tram", "a frozen lake")
    (tmp_path / "own.txt").write_text("a fox\na fox\nan owl\n")
    for pipe in (None, tiny_pipe):
        assert with_benign(gun, pipe, sae=tmp_path, controls=tmp_path / "own.txt").benign == ("a fox", "an owl")
    (tmp_path / "own.txt").write_text("a fox\na gun\n")
    with pytest.raises(ExciseError, match="fewer than two prompts without 'gun'"):
        with_benign(gun, None, controls=tmp_path / "own.txt")


def test_a_large_corpus_is_not_trained_on_whole(
    tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path))
    monkeypatch.setattr(sae_cache, "LEAST_CORPUS", 200)
    corpus = everyday(250)
    config = TrainConfig(expansion=2, k=4, batch=64, tokens=128)
    training = planned(tiny_pipe, corpus, config, {})
    assert training.held_out == tuple(corpus[::100]) and not set(training.held_out) & set(training.prompts)
    assert sorted((*training.held_out, *training.prompts)) == sorted(corpus)
    (folder,) = training.left
    train_planned(tiny_pipe, training, folder)
    assert held_out(training.folder) == corpus[::100]
    assert sae.load(folder).config.m == 128
    assert planned(tiny_pipe, corpus[:150], config, {}).held_out == ()
