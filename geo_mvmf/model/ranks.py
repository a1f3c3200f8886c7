"""Ranks: the processes that train one model together, and the few things they say to each other.

`torchrun` starts them and says by the environment who they are. Rows of a batch are spread over the ranks in order, and
so are components: rank 0 has the first ones. What goes between ranks is rows (gathered, or summed and scattered), sums
of a few numbers a row, and now and then parts of large tensors, one after the other, to or from rank 0.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from geo_mvmf.errors import TrainingError

PATIENCE = dt.timedelta(minutes=30)  # a rank that is silent for longer is taken for dead


class Ranks:
    """The processes of a group, and which of them this is; one process alone is a group, too.

    Parameters
    ----------
    group : ProcessGroup, optional
        Of torch.distributed. None: all processes; where torch.distributed was not initialised, this one alone.
    alone : bool
        Whether this process has nobody to share with, although there are others.

    Attributes
    ----------
    rank, size : int
        This process, 0..size - 1, and how many there are.

    Examples
    --------
    >>> here = Ranks()
    >>> here.rank, here.size
    (0, 1)
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, alone: bool = False) -> None:
        together = not alone and dist.is_available() and dist.is_initialized()
        self._group = group
        self.rank = dist.get_rank(group) if together else 0
        self.size = dist.get_world_size(group) if together else 1

    def parts(self, count: int) -> list[slice]:
        """Share a number of things out: as evenly as can be, in order.

        Parameters
        ----------
        count : int
            Things to share out.

        Returns
        -------
        list of slice
            One for each rank; empty ones at the end where there are fewer things than ranks.

        Examples
        --------
        >>> Ranks().parts(5)
        [slice(0, 5, None)]
        """
        each, more = divmod(count, self.size)
        starts = [rank * each + min(rank, more) for rank in range(self.size + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(starts)]

    def part(self, count: int) -> slice:
        """Give this rank's part of a number of things; as `parts`.

        Examples
        --------
        >>> Ranks().part(5)
        slice(0, 5, None)
        """
        return self.parts(count)[self.rank]

    def integers(self, own: Sequence[int], device: torch.device) -> list[list[int]]:
        """Exchange a few integers, as many on every rank, by way of a device that the group can send from.

        Returns
        -------
        list of list of int
            Those of every rank.

        Examples
        --------
        >>> Ranks().integers([3, 4], torch.device("cpu"))
        [[3, 4]]
        """
        sent = torch.tensor([own], dtype=torch.int64, device=device)
        return [[int(value) for value in row] for row in self.gather(sent, [1] * self.size).tolist()]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Give the rows of all ranks to every rank.

        Parameters
        ----------
        rows : Tensor, shape (n, ...)
            This rank's; n is its number in `counts`.
        counts : sequence of int
            Rows of every rank.

        Returns
        -------
        Tensor, shape (sum of counts, ...)
            In the order of the ranks.

        Examples
        --------
        >>> Ranks().gather(torch.ones(2), [2]).tolist()
        [1.0, 1.0]
        """
        if self.size == 1:
            return rows
        most = max(counts)
        found = rows.new_empty(self.size * most, *rows.shape[1:])
        with self._together():
            dist.all_gather_into_tensor(found, _filled(rows, most), group=self._group)
        return found if min(counts) == most else found[_places(counts, rows.device)]

    def scatter_sum(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Sum an array over the ranks, and give every rank its rows of the sum.

        Parameters
        ----------
        rows : Tensor, shape (sum of counts, ...)
            This rank's summand of all rows.
        counts : sequence of int
            Rows of every rank.

        Returns
        -------
        Tensor, shape (this rank's count, ...)
            Of the same type.

        Examples
        --------
        >>> Ranks().scatter_sum(torch.ones(2), [2]).tolist()
        [1.0, 1.0]
        """
        if self.size == 1:
            return rows
        most = max(counts)
        sent = rows.contiguous()
        if min(counts) < most:  # equal parts are what torch.distributed can scatter
            sent = rows.new_zeros(self.size * most, *rows.shape[1:])
            sent[_places(counts, rows.device)] = rows
        found = rows.new_empty(most, *rows.shape[1:])
        with self._together():
            dist.reduce_scatter_tensor(found, sent, group=self._group)
        return found[: counts[self.rank]]

    def sum(self, values: Tensor) -> Tensor:
        """Sum an array over the ranks.

        Parameters
        ----------
        values : Tensor
            Of the same shape on all.

        Returns
        -------
        Tensor
            The same bits on every rank.

        Examples
        --------
        >>> float(Ranks().sum(torch.tensor(3.0)))
        3.0
        """
        return self._reduced(values, dist.ReduceOp.SUM)

    def logsumexp(self, values: Tensor) -> Tensor:
        """Add numbers up that are given by their logarithms: two numbers each are sent.

        Parameters
        ----------
        values : Tensor of float64
            Of the same shape on all.

        Returns
        -------
        Tensor of float64
            The same bits on every rank; NaN where one of them has NaN.

        Examples
        --------
        >>> float(Ranks().logsumexp(torch.tensor(3.0).double()))
        3.0
        """
        if self.size == 1:
            return values
        top = self._reduced(values, dist.ReduceOp.MAX)
        finite = top.nan_to_num(nan=0.0, neginf=0.0)  # what is no number shows in the sum: a maximum may lose it
        return finite + self.sum((values - finite).exp()).log()

    def tell(self, value: Any) -> Any:
        """Give every rank what rank 0 says.

        Parameters
        ----------
        value : JSON value
            That of rank 0 counts, and is returned.

        Examples
        --------
        >>> Ranks().tell({"step": 3})
        {'step': 3}
        """
        text = json.dumps(value).encode()
        if self.size == 1:
            return json.loads(text)
        length = torch.tensor([len(text)], dtype=torch.int64)
        self._broadcast(length)
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._broadcast(content)
        return json.loads(bytes(content.tolist()))

    def collect(self, own: Tensor) -> Tensor | None:
        """Put the parts of a tensor together on rank 0, in its main memory.

        Parameters
        ----------
        own : Tensor, shape (n, ...)
            This rank's part.

        Returns
        -------
        Tensor, shape (sum of n, ...), or None
            None on the other ranks.

        Examples
        --------
        >>> Ranks().collect(torch.ones(2)).tolist()
        [1.0, 1.0]
        """
        own = own.detach().cpu().contiguous()
        if self.size == 1:
            return own
        counts = [count for (count,) in self.integers([len(own)], own.device)]
        with self._together():
            if self.rank:
                dist.send(own, group=self._group, group_dst=0)
                return None
            whole = own.new_empty(sum(counts), *own.shape[1:])
            whole[: counts[0]] = own
            start = counts[0]
            for rank in range(1, self.size):
                dist.recv(whole[start : start + counts[rank]], group=self._group, group_src=rank)
                start += counts[rank]
        return whole

    def deal(self, whole: Tensor | None, shape: Sequence[int], dtype: torch.dtype, *, shared: bool) -> Tensor:
        """Give every rank its part of a tensor that rank 0 has, or all of it.

        Parameters
        ----------
        whole : Tensor or None
            In main memory; None on the other ranks.
        shape : sequence of int
            Of the whole, on every rank.
        dtype : torch.dtype
            Of the whole.
        shared : bool
            Whether each gets a part.

        Returns
        -------
        Tensor
            In main memory.

        Examples
        --------
        >>> Ranks().deal(torch.ones(2), (2,), torch.float32, shared=True).tolist()
        [1.0, 1.0]
        """
        if not shared:
            everything = torch.empty(tuple(shape), dtype=dtype) if whole is None else whole.contiguous()
            self._broadcast(everything)
            return everything
        parts = self.parts(shape[0])
        with self._together():
            if whole is None:
                part = parts[self.rank]
                own = torch.empty(part.stop - part.start, *shape[1:], dtype=dtype)
                dist.recv(own, group=self._group, group_src=0)
                return own
            for rank in range(1, self.size):
                dist.send(whole[parts[rank]].contiguous(), group=self._group, group_dst=rank)
        return whole[parts[0]]

    def _broadcast(self, values: Tensor) -> None:
        if self.size > 1:
            with self._together():
                dist.broadcast(values, group=self._group, group_src=0)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        found = values.clone()
        with self._together():
            dist.all_reduce(found, operation, group=self._group)
        return found

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Say what it means that the others cannot be reached: torch tells of sockets."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank} of {self.size}: another process of this run ended or is silent "
                f"({str(error).splitlines()[0]}); look at what it said, and start all of them again: a run goes on "
                "from its last checkpoint"
            ) from error


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, for the time of the block.

    Where torch.distributed is initialised already, its processes are taken. Where there is no `torchrun`, this process
    is alone.

    Yields
    ------
    Ranks
        Tensors in main memory go by gloo, those on CUDA devices by NCCL.

    Raises
    ------
    TrainingError
        The others cannot be reached.

    Examples
    --------
    >>> with joined() as ranks:
    ...     ranks.size
    1
    """
    if not _by_torchrun() or dist.is_initialized():
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # of torch: addresses that nobody answers at, variables that are missing
        raise TrainingError(
            f"the processes of torchrun cannot be joined: {error}; start all of them by one torchrun"
        ) from error
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is rank 0 of the processes that `torchrun` started, or one process alone.

    Examples
    --------
    >>> is_first()
    True
    """
    return not _by_torchrun() or os.environ.get("RANK") == "0"


def _by_torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _filled(rows: Tensor, count: int) -> Tensor:
    """Add rows of zeros up to a number."""
    if len(rows) == count:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _places(counts: Sequence[int], device: torch.device) -> Tensor:
    """Where the rows are among as many for every rank as the most that one has."""
    most = max(counts)
    return torch.cat([torch.arange(rank * most, rank * most + count) for rank, count in enumerate(counts)]).to(device)
