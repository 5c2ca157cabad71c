"""Windows of a stream whose reading ranks divide. Ranks are threads, so a rank that is left waiting fails at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.sae import Shards, stream
from excise.sae.data import Source
from excise.sae.parallel import Mesh
from excise.sae.stream import Stream


@dataclass(frozen=True, eq=False)
class Threads(Mesh):
    """A rank that is a thread."""

    meeting: Any = None
    """Where all ranks wait for each other."""
    sending: dict[str, Tensor] = field(default_factory=dict)
    """The tensor that a rank sends, which all of them share."""
    calls: list[Any] = field(default_factory=list)
    """This rank's collective calls."""

    def together(self, work: Callable[[], Any]) -> Any:
        self.calls.append("together")
        made = work()
        self.meeting.wait(5)
        return made

    def sent(self, tensor: Tensor | None, rank: int = 0) -> Tensor:
        self.calls.append(rank)
        if self.rank == rank:
            assert tensor is not None
            self.sending["now"] = tensor
        self.meeting.wait(5)
        found = self.sending["now"]
        self.meeting.wait(5)
        return found


def rows_of(mesh: Mesh, shards: Shards, first: int) -> list[list[int]]:
    """Return this rank's rows of some batches. The ranks meet after each batch, as in a training."""
    source, found = Stream(Source(shards, seed=3), 16, mesh=mesh), []
    for number in range(first, first + 90):
        found.append(source.batch(number, mesh.dealt)[:, 0].long().tolist())
        mesh.together(lambda: None)
    return found


@pytest.mark.parametrize("data", [2, 3])
@pytest.mark.parametrize("first", [0, 6, 57])
@pytest.mark.parametrize("size", [97, 111, 100, 5])
def test_ranks_that_divide_the_reading_read_every_window_together(
    size: int, first: int, data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows of 97 or 111 vectors, a batch of 16 has one of its rows before or after the end of the first."""
    monkeypatch.setattr(stream, "BUFFER", 100 if size in (100, 5) else size)
    values = torch.arange(10 * size, dtype=torch.float32)[:, None].expand(-1, 2)
    shards = replace(Shards.of(values.split(size)), divided=True)
    whole = rows_of(Mesh(), shards, first)
    meeting, sending = threading.Barrier(data), dict[str, Tensor]()
    meshes = [Threads(data=data, rank=rank, meeting=meeting, sending=sending) for rank in range(data)]
    with ThreadPoolExecutor(data) as pool:
        found = list(pool.map(lambda mesh: rows_of(mesh, shards, first), meshes))
    for rank, own in enumerate(found):
        assert own == [batch[rank::data] for batch in whole]
    assert meshes[0].calls and all(mesh.calls == meshes[0].calls for mesh in meshes)
