"""Which graphics card a process takes."""

from __future__ import annotations

import pytest

from excise.app.models import resolve
from excise.app.models.devices import card_of, rank


def test_processes_take_turns_over_the_cards() -> None:
    assert [card_of("cuda", 2, number) for number in range(5)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_a_card_that_is_named_or_needs_no_choice_stays() -> None:
    assert card_of("cuda:1", 4, 3) == "cuda:1"
    assert card_of("cpu", 4, 3) == "cpu"
    assert card_of("cuda", 4, None) == "cuda", "one process alone"
    assert card_of("cuda", 0, 3) == "cuda", "no card: the error says so"


def test_a_launchers_rank_is_read() -> None:
    assert rank({"LOCAL_RANK": "3"}) == 3
    assert rank({}) is rank({"LOCAL_RANK": ""}) is rank({"LOCAL_RANK": "-1"}) is None


def test_a_model_is_loaded_onto_the_ranks_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[object] = []

    def empty(size: int, device: object) -> object:
        asked.append(device)
        raise RuntimeError("no such card")

    monkeypatch.setattr(resolve, "visible_cards", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(resolve.ExciseError, match="no device 'cuda:2'"):
        resolve.load_pipeline(None, "cuda")
    assert asked == ["cuda:2"]
