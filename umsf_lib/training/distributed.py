"""One training in several processes, which ``torchrun`` starts.

All processes draw the same random numbers for the whole batch, and each computes its own rows of
the batch. The result therefore depends on the batch, not on the number of processes. With a single
process, every function returns its input.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import ConfigError, UmsfError

TIMEOUT = timedelta(hours=1)  # the first process may have data to prepare
_alone = False


class ProcessLostError(UmsfError):
    """Another process of this training has died."""


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Connect the processes that ``torchrun`` started, by NCCL for GPUs and gloo for CPUs.

    Raises:
        ConfigError: there are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise ConfigError(
                f"torchrun started {here} processes on this machine, but it has {gpus} GPUs; "
                f"set --nproc_per_node={gpus}."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error, as it may wait for a process that has ended


def world_size() -> int:
    """Return the number of processes that work together."""
    joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if joined and not _alone else 1


def rank() -> int:
    """Return the number of this process; process 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the processes execute the ``with`` block one after the other, the first process first.

    Files that the first process makes in the block thus exist when the others enter it. In the
    block, each process works alone.
    """
    global _alone
    turn = rank()
    for _ in range(turn):
        any_process(False)  # waits for the processes before this one
    here, _alone = world_size(), True
    try:
        yield
    finally:
        _alone = False
    for _ in range(turn, here):
        any_process(False)


def own_rows(count: int) -> slice:
    """Return the rows of the whole batch that this process computes.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    number, rest = divmod(count, world_size())
    if rest or number == 0:
        raise ConfigError(
            f"a batch of {count} cannot be shared by {world_size()} processes; set pretrain.batch "
            f"to a multiple of {world_size()}."
        )
    return slice(rank() * number, (rank() + 1) * number)


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; exchanged by CPU, without GPU waits."""
    if world_size() == 1:
        return flag
    told = torch.tensor(int(flag))
    with report_lost_process():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """Return the mean of each number over the processes."""
    if world_size() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(told)
    return (told / world_size()).tolist()


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows ``(M_r, D)`` of all processes by rank; ``counts`` are all M_r."""
    if world_size() == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextlib.contextmanager
def report_lost_process() -> Iterator[None]:
    """Replace the various errors of a broken connection by one.

    Raises:
        ProcessLostError: the connection to another process is broken.
    """
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "nccl", "connection", "broken pipe", "socket")
        broken = isinstance(error, dist.DistError) or any(w in str(error).lower() for w in words)
        if world_size() > 1 and broken:
            raise ProcessLostError("another process of this training has died") from error
        raise
