"""States on disk, where several processes work in one folder or a reading fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from excise import files
from excise.app.reading import vectors as reading
from excise.app.training.text import train_sae
from excise.errors import ItemsFailed
from excise.files import sha256
from excise.sae import TrainConfig
from excise.sites import Site
from excise.sites.activations.token_shards import Capture, TextParts, capture_tokens_to, loaded

PROMPTS = ["a gun", "a cat on grass", "a dog in the sky", "a bus", "a red apple on a table"]


def test_slices_that_start_together_agree(
    tiny_pipe: Any, tiny_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins while the first one's temporary file is in the folder."""
    one, two = (Capture(tmp_path / "shards", (tiny_site,), TextParts(tuple(PROMPTS)), pipe=tiny_pipe) for _ in "12")
    write, found = files._write, []

    def second(temporary: Path, data: bytes | str) -> None:
        write(temporary, data)
        monkeypatch.setattr(files, "_write", write)
        found.append(two.begin(tiny_pipe))

    monkeypatch.setattr(files, "_write", second)
    assert [one.begin(tiny_pipe), *found] == [False, False]
    assert one.finish(two.make()).texts == len(PROMPTS)
    assert one.begin(tiny_pipe)


def fail_once(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Let the first reading of a part fail."""
    own = TextParts.read

    def read(self: TextParts, pipe: Any, sites: Any, number: int, *rest: Any) -> Any:
        if number == part:
            monkeypatch.setattr(TextParts, "read", own)
            raise RuntimeError("CUDA error: out of memory")
        return own(self, pipe, sites, number, *rest)

    monkeypatch.setattr(TextParts, "read", read)


def test_a_reading_that_failed_once_is_tried_again(
    tiny_pipe: Any, tiny_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, 0)
    with pytest.raises(ItemsFailed, match="out of memory"):
        capture_tokens_to(tmp_path / "shards", tiny_pipe, [tiny_site], PROMPTS)
    assert capture_tokens_to(tmp_path / "shards", tiny_pipe, [tiny_site], PROMPTS).texts == len(PROMPTS)


def test_a_training_whose_reading_failed_once_is_repeated(
    tiny_pipe: Any, tiny_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY", 0)
    fail_once(monkeypatch, 0)
    given = tiny_pipe, tiny_site, PROMPTS, TrainConfig(tokens=200, batch=100, k=4), tmp_path / "sae"
    with pytest.raises(ItemsFailed, match="out of memory"):
        train_sae(*given, card={})
    train_sae(*given, card={})
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_shard_that_is_there_is_kept(
    tiny_pipe: Any, tiny_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slices make one shard at the same time; their hardware rounds in different ways."""
    parts = TextParts(tuple(PROMPTS))
    capture = Capture(tmp_path / "shards", (tiny_site,), parts, pipe=tiny_pipe)
    capture.begin(tiny_pipe)
    own, met = TextParts.read, list[int]()

    def read(self: TextParts, *given: Any) -> Any:
        found = own(self, *given)
        if not met:  # the first is overtaken by the second
            met.append(1)
            capture.finish(capture.make())
            return {site: states + 0.25 for site, states in found.items()}
        return found

    monkeypatch.setattr(TextParts, "read", read)
    shards = capture.finish(capture.make())
    path = capture.path(0)
    assert shards == loaded(tmp_path / "shards")
    assert shards.files[0][1] == sha256(path)
    exact = own(parts, tiny_pipe, (tiny_site,), 0)[tiny_site]
    assert (shards.read(0, tiny_site).float() - exact).abs().max() < 0.1
