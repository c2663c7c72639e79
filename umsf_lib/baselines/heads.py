"""Heads of the learned baselines: fused tokens in, logits of the clusters out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ..cluster import central
from ..config import ModelConfig
from ..umsf_net import clustering_head, projection_head

TEMPERATURE = 0.1  # of cosines to prototypes (Caron et al. 2020)


class PrototypeHead(nn.Module):
    """Projection onto the unit sphere and prototypes there, each of which belongs to a cluster."""

    groups: Tensor

    def __init__(self, model: ModelConfig, prototypes: int, num_clusters: int) -> None:
        super().__init__()
        dim = model.projection_dim
        self.num_clusters = num_clusters
        self.projection = projection_head(model.channels, model.projection_hidden, dim, model.norm)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.register_buffer("groups", torch.arange(prototypes) % num_clusters)  # (P,)

    def embed(self, features: Tensor) -> Tensor:
        """Maps ``(B, C, h, w)`` -> ``(B, D, h, w)``, unit vectors."""
        return F.normalize(self.projection(features).float(), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)``: a cluster's probability is the sum of its prototypes'."""
        prototypes = F.normalize(self.prototypes, dim=1)
        scores = torch.einsum("bdhw,pd->bphw", self.embed(features), prototypes)
        members = F.one_hot(self.groups, self.num_clusters).float()  # (P, K)
        shares = torch.einsum("bphw,pk->bkhw", (scores / TEMPERATURE).softmax(dim=1), members)
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    @torch.no_grad()
    def settle(self, candidates: Tensor, tokens: Tensor) -> None:
        """Take the candidate prototypes whose merged clusters agree most with the others'.

        Args:
            candidates: ``(H, P, D)`` unit prototypes of several heads.
            tokens: ``(n, D)`` unit embeddings of training tokens.
        """
        nearest = [(tokens @ prototypes.T).argmax(dim=1).cpu() for prototypes in candidates]
        groups = [
            merged(prototypes.cpu().numpy(), np.unique(index), self.num_clusters)
            for prototypes, index in zip(candidates, nearest, strict=True)
        ]
        chosen = central([g[index] for g, index in zip(groups, nearest, strict=True)])
        self.prototypes.copy_(candidates[chosen])
        self.groups.copy_(torch.from_numpy(groups[chosen]))


def merged(prototypes: np.ndarray, used: np.ndarray, num_clusters: int) -> np.ndarray:
    """Cluster ``(P,)`` of each prototype, by Ward's linkage of those in use.

    Args:
        prototypes: ``(P, D)``, unit rows.
        used: indices of the prototypes that have a token; the others follow the nearest of these.
        num_clusters: K; where fewer prototypes are in use, some clusters stay empty.
    """
    groups = np.arange(len(used))
    if len(used) > num_clusters:
        linkage = AgglomerativeClustering(num_clusters, linkage="ward")
        groups = linkage.fit_predict(prototypes[used])
    result: np.ndarray = groups[(prototypes @ prototypes[used].T).argmax(axis=1)]
    return result


class Heads(nn.Module):
    """Several clustering heads, of which one answers."""

    chosen: Tensor

    def __init__(self, model: ModelConfig, heads: int, num_clusters: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(
            clustering_head(model.channels, model.cluster_hidden, num_clusters)
            for _ in range(heads)
        )
        self.register_buffer("chosen", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)`` of the chosen head."""
        logits: Tensor = self.all[int(self.chosen)](features)
        return logits
