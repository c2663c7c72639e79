"""Two other objectives on the same batches, networks and places: MoCo v3 and DeCUR.

Neither remembers keys from step to step, so both live off the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PretrainConfig
from ..models.umsf_net import UmsfNet, projection_head
from .batches import Batch, key_places, on_device, places
from .losses import barlow_twins, decur_cross, in_batch_nce
from .moco import Keys, Learner, MomentumContrast, contrasts_of, embeddings, unit, weighted_sum
from .momentum import Places, key_network, momentum_update, same_location


class MomentumContrastV3(Learner):
    """No queue, a predictor on the queries, both views in both roles (Chen et al. 2021, MoCo v3).

    The negatives of a query are the other keys of its batch, except those of its own ground. The
    predictor is one more head like the projector (published: batch norm after its last layer, too),
    and the momentum of the key network stays constant (published: rises to 1).
    """

    def __init__(self, query: UmsfNet, config: PretrainConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.query, self.key = config, query, key_network(query)
        self.contrasts = contrasts_of(query)
        model, dim = query.model, query.projection_dim
        sizes = (dim, model.projection_hidden, dim, model.norm)
        self.predictors = nn.ModuleDict(
            {name: projection_head(*sizes) for name in query.projectors}
        )

    def train(self, mode: bool = True) -> MomentumContrastV3:
        """As usual, but the key network stays in eval mode; see ``MomentumContrast``."""
        super().train(mode)
        self.key.eval()
        return self

    def forward(self, batch: Batch, radius_px: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch; see ``MomentumContrast.forward``."""
        views, heads = (
            ((batch.first, batch.points_a), (batch.second, batch.points_b)),
            self.predictors,
        )
        query = [unit(embeddings(self.query, *view, batch.visible, heads)) for view in views]
        with torch.no_grad():
            key = [unit(embeddings(self.key, *view, batch.visible)) for view in views]
        where = places(batch), key_places(batch)
        parts = [
            self._half(query[i], key[1 - i], where[i], where[1 - i], radius_px) for i in (0, 1)
        ]
        both = {name: parts[0][name] + parts[1][name] for name in self.contrasts}
        extra = {"parts": both, "query": query[0], "key": key[1], "enqueue": key[1]}
        extra |= {"mask": self._mask(where[0][0], where[1][0], radius_px)}
        return weighted_sum(both, self.config), extra | {"negatives": key[1]["fused"][0]}

    def _half(
        self,
        query: Keys,
        key: Keys,
        own: tuple[Places, Places],
        theirs: tuple[Places, Places],
        radius_px: float,
    ) -> dict[str, Tensor]:
        """Contrast -> loss of one view's queries against the other view's keys."""
        masks = [self._mask(q, k, radius_px) for q, k in zip(own, theirs, strict=True)]
        parts = {}
        for name, (mine, other) in self.contrasts.items():
            dense, pooled = (
                in_batch_nce(q, k, self.config.tau, mask)
                for q, k, mask in zip(query[mine], key[other], masks, strict=True)
            )
            parts[name] = (1 - self.config.pooled) * dense + self.config.pooled * pooled
        return parts

    def _mask(self, own: Places, theirs: Places, radius_px: float) -> Tensor:
        """``(M, M)`` bool: keys that show neither the query's ground nor its positive's."""
        device = next(self.query.parameters()).device
        q, k = on_device(own, device), on_device(theirs, device)
        return (same_location(q, k, radius_px) | same_location(k, k, radius_px)).logical_not_()

    @torch.no_grad()
    def update_keys(self) -> None:
        """EMA step of the key network."""
        momentum_update(self.key, self.query, self.config.ema)


class Decur(Learner):
    """No negatives and no key network: decorrelated dimensions (Wang et al. 2024, DeCUR).

    A sensor's embedding has common dimensions, which agree across the sensors, and unique ones,
    which must not. The common ones come from its cross-modal projector, the unique ones from its
    own, so half of them are common (published: one projector, 7/8). The fused tokens' two views
    agree in every dimension. ``cross_optical`` is the one loss across the sensors.
    """

    def __init__(self, query: UmsfNet, config: PretrainConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.query, self.contrasts = config, query, contrasts_of(query)

    def forward(self, batch: Batch, radius_px: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch; see ``MomentumContrast.forward``. The radius is for the log alone."""
        first = embeddings(self.query, batch.first, batch.points_a, batch.visible)
        second = embeddings(self.query, batch.second, batch.points_b, batch.visible)
        parts = {"fused": self._both(barlow_twins, first["fused"], second["fused"])}
        if "cross_sar" in self.contrasts:
            optical, sar = joined(first, "optical"), joined(first, "sar")
            parts["intra_optical"] = self._both(barlow_twins, optical, joined(second, "optical"))
            parts["intra_sar"] = self._both(barlow_twins, sar, joined(second, "sar"))
            parts["cross_optical"] = self._both(self._across, optical, sar)
        query, key = (
            unit(first),
            unit({n: (t.detach(), p.detach()) for n, (t, p) in second.items()}),
        )
        negatives = key["fused"][0]
        where = on_device(places(batch)[0], negatives.device)
        extra = {"parts": parts, "query": query, "key": key, "enqueue": key}
        extra |= {"mask": ~same_location(where, where, radius_px), "negatives": negatives}
        return weighted_sum(parts, self.config), extra

    def _across(self, a: Tensor, b: Tensor) -> Tensor:
        return decur_cross(a, b, self.query.projection_dim)

    def _both(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        a: tuple[Tensor, Tensor],
        b: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Loss of tokens and of windows, weighted; of tokens only where two can be compared."""
        pooled = self.config.pooled
        total = pooled * loss(a[1], b[1])
        return total + (1 - pooled) * loss(a[0], b[0]) if len(a[0]) > 1 else total


def joined(rows: Keys, sensor: str) -> tuple[Tensor, Tensor]:
    """Common, then unique dimensions of a sensor's tokens ``(M, 2 D)`` and windows ``(B, 2 D)``."""
    (tokens, pooled), (own_tokens, own_pooled) = rows[f"cross_{sensor}"], rows[sensor]
    return torch.cat([tokens, own_tokens], dim=1), torch.cat([pooled, own_pooled], dim=1)


OBJECTIVES: dict[str, Callable[[UmsfNet, PretrainConfig, torch.Generator], Learner]] = {
    "moco": MomentumContrast,
    "mocov3": MomentumContrastV3,
    "decur": Decur,
}
