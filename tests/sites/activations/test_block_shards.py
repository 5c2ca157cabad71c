from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.sites import block_site, capture_blocks
from excise.sites.activations.block_shards import BlockShards, Labelled, capture_blocks_to, load_block_shards
from excise.sites.activations.shards import narrowed

PROMPTS = [Labelled("a gun on grass", ("gun",)), Labelled("a cat and a gun", ("gun", "cat")), Labelled("a dog", ())] * 2
STEPS = 3


@pytest.fixture
def site(tiny_pipe: Any) -> Any:
    return block_site(tiny_pipe, "up_blocks.0.attentions.0")


def test_states_beyond_half_precision_are_kept_as_they_are() -> None:
    small, large = torch.tensor([1.0, -3.0]), torch.tensor([1.0, 70_000.0])
    assert narrowed(small).dtype == torch.float16
    assert torch.equal(narrowed(large), large)
    assert narrowed(large.bfloat16()).dtype == torch.bfloat16


def written(folder: Path, pipe: Any, site: Any, **how: Any) -> BlockShards:
    options = {"steps": STEPS, "seed": 5, "batch_size": 4, "dtype": torch.float32, **how}
    return capture_blocks_to(folder, pipe, site, PROMPTS, ["cat", "gun"], **options)


def test_what_was_captured_comes_back_with_its_labels(tiny_pipe: Any, site: Any, tmp_path: Path) -> None:
    shards = written(tmp_path / "features", tiny_pipe, site)
    assert (shards.site, shards.concepts, shards.pictures) == (site, ("cat", "gun"), 6)
    parts = list(shards)
    assert [tuple(part.states.shape) for part in parts] == [(4, STEPS, 16, 16), (2, STEPS, 16, 16)]
    assert torch.cat([part.labels for part in parts]).tolist() == [[False, True], [True, True], [False, False]] * 2
    texts = [row.prompt for row in PROMPTS]
    for patches in capture_blocks(tiny_pipe, site, texts, seeds=range(5, 11), steps=STEPS, batch_size=4):
        shard = parts[patches.numbers[0] // 4]
        assert torch.equal(shard.states[:, patches.step], patches.states)
        assert shards.timesteps[patches.step] == patches.timestep
    assert list(load_block_shards(tmp_path / "features").files) == list(shards.files)


def test_an_interrupted_capture_goes_on_where_it_was(tiny_pipe: Any, site: Any, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", tiny_pipe, site, batch_size=2)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "parts", tiny_pipe, site, batch_size=2, progress=stop)
    with pytest.raises(ExciseError, match="2 shards are missing"):
        load_block_shards(tmp_path / "parts")
    drawn: list[int] = []
    again = written(tmp_path / "parts", tiny_pipe, site, batch_size=2, progress=drawn.append)
    assert drawn == [2, 2], "what was there already is not drawn again"
    assert again.files == whole.files
    assert written(tmp_path / "parts", tiny_pipe, site, batch_size=2, progress=drawn.append).files == whole.files
    assert drawn == [2, 2]


def test_half_precision_halves_the_size(tiny_pipe: Any, site: Any, tmp_path: Path) -> None:
    sizes = []
    for dtype in (torch.float32, torch.float16):
        shards = written(tmp_path / str(dtype), tiny_pipe, site, dtype=dtype)
        sizes.append(sum(shard.states.nbytes for shard in shards))
    assert sizes[1] * 2 == sizes[0]


def test_what_is_wrong_is_said(tiny_pipe: Any, site: Any, tmp_path: Path) -> None:
    shards = written(tmp_path / "features", tiny_pipe, site)
    with pytest.raises(ExciseError, match="holds something else"):
        written(tmp_path / "features", tiny_pipe, site, seed=6)
    with pytest.raises(ExciseError, match="'dog' is not among the 1 concepts"):
        capture_blocks_to(tmp_path / "other", tiny_pipe, site, [Labelled("a dog", ("dog",))], ["cat"])
    with pytest.raises(ExciseError, match="no prompts to generate from"):
        capture_blocks_to(tmp_path / "other", tiny_pipe, site, [], ["cat"])
    with pytest.raises(ExciseError, match="holds no finished features"):
        load_block_shards(tmp_path / "nothing")
    path = tmp_path / "features" / shards.files[1][0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ExciseError, match="was altered or cut short"):
        list(shards)
