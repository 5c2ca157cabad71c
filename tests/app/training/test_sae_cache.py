from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise import sae
from excise.app.audit.inputs import saes_of
from excise.app.training.sae_cache import cached_sae, cost_of, planned, train_planned
from excise.erasers import Eraser, SAEEdit
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
from excise.sae import TrainConfig
from excise.sites import Site
from tests import tiny

CONFIG = TrainConfig(expansion=2, k=4, batch=64, tokens=256)
PROMPTS = [f"a {what} on {where}" for what in ("gun", "cat", "rose") for where in ("grass", "sand", "snow")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.build("sdxl")


def trained(pipe: Any, *, left: int | None = None, **changes: Any) -> Path:
    training = planned(pipe, PROMPTS, replace(CONFIG, **changes), {"model": "tiny"})
    for folder in list(training.left)[:left]:
        train_planned(pipe, training, folder)
    return training.folder


def test_what_was_trained_is_found_again_by_weights_sites_and_recipe(pipe: Any, cache: Path) -> None:
    assert cached_sae(pipe) is None
    trained(pipe, left=1)
    assert cached_sae(pipe) is None, "an SAE of one of two text encoders is not enough"
    folder = trained(pipe)
    assert cached_sae(pipe) == folder and folder.is_relative_to(cache)
    assert {name: sae.card(own)["model"] for name, own in sae.saes_in(folder).items()} == {
        "text_encoder": "tiny",
        "text_encoder_2": "tiny",
    }
    assert planned(pipe, PROMPTS, CONFIG, {}).left == {}
    other = planned(pipe, PROMPTS, replace(CONFIG, k=8), {})
    assert other.folder != folder and len(other.left) == 2
    assert planned(pipe, PROMPTS[1:], CONFIG, {}).folder != folder
    place = Site("text_encoder", "encoder.layers.0", 64)
    assert cached_sae(pipe, place) is None
    assert cached_sae(tiny.build("sd1")) is None


def test_an_audit_of_ones_own_model_finds_the_sae_that_was_trained_for_it(pipe: Any) -> None:
    own = [sae.load(place) for place in sae.saes_in(trained(pipe)).values()]
    site = Site("text_encoder", "encoder.layers.1", len(own[0].b_pre))
    edit = SAEEdit.from_sae(own[0], site, [1])
    eraser = Eraser((edit,), "gun", "gun", canary=("a gun",))
    assert set(saes_of(eraser, pipe=pipe)) == {sae_digest(own[0])} == {edit.sae_digest}
    assert saes_of(eraser) == {}, "without the model it is not known which SAEs are its own"
    trained(pipe, seed=1)
    assert saes_of(eraser, pipe=pipe) == {}, "the newest is another SAE"


def test_the_last_of_several_trainings_is_taken(pipe: Any) -> None:
    first = trained(pipe)
    second = trained(pipe, seed=1)
    assert first != second and cached_sae(pipe) == second


def test_weights_that_changed_are_another_model(cache: Path) -> None:
    own = tiny.build("sd1")
    trained(own)
    assert cached_sae(own) is not None
    next(own.text_encoder.parameters()).data.add_(1)
    assert cached_sae(own) is None


def test_the_cost_is_said_before_the_work_and_none_of_it_is_kept(pipe: Any, cache: Path) -> None:
    cost = cost_of(pipe, planned(pipe, PROMPTS, CONFIG, {}))
    assert cost.prompts == len(PROMPTS) and cost.minutes > 0 and not cache.exists()
    folder = trained(pipe)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size <= cost.bytes <= 3 * size
    assert str(cost).startswith("9 prompts, about 1 min, ")


def test_no_prompts(pipe: Any) -> None:
    with pytest.raises(ExciseError, match="no prompts"):
        planned(pipe, [], CONFIG, {})
