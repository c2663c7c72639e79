"""Heads of the learned baselines: fused tokens in, logits of the clusters out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ..clustering.mixture import central
from ..clustering.task import ClusteringTask
from ..config import ModelConfig
from ..models.umsf_net import clustering_head, projection_head

TEMPERATURE = 0.1  # of cosines to prototypes (Caron et al. 2020)


class PrototypeHead(nn.Module):
    """Projection onto the unit sphere, and prototypes there that each belong to a cluster."""

    groups: Tensor

    def __init__(self, model: ModelConfig, prototypes: int, num_clusters: int) -> None:
        super().__init__()
        dim = model.projection_dim
        self.num_clusters = num_clusters
        self.projection = projection_head(model.channels, model.projection_hidden, dim, model.norm)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.register_buffer("groups", torch.arange(prototypes) % num_clusters)  # (P,)

    def embed(self, features: Tensor) -> Tensor:
        """Project maps ``(B, C, h, w)`` to unit vectors ``(B, D, h, w)``."""
        rows = features.movedim(1, 3)  # (B, h, w, C)
        unit = F.normalize(self.projection(rows.flatten(0, 2)).float(), dim=1)
        return unit.unflatten(0, rows.shape[:3]).movedim(3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits ``(B, K, h, w)``; a cluster's probability sums over its prototypes."""
        prototypes = F.normalize(self.prototypes, dim=1)
        scores = torch.einsum("bdhw,pd->bphw", self.embed(features), prototypes)
        members = F.one_hot(self.groups, self.num_clusters).float()  # (P, K)
        shares = torch.einsum("bphw,pk->bkhw", (scores / TEMPERATURE).softmax(dim=1), members)
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    @torch.no_grad()
    def settle(self, candidates: Tensor, tokens: Tensor) -> None:
        """Keep the candidate prototypes whose merged clusters agree most with those of the others.

        Args:
            candidates: ``(H, P, D)`` unit prototypes of several heads.
            tokens: ``(n, D)`` unit embeddings of training tokens.
        """
        groups, labels = [], []
        for prototypes in candidates:
            shares = (tokens @ prototypes.T / TEMPERATURE).softmax(dim=1).cpu().numpy()  # (n, P)
            groups.append(merged(shares, self.num_clusters))
            labels.append(groups[-1][shares.argmax(axis=1)])
        chosen = central(labels)
        self.prototypes.copy_(candidates[chosen])
        self.groups.copy_(torch.from_numpy(groups[chosen]))


def prototype_head(task: ClusteringTask) -> PrototypeHead:
    """Make a new head with ``baseline.prototypes`` prototypes for each cluster."""
    config, clusters = task.config, task.num_clusters
    return PrototypeHead(config.model, config.baseline.prototypes * clusters, clusters)


def merged(shares: np.ndarray, num_clusters: int) -> np.ndarray:
    """Merge prototypes that the same tokens are undecided between.

    The method is average linkage of the cosines between the rows of ``shares.T @ shares``. The
    distance between prototypes says less, because SwAV's prototypes are not cluster centres.

    Args:
        shares: ``(n, P)`` probability of each prototype for each token.
        num_clusters: K <= P.

    Returns:
        ``(P,)`` int, cluster of each prototype.
    """
    linkage = AgglomerativeClustering(num_clusters, metric="cosine", linkage="average")
    return np.asarray(linkage.fit_predict(shares.T @ shares))


class Heads(nn.Module):
    """Several clustering heads, of which one is used for the output."""

    chosen: Tensor

    def __init__(self, model: ModelConfig, heads: int, num_clusters: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(
            clustering_head(model.channels, model.cluster_hidden, num_clusters)
            for _ in range(heads)
        )
        self.register_buffer("chosen", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits ``(B, K, h, w)`` of the chosen head."""
        logits: Tensor = self.all[int(self.chosen)](features)
        return logits
