"""Training of one SAE by several processes, which torchrun, srun or Ray Train starts: a process is a rank.

Ranks form a grid. Along `data` they have the same latents and different vectors of every batch; along `latents` they
have the same vectors and different latents. A rank holds ordinary tensors, and all communication is in this module and
in `collectives.py`. A single process communicates with none, and trains to the same bits as it would without a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from excise.errors import ExciseError, InvalidSetting
from excise.launched import PATIENCE, connect, processes
from excise.sae.collectives import Joined, Spread, Summed

T = TypeVar("T")
_MESSAGE = 512
"""Bytes of a message to the other ranks."""
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.float16, torch.bfloat16, torch.bool)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Grid of ranks, and this one's place in it. `Mesh()` is a single process; `Mesh.join` makes any other."""

    data: int = 1
    """Ranks among which the vectors of a batch are divided."""
    latents: int = 1
    """Ranks among which the latents are divided."""
    rank: int = 0
    """This process. Neighbours are next to each other along `latents`, so that these stay within a machine."""
    by_data: Any = None
    """Process group of the ranks with the same latents."""
    by_latents: Any = None
    """Process group of the ranks with the same vectors."""
    by_cpu: Any = None
    """Process group of all ranks, for tensors on the CPU."""

    @classmethod
    def join(cls, data: int = 1, latents: int = 1) -> Mesh:
        """Return this rank's mesh; every rank calls it with the same numbers.

        Ranks find each other by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets, or by the process
        group that exists already.

        Raises:
            ExciseError: The number of ranks is another, or they cannot find each other.
        """
        if data < 1 or latents < 1:
            raise InvalidSetting(f"data={data},latents={latents}: give at least 1 of each")
        size, found = data * latents, processes()
        if size != found:
            raise ExciseError(
                f"data={data},latents={latents} needs {size} processes, but this is one of {found}; "
                f"start it with `torchrun --nproc-per-node {size} -m excise ...`"
            )
        if size == 1:
            return cls()
        try:
            connect()
            # Every rank must make every group, in one order.
            rows = [[row * latents + column for column in range(latents)] for row in range(data)]
            columns = [list(column) for column in zip(*rows, strict=True)]
            of_row = [dist.new_group(ranks, timeout=PATIENCE) for ranks in rows]
            of_column = [dist.new_group(ranks, timeout=PATIENCE) for ranks in columns]
            everyone = dist.new_group(timeout=PATIENCE, backend="gloo")
        except (ValueError, RuntimeError) as error:
            raise ExciseError(f"cannot find the other processes ({error}); start all of them with torchrun") from error
        rank = dist.get_rank()
        return cls(data, latents, rank, of_column[rank % latents], of_row[rank // latents], everyone)

    @staticmethod
    def leave() -> None:
        """Close the connections to the other ranks, at the end of a training."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data * self.latents

    @property
    def dealt(self) -> slice:
        """This rank's rows of a batch."""
        return slice(self.rank // self.latents, None, self.data)

    @property
    def column(self) -> int:
        """This rank's place along `latents`."""
        return self.rank % self.latents

    @property
    def writes(self) -> bool:
        """Whether this rank is the one that saves its latents: the first of those with the same ones."""
        return self.rank < self.latents

    def rows(self, m: int, column: int | None = None) -> slice:
        """Return which of m latents this rank has, or the one at `column`. Raises ExciseError if there are too few."""
        if m < self.latents:
            raise ExciseError(f"{m} latents cannot be divided among {self.latents} ranks; give fewer ranks")
        at = self.column if column is None else column
        return slice(m * at // self.latents, m * (at + 1) // self.latents)

    # Along data

    def average(self, mean: Tensor, share: float) -> Tensor:
        """Return the mean over all ranks' vectors, without gradient, from that over this rank's, a `share` of them."""
        return mean if self.data == 1 else self._reduced(mean * share, self.by_data)

    def most(self, values: Tensor) -> Tensor:
        """Return the largest values that a rank with the same latents has, element by element."""
        return values if self.data == 1 else self._reduced(values.clone(), self.by_data, dist.ReduceOp.MAX)

    def joined(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks with the same latents, in one order; gradients reach the own ones alone.

        A loss that each of these ranks computes from them has its whole gradient once `add_gradients` was called.
        """
        if self.data == 1:
            return rows
        counts = torch.zeros(self.data, dtype=torch.int64, device=rows.device)
        counts[place := self.rank // self.latents] = len(rows)
        known = self._reduced(counts, self.by_data).tolist()
        whole: Tensor = Joined.apply(rows, known, place, self.by_data)  # type: ignore[no-untyped-call]
        return whole

    @torch.no_grad()
    def add_gradients(self, module: nn.Module) -> None:
        """Add up the gradients of ranks with the same latents; each one's loss is its share of the batch's."""
        for parameter in module.parameters() if self.data > 1 else ():
            if parameter.grad is not None:
                parameter.grad = self._reduced(parameter.grad.contiguous(), self.by_data)

    # Along latents

    def count(self, number: Tensor) -> int:
        """Return the sum of a number of latents over the ranks that have the others."""
        return int(number) if self.latents == 1 else int(self._reduced(number.clone(), self.by_latents))

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of what each rank's latents contribute; each rank's part gets the sum's gradient."""
        return part if self.latents == 1 else Summed.apply(part, self.by_latents)  # type: ignore[no-untyped-call]

    def spread(self, value: Tensor) -> Tensor:
        """Return a value that each rank's latents use; its gradient is the sum over them."""
        return value if self.latents == 1 else Spread.apply(value, self.by_latents)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def kept(self, values: Tensor, k: int) -> Tensor:
        """Return which candidates [N, at most k] are among the k largest of their row over all ranks, [N, ...] bool."""
        width = values.shape[1]
        if self.latents == 1:
            return torch.ones_like(values, dtype=torch.bool)
        own = values.new_full((len(values), k), -torch.inf)
        own[:, :width] = values
        every = [torch.empty_like(own) for _ in range(self.latents)]
        dist.all_gather(every, own, group=self.by_latents)
        best = torch.cat(every, 1).topk(k, dim=-1).indices
        mask = torch.zeros(len(own), k * self.latents, dtype=torch.bool, device=own.device).scatter_(1, best, True)
        return mask[:, self.column * k :][:, :width]

    @torch.no_grad()
    def gathered(self, part: Tensor, m: int) -> Tensor | None:
        """Return all m latents' rows on rank 0, on the CPU, from those of the ranks that save; None on the others."""
        if self.latents == 1:
            return part.cpu() if self.rank == 0 else None
        own = part.new_zeros(-(-m // self.latents), *part.shape[1:])
        own[: len(part)] = part
        every = [torch.empty_like(own) for _ in range(self.latents)] if self.rank == 0 else None
        dist.gather(own, every, dst=0, group=self.by_latents)
        if every is None:
            return None
        cuts = [self.rows(m, column) for column in range(self.latents)]
        return torch.cat([rows[: cut.stop - cut.start].cpu() for rows, cut in zip(every, cuts, strict=True)])

    # All ranks

    @torch.no_grad()
    def least(self, values: Tensor, count: int) -> Tensor:
        """Return the `count`-th largest of all ranks' values [n], a scalar."""
        best = values.topk(min(count, len(values)), sorted=False).values
        if self.size > 1:
            own = values.new_full((count,), -torch.inf)
            own[: len(best)] = best
            every = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(every, own)
            best = torch.cat(every).topk(count, sorted=False).values
        return best.min()

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum of numbers on the CPU over all ranks."""
        return numbers if self.size == 1 else self._reduced(numbers.clone(), self.by_cpu)

    def any(self, here: bool) -> bool:
        """Return whether something is so on at least one rank."""
        return here if self.size == 1 else bool(self.total(torch.tensor(int(here))))

    @torch.no_grad()
    def equalise(self, module: nn.Module, divided: Collection[str]) -> None:
        """Copy each parameter from the first rank that has the same rows; `divided` names those with own rows."""
        for name, parameter in module.named_parameters() if self.size > 1 else ():
            if name not in divided:
                dist.broadcast(parameter, 0)
            elif self.data > 1:
                dist.broadcast(parameter, self.column, group=self.by_data)

    def sent(self, tensor: Tensor | None, rank: int = 0) -> Tensor:
        """Return one rank's tensor on every rank, on the CPU. The others pass None."""
        if self.size == 1:
            assert tensor is not None
            return tensor
        about = torch.zeros(10, dtype=torch.int64)
        if tensor is not None:
            tensor = tensor.detach().cpu().contiguous()
            about[: 2 + tensor.ndim] = torch.tensor([_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape])
        dist.broadcast(about, rank, group=self.by_cpu)
        dtype, ndim, *shape = about.tolist()
        if tensor is None:
            tensor = torch.empty(shape[:ndim], dtype=_DTYPES[dtype])
        # As bytes: gloo does not know every dtype.
        dist.broadcast(tensor.view(-1).view(torch.uint8), rank, group=self.by_cpu)
        return tensor

    def texts(self, text: str) -> list[str]:
        """Return every rank's text, in the order of the ranks, each cut after `_MESSAGE` bytes."""
        if self.size == 1:
            return [text]
        own = torch.zeros(_MESSAGE, dtype=torch.uint8)
        data = text.encode()[:_MESSAGE]
        own[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own, group=self.by_cpu)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in every]

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns here, once every rank has done its own.

        If it fails on one, it fails on all: where it raised, with what it raised, elsewhere with that message as an
        ExciseError, or as KeyboardInterrupt. So no rank waits for one that has given up.
        """
        if self.size == 1:
            return work()
        failure: BaseException | None = None
        try:
            made = work()
        except BaseException as raised:
            failure = raised
        said = self.texts("" if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        if failed := [f"{text} (on rank {rank})" for rank, text in enumerate(said) if text]:
            raise KeyboardInterrupt if KeyboardInterrupt.__name__ in said else ExciseError(failed[0])
        return made

    @staticmethod
    def _reduced(own: Tensor, group: Any, by: Any = None) -> Tensor:
        """Reduce in place, by default to the sum, and return it."""
        dist.all_reduce(own, dist.ReduceOp.SUM if by is None else by, group=group)
        return own


ALONE = Mesh()
"""A single process."""
