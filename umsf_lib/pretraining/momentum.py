"""Momentum contrast: slowly moving key networks and queues of their past keys.

Order within a step: queries -> keys without gradient -> loss -> ``backward()`` -> optimiser ->
``enqueue`` -> ``momentum_update``. The queue changes after ``backward()``, which reads it. MoCo (He
et al. 2020) updates the key network just before it computes the next keys, which gives the same
keys. Here all changes come at the end of a step.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def key_network(query: Network) -> Network:
    """Copy a query network into a key network that gets no gradient."""
    key = copy.deepcopy(query)
    key.zero_grad(set_to_none=True)  # deepcopy brings gradients along
    key.requires_grad_(False)
    return key


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Move the key network towards the query network, in place.

    ``theta_key <- momentum * theta_key + (1 - momentum) * theta_query`` for parameters. Buffers
    (the running statistics of BatchNorm) are copied, because they are averages already.

    The momentum is in [0, 1]; 0 copies, 1 freezes. Source: He et al. 2020 (MoCo), which averages
    the parameters only.
    """
    # One call for all tensors of a kind: a few kernels on a GPU.
    average, copy_all = get_ema_multi_avg_fn(momentum), get_ema_multi_avg_fn(0.0)
    average(list(key.parameters()), list(query.parameters()), 0)
    for dtype in {buffer.dtype for buffer in key.buffers()}:
        old, new = ([b for b in net.buffers() if b.dtype == dtype] for net in (key, query))
        if dtype.is_floating_point:
            copy_all(old, new, 0)
        else:  # counters, which it would average one by one
            for mine, theirs in zip(old, new, strict=True):
                mine.copy_(theirs)


class Queue(nn.Module):
    """First-in-first-out memory of the last ``size`` keys and of the place each one came from.

    All state is in buffers, so ``state_dict`` restores a run exactly and ``.to(device)`` moves it.
    """

    entries: Tensor
    scene: Tensor
    row: Tensor
    col: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        """Fill the queue with random unit vectors that belong to no scene.

        Its ``size`` Q need not be a multiple of the batch; the generator is on the CPU.
        """
        super().__init__()
        random = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
        self.register_buffer("entries", random)  # (Q, D) float32
        self.register_buffer("scene", torch.full((size,), -1))  # (Q,) int64, -1 = random start
        self.register_buffer("row", torch.zeros(size))  # (Q,) footprint centre, scene pixels
        self.register_buffer("col", torch.zeros(size))
        self.register_buffer("pointer", torch.tensor(0))  # slot of the oldest key

    @torch.no_grad()
    def enqueue(self, keys: Tensor, scene: Tensor, row: Tensor, col: Tensor) -> None:
        """Replace the oldest keys with these; call after ``backward()``.

        Any number of keys is allowed: the queue wraps around, and keeps the last Q of more than Q.

        Args:
            keys: ``(M, D)`` unit rows.
            scene: ``(M,)`` int64 scene index of each key, >= 0.
            row: ``(M,)`` footprint centre, in scene pixels.
            col: ``(M,)`` footprint centre, in scene pixels.
        """
        size, count = len(self.entries), len(keys)
        kept = min(size, count)  # a slot written twice in one call would hold either key
        order = torch.arange(count - kept, count, device=self.entries.device)
        slots = (self.pointer + order) % size  # stays on the device: no sync per step
        buffers = self.entries, self.scene, self.row, self.col
        for buffer, new in zip(buffers, (keys, scene, row, col), strict=True):
            buffer[slots] = new[count - kept :].to(buffer)
        self.pointer.add_(count).remainder_(size)

    def other_location_mask(
        self, scene: Tensor, row: Tensor, col: Tensor, radius_px: float
    ) -> Tensor:
        """Mark the negatives that do not show the query's own ground.

        Footprints are squares. Two of side s share ground if their centres are less than s apart
        in both directions, so ``radius_px`` = s masks exactly those. ``scene``, ``row`` and ``col``
        ``(M,)`` place the queries as those of ``enqueue`` place the keys.

        Returns:
            ``(M, Q)`` bool, True = keep as negative: the ``mask`` of ``info_nce``.
        """
        same = scene[:, None] == self.scene  # (M, 1) and (Q,) -> (M, Q)
        same &= (row[:, None] - self.row).abs_() < radius_px
        same &= (col[:, None] - self.col).abs_() < radius_px
        return same.logical_not_()
