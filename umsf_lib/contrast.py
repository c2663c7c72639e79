"""The step of momentum-contrast pretraining: a batch of two views in, a loss and new keys out.

Three contrasts share it: within each sensor, across the sensors, and on the fused tokens (without
which nothing would train the fusion). Each has its own projector and its own queue. Nothing here
knows of files, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PretrainConfig
from .distributed import gather_rows, world_size
from .losses import info_nce
from .momentum import Queue, key_network, momentum_update
from .umsf_net import UmsfNet
from .views import View, sample_tokens, to_device

# contrast -> (query projector, key projector), by the projector's name in ``UmsfNet.project``
INTRA = {"intra_optical": ("optical", "optical"), "intra_sar": ("sar", "sar")}
CROSS = {
    "cross_optical": ("cross_optical", "cross_sar"),
    "cross_sar": ("cross_sar", "cross_optical"),
}
FUSED = {"fused": ("fused", "fused")}
Keys = dict[str, tuple[Tensor, Tensor]]  # projector -> unit rows of tokens (M, D), windows (B, D)


@dataclass(frozen=True)
class Batch:
    """Two views of a batch of windows and the ground positions both see.

    ``scene (B,)``; ``centre (B, 2)`` row, col of the window centres in scene px; ``here`` and
    ``there (B, n, 2)`` view coordinates; ``ground (B, n, 2)`` row, col in scene px;
    ``seen (B, n)``; all on the CPU. Where several processes share the batch, these tell of all its
    windows, and the views are those of ``rows``.
    """

    first: View
    second: View
    scene: Tensor
    centre: Tensor
    here: Tensor
    there: Tensor
    ground: Tensor
    seen: Tensor
    rows: slice = field(default_factory=lambda: slice(None))

    def own(self) -> Batch:
        """The windows of this process only."""
        names = ("scene", "centre", "here", "there", "ground", "seen")
        return replace(self, **{name: getattr(self, name)[self.rows] for name in names})


class MomentumContrast(nn.Module):
    """Query network, EMA key network, and one queue per key projector (He et al. 2020, MoCo)."""

    def __init__(self, query: UmsfNet, config: PretrainConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.query = query
        self.key = key_network(query).eval()  # see ``train``
        names = query.projectors.keys()
        dim = query.projection_dim
        self._queues = nn.ModuleDict({n: Queue(config.queue_size, dim, generator) for n in names})
        self.contrasts = {
            name: pair for name, pair in (INTRA | CROSS | FUSED).items() if set(pair) <= set(names)
        }

    def train(self, mode: bool = True) -> MomentumContrast:
        """As usual, but the key network stays in eval mode.

        There BatchNorm uses running statistics, so that no key depends on the rest of its batch and
        nothing but its ground gives the positive away (Cai et al. 2021, EMAN). MoCo shuffles its
        keys over the GPUs to the same end.
        """
        super().train(mode)
        self.key.eval()
        return self

    @property
    def queues(self) -> dict[str, Queue]:
        """Queue per key projector."""
        return cast("dict[str, Queue]", dict(self._queues.items()))

    def weights(self) -> dict[str, float]:
        """Weight of each contrast in the loss; the two of a kind share theirs."""
        view, modality, neighbour = self.config.positives
        kinds = ((INTRA, view + neighbour), (CROSS, modality), (FUSED, self.config.fused))
        weights: dict[str, float] = {}
        for kind, weight in kinds:
            active = [name for name in kind if name in self.contrasts]
            weights |= {name: weight / len(active) for name in active}
        return weights

    def forward(self, batch: Batch, radius_px: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch, and what ``enqueue`` and the log need.

        Args:
            batch: two views with matched positions.
            radius_px: keys of the same scene nearer than this are no negatives.

        Returns:
            Scalar loss, whose mean over the processes is that of the whole batch; dict with the
            ``parts`` of the loss, ``query`` and ``key`` embeddings, the ``mask`` of the tokens'
            negatives, and ``enqueue``: the keys of all processes.
        """
        own = batch.own()
        query = self.embed(self.query, own.first, own.here, own.seen)
        with torch.no_grad():
            key = self.embed(self.key, own.second, own.there, own.seen)
        masks = self._masks(own, radius_px)
        # Views of one process may share more ground than those of another; windows are as many.
        tokens = int(own.seen.sum()) * world_size() / max(1, int(batch.seen.sum()))
        shares = ((1 - self.config.pooled) * tokens, self.config.pooled)
        parts = {}
        for name, (mine, other) in self.contrasts.items():
            queue = self.queues[other].entries
            dense_loss, pooled_loss = (
                info_nce(q, k, queue, self.config.tau, mask)
                for q, k, mask in zip(query[mine], key[other], masks, strict=True)
            )
            parts[name] = shares[0] * dense_loss + shares[1] * pooled_loss
        loss = torch.stack([w * parts[name] for name, w in self.weights().items()]).sum()
        extra = {"parts": parts, "query": query, "key": key, "mask": masks[0]}
        return loss, extra | {"enqueue": gathered(key, batch)}

    def _masks(self, own: Batch, radius_px: float) -> list[Tensor]:
        fused = self.queues["fused"]
        device = fused.entries.device
        masks = []
        for place in places(own):
            scene, row, col = (to_device(x, device) for x in place)
            masks.append(fused.own_ground_mask(scene, row, col, radius_px))
        return masks

    @staticmethod
    def embed(network: UmsfNet, view: View, points: Tensor, seen: Tensor) -> Keys:
        """Projector -> unit embeddings of the matched tokens ``(M, D)`` and pooled ``(B, D)``."""
        features = network.features(view.images.get("optical"), view.images.get("sar"))
        device = features["fused"].device
        points = to_device(points, device)
        chosen = to_device(seen.flatten().nonzero()[:, 0], device)
        result = {}
        for name, projected in network.project(features).items():  # (B, D, H, W)
            tokens = sample_tokens(projected, points).flatten(0, 1)[chosen]  # (M, D)
            result[name] = (F.normalize(tokens.float(), dim=1), pooled_embedding(projected))
        return result

    @torch.no_grad()
    def enqueue(self, batch: Batch, keys: Keys) -> None:
        """Put the keys of all processes into the queues; after the backward pass, which reads them.

        Args:
            batch: that they are of.
            keys: ``enqueue`` of ``forward``.
        """
        where = [torch.cat(pair) for pair in zip(*places(batch), strict=True)]
        for name, queue in self.queues.items():
            device = queue.entries.device
            queue.enqueue(torch.cat(keys[name]), *(to_device(x, device) for x in where))

    @torch.no_grad()
    def update_keys(self) -> None:
        """EMA step of the key network."""
        momentum_update(self.key, self.query, self.config.ema)


def pooled_embedding(projected: Tensor) -> Tensor:
    """Unit embedding ``(B, D)`` of a whole window from its projected tokens."""
    return F.normalize(projected.float().mean(dim=(2, 3)), dim=1)


def places(batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(scene, row, col) of the tokens seen by both views, and of the windows; on the CPU."""
    scene = batch.scene[:, None].expand_as(batch.seen)[batch.seen]
    row, col = batch.ground[batch.seen].T
    return (scene, row, col), (batch.scene, *batch.centre.T)


def gathered(keys: Keys, batch: Batch) -> Keys:
    """Keys of all processes in the order of the whole batch."""
    if world_size() == 1:
        return keys
    shares = [len(batch.scene) // world_size()] * world_size()
    seen = [int(rows.sum()) for rows in batch.seen.chunk(world_size())]
    tokens, windows = (
        gather_rows(torch.cat(rows, dim=1), counts).chunk(len(keys), dim=1)  # one exchange for all
        for rows, counts in zip(zip(*keys.values(), strict=True), (seen, shares), strict=True)
    )
    return dict(zip(keys, zip(tokens, windows, strict=True), strict=True))
