"""Erasers are fitted on the model itself, and judged by themselves, whatever is attached to the pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import pytest
import torch

import excise
from excise.concepts import Concept
from excise.erasers import Attachment, Eraser, SAEEdit
from excise.methods.build import build_eraser
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE, save
from excise.sites import Site

CONFIG = SNCEConfig(site="encoder.layers.2", tolerance=0.5, permutations=20, examine=3)


@pytest.fixture
def other(gun_eraser: Eraser, word_sae: TopKSAE, tiny_site: Site) -> Callable[[str], Eraser]:
    """An eraser of that name which changes every prompt."""
    edit = SAEEdit.from_sae(word_sae, tiny_site, range(6, 20), gate="relu", lam=0.2)
    return lambda name: replace(gun_eraser, name=name, edits=(edit,))


def quietly(make: Callable[[], Eraser]) -> Eraser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a random pipeline's erasers are weak
        return make()


def test_a_fit_beside_an_eraser_of_its_name_is_the_same_to_the_bit(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, other: Callable[[str], Eraser]
) -> None:
    both = replace(gun, mentions=("gun", "crown"))
    alone = quietly(lambda: fit(tiny_pipe, both, CONFIG, sae=word_sae))
    assert [row["changed"] > 0 for row in alone.verdict["mentions"]] == [True, False], "crown is missed"
    with other("gun-snce").attach(tiny_pipe) as attached:
        assert quietly(lambda: fit(tiny_pipe, both, CONFIG, sae=word_sae)).pack() == alone.pack()
        assert excise.list_erasers(tiny_pipe) == {"gun-snce": attached.status()}
        again = quietly(lambda: fit(tiny_pipe, both, CONFIG, sae=word_sae))
    with again.attach(tiny_pipe):
        assert quietly(lambda: fit(tiny_pipe, both, CONFIG, sae=word_sae)).pack() == alone.pack()


def test_methods_joined_beside_an_eraser_of_their_name(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, other: Callable[[str], Eraser], tmp_path: Path
) -> None:
    save(word_sae, tmp_path / "sae", {"site": {"component": "text_encoder", "path": CONFIG.site, "width": 64}})
    settings = {"snce.gate": "relu", "snce.permutations": 20}

    def make() -> Eraser:
        return quietly(lambda: excise.erase(tiny_pipe, gun, "snce+uce", sae=tmp_path / "sae", **settings))

    alone = make()
    with other("gun-snce+uce").attach(tiny_pipe), other("gun-uce").attach(tiny_pipe, strength=0.5):
        assert make().pack() == alone.pack()


def test_an_eraser_on_trial_acts_in_no_image_of_another_thread(
    tiny_pipe: Any, gun_edit: SAEEdit, gun: Concept, gun_eraser: Eraser
) -> None:
    def states() -> torch.Tensor:
        with torch.no_grad():
            made: torch.Tensor = tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, False)[0]
        return made

    plain, seen, listed = states(), list[bool](), list[dict[str, Any]]()

    def elsewhere(*_: Any) -> None:
        if current_thread() is main_thread():
            thread = Thread(target=lambda: seen.append(torch.equal(states(), plain)))
            thread.start()
            thread.join()
            listed.append(excise.list_erasers(tiny_pipe))

    with tiny_pipe.text_encoder.register_forward_hook(elsewhere):
        quietly(lambda: build_eraser(tiny_pipe, [gun_edit], gun, "mine", {}, {}))
    assert len(seen) > 2 and all(seen) and not any(listed)
    with Attachment(gun_eraser, tiny_pipe, trial=True) as trial:
        assert torch.equal(states(), plain) and trial.shift > 0 and not trial.active
        gun_eraser.attach(tiny_pipe).detach()
    assert not vars(tiny_pipe).get("encode_prompt")
