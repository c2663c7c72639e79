"""The step of momentum-contrast pretraining: a batch of two views in, a loss and new keys out.

There are three kinds of contrast: within each sensor, across the sensors, and between fused tokens
(without which nothing would train the fusion). Each has its own projector and its own queue.
Nothing here reads or writes files, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PretrainConfig
from ..models.umsf_net import UmsfNet
from ..run import to_device
from ..training.distributed import gather_rows, world_size
from .augmentations import read_tokens, tokens_around
from .batches import Batch, footprints, window_of_rows
from .losses import at_least_float32, info_nce
from .momentum import Queue, key_network, momentum_update

# contrast -> (query projector, key projector), by the projector's name in ``UmsfNet.project``
INTRA = {"intra_optical": ("optical", "optical"), "intra_sar": ("sar", "sar")}
CROSS = {
    "cross_optical": ("cross_optical", "cross_sar"),
    "cross_sar": ("cross_sar", "cross_optical"),
}
FUSED = {"fused": ("fused", "fused")}
Keys = dict[str, tuple[Tensor, Tensor]]  # projector -> unit rows of tokens (M, D), windows (B, D)


def weighted_sum(parts: Mapping[str, Tensor], config: PretrainConfig) -> Tensor:
    """Add up the parts of the loss; parts of the same kind share the weight of their kind.

    The tokens of a single sensor are not fused, so their contrast is one within the sensor.
    """
    view, modality, neighbour = config.positives
    fused = config.fused if len(parts) > 1 else view + neighbour
    kinds = ((INTRA, view + neighbour), (CROSS, modality), (FUSED, fused))
    terms = []
    for kind, weight in kinds:
        active = [parts[name] for name in kind if name in parts]
        terms += [weight / len(active) * part for part in active]
    return torch.stack(terms).sum()


class MomentumContrast(nn.Module):
    """Query network, EMA key network, and one queue per key projector (He et al. 2020, MoCo)."""

    def __init__(self, query: UmsfNet, config: PretrainConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.info_nce = info_nce
        self.query = query
        self.key = key_network(query).eval()  # see ``train``
        names = query.projectors.keys()
        dim = query.projection_dim
        self._queues = nn.ModuleDict({n: Queue(config.queue_size, dim, generator) for n in names})
        every = INTRA | CROSS | FUSED
        self.contrasts = {name: pair for name, pair in every.items() if set(pair) <= set(names)}
        # Projector whose embeddings are watched for a collapse; that of the fused tokens learns
        # nothing if their contrast has no weight.
        self.watched = "fused" if config.fused or len(names) == 1 else "optical"

    def train(self, mode: bool = True) -> MomentumContrast:
        """Set the mode as usual, but keep the key network in eval mode.

        In eval mode BatchNorm uses running statistics, so no key depends on the rest of its batch,
        and batch statistics cannot give the positive away (Cai et al. 2021, EMAN). MoCo shuffles
        its keys over the GPUs for the same reason.
        """
        super().train(mode)
        self.key.eval()
        return self

    def tune_for_cuda(self, compiled: bool) -> None:
        """Turn on TF32 and, if ``compiled``, torch.compile."""
        torch.set_float32_matmul_precision("high")
        if compiled:
            self.query.compile_blocks()
            self.key.compile_blocks()
            self.info_nce = torch.compile(info_nce, dynamic=True)  # matched tokens vary in number

    @property
    def queues(self) -> dict[str, Queue]:
        """Key projector -> its queue."""
        return cast("dict[str, Queue]", dict(self._queues.items()))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch, and what ``enqueue`` and the log need.

        Returns:
            Scalar loss, whose mean over the processes is that of the whole batch; dict with the
            ``parts`` of the loss, ``query`` and ``key`` embeddings, the tokens' ``mask (M, Q)`` of
            negatives, the ``negatives (Q, D)`` of the projector ``watched``, and ``enqueue``: the
            keys of all processes.
        """
        own = batch.own()
        query = unit(embeddings(self.query, own, 0))
        with torch.no_grad():
            key = unit(embeddings(self.key, own, 1))
        masks = self._masks(own)
        # Views of one process may share more ground than those of another.
        tokens, windows = (
            int(some.sum()) * world_size() / max(1, int(every.sum()))
            for some, every in ((own.visible, batch.visible), (own.shown, batch.shown))
        )
        pooled, tau = self.config.pooled, self.config.tau
        shares = (1 - pooled) * tokens, pooled * windows
        pairs, losses = self.contrasts.values(), []
        queue = torch.stack([self.queues[other].entries for _, other in pairs])  # (N, Q, D)
        for i, mask in enumerate(masks):  # all N contrasts at once, in a fifth of the kernels
            q = torch.stack([query[mine][i] for mine, _ in pairs])  # (N, M, D)
            k = torch.stack([key[other][i] for _, other in pairs])
            losses.append(shares[i] * self.info_nce(q, k, queue, tau, mask))  # (N,)
        parts = dict(zip(self.contrasts, (losses[0] + losses[1]).unbind(), strict=True))
        extra = {"parts": parts, "query": query, "key": key, "mask": masks[0]}
        negatives = self.queues[self.watched].entries
        extra |= {"negatives": negatives, "enqueue": gather_keys(key, batch)}
        return weighted_sum(parts, self.config), extra

    def _masks(self, own: Batch) -> list[Tensor]:
        """Negatives ``(M, Q)`` of tokens and ``(B', Q)`` of pooled rows.

        Those whose window shares ground neither with the query's window nor with its positive's.
        """
        fused = self.queues["fused"]
        first, second = footprints(own, fused.entries.device)
        mask = fused.other_location_mask(*first, own.window_px)  # (B, Q)
        mask &= fused.other_location_mask(*second, own.window_px)
        return [mask[window] for window in window_of_rows(own, mask.device)]

    @torch.no_grad()
    def enqueue(self, batch: Batch, keys: Keys) -> None:
        """Put the keys of all processes, from ``forward``, in the queues; after ``backward()``."""
        device = self.queues["fused"].entries.device
        windows = torch.cat(window_of_rows(batch, device))
        where = [x[windows] for x in footprints(batch, device)[1]]
        for name, queue in self.queues.items():
            queue.enqueue(torch.cat(keys[name]), *where)

    @torch.no_grad()
    def update_keys(self) -> None:
        """Move the key network towards the query network by one EMA step."""
        momentum_update(self.key, self.query, self.config.ema)


