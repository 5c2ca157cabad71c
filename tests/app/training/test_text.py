from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from excise.app.reading import vectors as reading
from excise.app.training.text import shown, train_sae
from excise.errors import ExciseError
from excise.sae import TrainConfig, card
from excise.sites.activations.token_shards import capture_tokens_to

PROMPTS = ["a gun", "a cat on grass", "a dog in the sky", "a bus"]
CONFIG = TrainConfig(tokens=600, batch=100, k=4)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY", 0)


def test_the_card_tells_what_is_left_of_the_final_state(tiny_pipe: Any, tiny_site: Any, tmp_path: Path) -> None:
    train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, tmp_path / "sae", card={})
    assert 0 < card(tmp_path / "sae")["metrics"]["final_state_cosine"] <= 1
    assert card(tmp_path / "sae")["prompts"] == 4


@pytest.mark.usefixtures("on_disk")
def test_features_of_other_prompts_or_another_site_are_made_anew(
    tiny_pipe: Any, tiny_site: Any, tmp_path: Path
) -> None:
    other = dataclasses.replace(tiny_site, path="encoder.layers.1")
    whole = train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, tmp_path / "whole", card={})
    for n, (site, prompts) in enumerate([(tiny_site, PROMPTS), (tiny_site, PROMPTS[::-1]), (other, PROMPTS)]):
        out, read = tmp_path / f"sae{n}", []
        capture_tokens_to(tmp_path / f"sae{n}.features", tiny_pipe, [site], prompts)
        made = train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, out, card={}, captured=read.append)
        assert read == [4]
        assert (made.W_enc - whole.W_enc).abs().max() < 1e-2
        assert not (tmp_path / f"sae{n}.features").exists()


@pytest.mark.usefixtures("on_disk")
def test_a_folder_that_is_not_ours_is_not_deleted(tiny_pipe: Any, tiny_site: Any, tmp_path: Path) -> None:
    (tmp_path / "sae.features").mkdir()
    (tmp_path / "sae.features" / "mine").write_text("x")
    with pytest.raises(ExciseError, match="holds something else"):
        train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, tmp_path / "sae", card={})
    assert (tmp_path / "sae.features" / "mine").exists()


@pytest.mark.parametrize("out", ["full", "file", "file/inside"])
def test_a_place_that_cannot_be_written_is_refused_before_any_prompt_is_read(
    tiny_pipe: Any, tiny_site: Any, tmp_path: Path, out: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "file").write_text("x")
    read: list[int] = []
    with pytest.raises(ExciseError, match="name a folder" if out == "file" else "choose another"):
        train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, tmp_path / out, card={}, captured=read.append)
    assert read == []


def test_reading_and_training_are_shown_one_after_the_other(tiny_pipe: Any, tiny_site: Any, tmp_path: Path) -> None:
    told: list[Any] = []

    @contextmanager
    def working(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        told.append(("begin", total))
        yield told.append
        told.append("end")

    with shown(working, len(PROMPTS), CONFIG.tokens) as (captured, line):
        train_sae(tiny_pipe, tiny_site, PROMPTS, CONFIG, tmp_path / "sae", card={}, captured=captured, progress=line)
    assert told == [("begin", 4), 4, "end", ("begin", 600), 600, "end"]
