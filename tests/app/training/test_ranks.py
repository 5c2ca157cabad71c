from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from excise.app.reading import vectors as reading
from excise.app.reading.reading import stored
from excise.app.training import ranks
from excise.app.training.text import train_sae
from excise.errors import ExciseError, InvalidSetting
from excise.launched import local_device
from excise.sae import TrainConfig, card
from excise.sae.parallel import Mesh
from excise.sites.activations import token_shards
from excise.sites.activations.token_shards import TextParts, TokenShards, loaded
from tests.sae.ranks import on_ranks

PROMPTS = ["a gun", "a cat on grass", "a dog in the sky", "a bus", "a red apple on a table"]
CONFIG = TrainConfig(tokens=600, batch=100, k=4)


def test_the_text_of_the_option() -> None:
    assert ranks.parse("data=2,latents=4") == (2, 4)
    assert ranks.parse(" latents = 8 ") == (1, 8)
    for wrong in ("", "2", "data", "data=0", "data=-1", "data=2,data=2", "rows=2", "data=2;latents=2", "data=²"):
        with pytest.raises(InvalidSetting, match="write it as data=2,latents=4"):
            ranks.parse(wrong)


def test_the_number_of_processes_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.join(None).size == ranks.join("data=1").size == 1
    with pytest.raises(ExciseError, match="needs 4 processes, but this is one of 1; start it with `torchrun"):
        ranks.join("data=2,latents=2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ExciseError, match="--parallel data=2"):
        ranks.join(None)
    with pytest.raises(ExciseError, match="needs 3 processes, but this is one of 2"):
        ranks.join("latents=3")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ExciseError, match=r"cannot find the other processes .*torchrun"):
        ranks.join("data=2")


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def read(mesh: Mesh, folder: Path, pipe: Any, site: Any) -> tuple[TokenShards, list[torch.Tensor]]:
    with stored(pipe, [site], TextParts(tuple(PROMPTS), padding=0.5), folder, mesh=mesh):
        shards = loaded(folder)
        return shards, list(shards.vectors_at(site))


def test_ranks_read_their_shares_to_the_bits_of_one_process(
    tiny_pipe: Any, tiny_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "TEXTS", 1)
    known, vectors = read(Mesh(), tmp_path / "one", tiny_pipe, tiny_site)
    assert len(known.files) == 5
    for found, own in on_ranks((3, 1), read, tmp_path / "store", tmp_path / "three", tiny_pipe, tiny_site):
        assert (found.texts, found.vectors, found.files) == (known.texts, known.vectors, known.files)
        assert all(torch.equal(one, other) for one, other in zip(own, vectors, strict=True))


def made(mesh: Mesh, out: Path, pipe: Any, site: Any) -> list[int]:
    """Train, and return the numbers of prompts that the progress bar got."""
    captured: list[int] = []
    train_sae(pipe, site, PROMPTS, CONFIG, out, card={"corpus": "five"}, captured=captured.append, mesh=mesh)
    return captured


@pytest.mark.parametrize("memory", [None, 0])
def test_an_sae_is_trained_from_prompts_by_ranks(
    tiny_pipe: Any, tiny_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    if memory is not None:
        monkeypatch.setattr(reading, "IN_MEMORY", memory)
        monkeypatch.setattr(token_shards, "TEXTS", 1)
    made(Mesh(), tmp_path / "one", tiny_pipe, tiny_site)
    captured = on_ranks((1, 2), made, tmp_path / "store", tmp_path / "two", tiny_pipe, tiny_site)
    assert [sum(own) for own in captured] == ([6, 4] if memory == 0 else [5, 0])
    one, two = card(tmp_path / "one"), card(tmp_path / "two")
    assert two["metrics"]["train"]["fvu"] == pytest.approx(one["metrics"]["train"]["fvu"], rel=1e-3)
    assert set(two["metrics"]) == set(one["metrics"])
    assert {**two, "metrics": None} == {**one, "metrics": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "store", "two"]