def embeddings(network: UmsfNet, batch: Batch, which: int) -> Keys:
    """Projector -> embeddings of matched tokens ``(M, D)``, pooled ``(B', D)``, float32 at least.

    What no contrast reads is not projected: features are read, or averaged over the valid ground of
    the window, first. A window without valid ground in either view has no pooled row.

    Args:
        network: that makes token maps and projects what is read from them.
        batch: the windows of this process.
        which: 0 for its first views, 1 for its second.
    """
    view = (batch.first, batch.second)[which]
    points, visible, shown = (batch.points_a, batch.points_b)[which], batch.visible, batch.shown
    features = network.features(view.images)
    fused = features["fused"]
    index, weight = tokens_around(points, fused.shape[2], fused.shape[3])  # (4, B, n) each
    index, weight = (to_device(x[:, visible], fused.device) for x in (index, weight))  # (4, M)
    count, rows = index.shape[1], {}
    windows = slice(None) if shown.all() else to_device(shown.nonzero()[:, 0], fused.device)
    for name, maps in features.items():  # (B, C, H, W)
        if name == "difference":
            continue  # no contrast may erase how the sensors differ
        rows[name] = torch.cat([read_tokens(maps, index, weight), view.pool(maps)[windows]])
    projected = {name: at_least_float32(z) for name, z in network.project(rows).items()}
    return {name: (z[:count], z[count:]) for name, z in projected.items()}


def unit(rows: Keys) -> Keys:
    """Normalise all rows to unit length."""
    return {
        name: (F.normalize(tokens, dim=1), F.normalize(pooled, dim=1))
        for name, (tokens, pooled) in rows.items()
    }


def gather_keys(keys: Keys, batch: Batch) -> Keys:
    """Gather the keys of all processes in the order of the whole batch."""
    if world_size() == 1:
        return keys
    visible, shares = (
        [int(rows.sum()) for rows in every.chunk(world_size())]
        for every in (batch.visible, batch.shown)
    )
    tokens, windows = (
        gather_rows(torch.cat(rows, dim=1), counts).chunk(len(keys), dim=1)  # one exchange for all
        for rows, counts in zip(zip(*keys.values(), strict=True), (visible, shares), strict=True)
    )
    return dict(zip(keys, zip(tokens, windows, strict=True), strict=True))
