"""Several processes, one training: what ``torchrun`` starts, and what the processes exchange.

All of them draw the same random numbers for the whole batch and compute their own rows of it, so
the result depends on the batch and not on the number of processes. With one process every function
returns what it was given.
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
    """Join the processes that ``torchrun`` started: NCCL between GPUs, gloo between CPUs.

    Raises:
        ConfigError: more processes than GPUs on this machine.
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
    dist.destroy_process_group()  # not after an error: it may wait for a process that is gone


def world_size() -> int:
    """Number of processes that work together."""
    joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if joined and not _alone else 1


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """What the first process makes in the body is there when the others enter it, one by one.

    In the body each of them works alone.
    """
    global _alone
    turn = rank()
    for _ in range(turn):
        any_process(False)  # waits for those before
    here, _alone = world_size(), True
    try:
        yield
    finally:
        _alone = False
    for _ in range(turn, here):
        any_process(False)


def own_rows(count: int) -> slice:
    """Rows of the whole batch that this process computes.

    Raises:
        ConfigError: the batch cannot be shared equally.
    """
    number, rest = divmod(count, world_size())
    if rest or number == 0:
        raise ConfigError(
            f"a batch of {count} cannot be shared by {world_size()} processes; set pretrain.batch "
            f"to a multiple of {world_size()}."
        )
    return slice(rank() * number, (rank() + 1) * number)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; told through the CPU, so no GPU is waited for."""
    if world_size() == 1:
        return flag
    told = torch.tensor(int(flag))
    with report_lost_process():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """Mean of each number over the processes."""
    if world_size() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64)
    with report_lost_process():
        dist.all_reduce(told)
    return (told / world_size()).tolist()


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows ``(M_r, D)`` of all processes behind each other, in the order of their ranks.

    Args:
        rows: of this process.
        counts: M_r of every process.
    """
    if world_size() == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    with report_lost_process():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextlib.contextmanager
def report_lost_process() -> Iterator[None]:
    """Turn the many errors of a broken connection into one.

    Raises:
        ProcessLostError: instead of what torch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and _is_broken_connection(error):
            raise ProcessLostError("another process of this training has died") from error
        raise


def _is_broken_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    words = ("gloo", "nccl", "connection", "broken pipe", "socket")
    return isinstance(error, dist.DistError) or any(word in text for word in words)
