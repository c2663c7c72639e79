"""Clustering of tokens: k-means, Gaussian mixture, over-cluster and merge.

Land cover is far from balanced: seven clusters of equal size cannot score above .474 on
WHU-OPT-SAR. A mixture with free weights and full covariances has no such ceiling.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from .config import ConfigError
from .tokens import TokenMap


class Clusterer(Protocol):
    """Tokens ``(n, D)`` float64 -> posteriors ``(n, K)``, rows sum to 1."""

    num_clusters: int

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        """Share of each cluster in each token."""


@dataclass
class HardClusters:
    """k-means, with its centres grouped into ``num_clusters`` (``groups`` is a range if not)."""

    model: KMeans
    groups: np.ndarray
    num_clusters: int

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        """One-hot."""
        return np.eye(self.num_clusters)[self.groups[self.model.predict(tokens)]]


@dataclass
class MixtureClusters:
    """Full-covariance Gaussian mixture."""

    model: GaussianMixture
    num_clusters: int

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        """Posterior of each component."""
        result: np.ndarray = self.model.predict_proba(tokens)
        return result


def fit_kmeans(tokens: np.ndarray, num_clusters: int, seed: int) -> HardClusters:
    """k-means++ with ten restarts, the best inertia kept (scikit-learn)."""
    model = KMeans(num_clusters, n_init=10, max_iter=300, random_state=seed).fit(tokens)
    return HardClusters(model, np.arange(num_clusters), num_clusters)


def fit_mixture(tokens: np.ndarray, num_clusters: int, restarts: int, seed: int) -> MixtureClusters:
    """Full Gaussian mixture: of several restarts the one that agrees most with the others.

    Restarts differ by points of accuracy, and the likelihood does not pick the good ones; a
    solution that others find again is at least no accident. Agreement is the adjusted Rand index.
    """
    models = [_one_mixture(tokens, num_clusters, seed * 1000 + i) for i in range(restarts)]
    return MixtureClusters(models[central([m.predict(tokens) for m in models])], num_clusters)


def _one_mixture(tokens: np.ndarray, num_clusters: int, seed: int) -> GaussianMixture:
    model = GaussianMixture(
        num_clusters, covariance_type="full", reg_covar=1e-3, max_iter=200, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 rounds place the borders
        return model.fit(tokens)


def central(labels: list[np.ndarray]) -> int:
    """Index of the labelling with the highest mean adjusted Rand index to the others."""
    count = len(labels)
    agreement = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            agreement[i, j] = agreement[j, i] = adjusted_rand_score(labels[i], labels[j])
    return int(agreement.sum(axis=0).argmax())


def fit_merged(
    tokens: np.ndarray, over_clusters: int, num_clusters: int, seed: int
) -> HardClusters:
    """k-means with too many clusters, whose centres Ward's linkage merges to ``num_clusters``.

    Raises:
        ConfigError: there is nothing to merge.
    """
    if over_clusters < num_clusters:
        raise ConfigError(
            f"cluster.over_clusters is {over_clusters}, fewer than the {num_clusters} clusters to "
            "merge them to; raise it."
        )
    model = KMeans(over_clusters, n_init=4, random_state=seed).fit(tokens)
    merge = AgglomerativeClustering(num_clusters, linkage="ward")
    return HardClusters(model, merge.fit_predict(model.cluster_centers_), num_clusters)


def fit(kind: str, tokens: np.ndarray, num_clusters: int, config: Any, seed: int) -> Clusterer:
    """Fit ``kmeans``, ``mixture`` or ``merged`` with the settings of ``ClusterConfig``.

    Raises:
        ConfigError: more clusters than tokens.
    """
    name = "over_clusters" if kind == "merged" else "num_clusters"
    wanted = config.over_clusters if kind == "merged" else num_clusters
    if wanted > len(tokens):
        raise ConfigError(
            f"cluster.{name} asks for {wanted} clusters of {len(tokens)} tokens; ask for fewer, or "
            "raise cluster.tokens if the training scenes hold more."
        )
    if kind == "mixture":
        return fit_mixture(tokens, num_clusters, config.restarts, seed)
    if kind == "merged":
        return fit_merged(tokens, config.over_clusters, num_clusters, seed)
    return fit_kmeans(tokens, num_clusters, seed)


def posterior_map(clusterer: Clusterer, token_map: TokenMap, scene: int) -> Tensor:
    """Posteriors ``(K, h, w)`` float32 of a scene's tokens."""
    tokens = token_map(scene)  # (D, h, w)
    flat = tokens.flatten(1).T.cpu().numpy().astype(np.float64)  # (h w, D)
    posteriors = torch.from_numpy(clusterer.posteriors(flat)).float().to(tokens.device)
    return posteriors.T.reshape(clusterer.num_clusters, *tokens.shape[1:])
