"""Clustering of tokens: k-means, Gaussian mixture, a finer mixture whose components are merged.

Land cover is far from balanced: seven clusters of equal size cannot score above 0.474 on
WHU-OPT-SAR. A mixture with free weights and full covariances has no such limit. With one component
per class it spends some components on shores and field borders. So there is also a finer mixture,
whose components are merged without labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ..config import ClusterConfig, ConfigError
from ..progress import Progress, each
from .tokens import TokenMap

RIDGE = 1e-3  # on the diagonal of covariances
AT_ONCE = 1 << 20  # tokens: the single pixels of a large scene would take gigabytes in float64
MIXTURE_ARRAYS = ("weights_", "means_", "precisions_cholesky_")  # scikit-learn's names


@dataclass
class HardClusters:
    """k-means: each token belongs to the nearest of the ``centres (K, D)``."""

    centres: np.ndarray

    @property
    def num_clusters(self) -> int:
        """K."""
        return len(self.centres)

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        """Compute one-hot posteriors ``(n, K)`` of tokens ``(n, D)``."""
        return np.eye(self.num_clusters)[pairwise_distances_argmin(tokens, self.centres)]


@dataclass
class MixtureClusters:
    """Full-covariance Gaussian mixture; ``groups (P,)`` is the cluster of each component."""

    model: GaussianMixture
    groups: np.ndarray
    num_clusters: int

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        """Compute posteriors ``(n, K)`` of tokens ``(n, D)``: sums over a cluster's components."""
        members = np.eye(self.num_clusters)[self.groups]  # (P, K)
        result: np.ndarray = self.model.predict_proba(tokens) @ members  # (n, P) x (P, K)
        return result


Clusterer = HardClusters | MixtureClusters


def fit(
    kind: str,
    tokens: np.ndarray,
    num_clusters: int,
    config: ClusterConfig,
    seed: int,
    *,
    progress: Progress | None = None,
) -> Clusterer:
    """Fit a clusterer to tokens ``(n, D)``.

    Args:
        kind: ``kmeans``, ``mixture`` or ``merged``: a mixture of ``config.components`` components
            per cluster, the most similar of which are merged (see ``merge``).
        tokens: float64.
        num_clusters: K.
        config: components and restarts.
        seed: seed of the starts.
        progress: told of each restart of a mixture.

    Raises:
        ConfigError: if there are more clusters or components than tokens.
    """
    wanted = config.components * num_clusters if kind == "merged" else num_clusters
    if wanted > len(tokens):
        raise ConfigError(
            f"cluster.num_clusters and cluster.components ask for {wanted} groups of tokens, but "
            f"there are {len(tokens)} tokens; ask for fewer, or raise cluster.tokens if the "
            "training scenes hold more."
        )
    if kind == "kmeans":
        return fit_kmeans(tokens, num_clusters, seed)
    found = fit_mixture(tokens, wanted, config.restarts, seed, progress)
    if kind == "merged":
        groups = merge(found.model.means_, found.model.covariances_, num_clusters)
        return MixtureClusters(found.model, groups, num_clusters)
    return found


def fit_kmeans(tokens: np.ndarray, num_clusters: int, seed: int) -> HardClusters:
    """Fit k-means++ to tokens ``(n, D)``, the best inertia of ten restarts (scikit-learn)."""
    model = KMeans(num_clusters, n_init=10, max_iter=300, random_state=seed).fit(tokens)
    return HardClusters(model.cluster_centers_)


def fit_mixture(
    tokens: np.ndarray,
    num_clusters: int,
    restarts: int,
    seed: int,
    progress: Progress | None = None,
) -> MixtureClusters:
    """Fit a full Gaussian mixture to ``(n, D)``: the restart that agrees most with the others.

    Restarts differ by points of accuracy, and the likelihood does not pick the good ones. A
    solution that others find again is at least no accident. Agreement is the adjusted Rand index.
    """
    options = {"covariance_type": "full", "reg_covar": RIDGE, "max_iter": 200}
    states = [(seed * 1000 + i) % 2**32 for i in range(restarts)]  # scikit-learn takes no others
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 rounds are enough
        models = [
            GaussianMixture(num_clusters, **options, random_state=state).fit(tokens)
            for state in each(states, progress, "restarts of the mixture")
        ]
    chosen = models[central([model.predict(tokens) for model in models])]
    return MixtureClusters(chosen, np.arange(num_clusters), num_clusters)


def central(labels: list[np.ndarray]) -> int:
    """Return the index of the labelling with the highest mean adjusted Rand index to the others."""
    agreement = squareform(pdist(np.stack(labels), adjusted_rand_score))
    return int(agreement.sum(axis=0).argmax())


def merge(means: np.ndarray, covariances: np.ndarray, num_clusters: int) -> np.ndarray:
    """Merge Gaussians that are hard to tell apart.

    The method is average linkage of their Bhattacharyya distance. Hennig (2010) uses the same
    distance but replaces each merged pair by one Gaussian; average linkage does better, see
    ``tried.md``. The distance takes spread into account: snow varies more than crops differ from
    meadows, so a distance between means would split snow and merge crops with meadows.

    Args:
        means: ``(P, D)``.
        covariances: ``(P, D, D)``, positive definite.
        num_clusters: K <= P.

    Returns:
        ``(P,)`` int, cluster of each component.
    """
    if len(means) == num_clusters:
        return np.arange(num_clusters)
    linkage = AgglomerativeClustering(num_clusters, metric="precomputed", linkage="average")
    result: np.ndarray = linkage.fit_predict(bhattacharyya(means, covariances))
    return result


def bhattacharyya(means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Compute distances ``(P, P)`` of Gaussians: minus the log of the integral of sqrt(p q)."""
    between = (covariances[:, None] + covariances) / 2  # (P, P, D, D)
    apart = means[:, None] - means  # (P, 1, D) - (P, D) -> (P, P, D)
    reach = np.linalg.solve(between, apart[..., None])[..., 0]  # (P, P, D)
    log_volume = np.linalg.slogdet(covariances)[1]  # (P,)
    spread = np.linalg.slogdet(between)[1] - (log_volume[:, None] + log_volume) / 2  # (P, P)
    return ((apart * reach).sum(axis=-1) / 8 + spread / 2).clip(0)


def arrays_of(clusterer: Clusterer) -> dict[str, np.ndarray]:
    """Return the arrays that define k-means or an unmerged mixture."""
    if isinstance(clusterer, HardClusters):
        return {"centres": clusterer.centres}
    return {name: getattr(clusterer.model, name) for name in MIXTURE_ARRAYS}


def clusterer_of(arrays: Mapping[str, np.ndarray]) -> Clusterer:
    """Rebuild a clusterer from the result of ``arrays_of``."""
    if "centres" in arrays:
        return HardClusters(arrays["centres"])
    count = len(arrays["means_"])
    model = GaussianMixture(count, covariance_type="full")
    for name in MIXTURE_ARRAYS:
        setattr(model, name, arrays[name])
    return MixtureClusters(model, np.arange(count), count)


def posterior_map(clusterer: Clusterer, token_map: TokenMap, scene: int) -> Tensor:
    """Compute the posteriors ``(K, h, w)`` float32 of a scene's tokens."""
    tokens = token_map(scene)  # (D, h, w)
    flat = tokens.flatten(1).T.cpu()  # (D, h, w) -> (D, h w) -> (h w, D)
    parts = [clusterer.posteriors(part.double().numpy()) for part in flat.split(AT_ONCE)]
    posteriors = torch.from_numpy(np.concatenate(parts, dtype=np.float32)).to(tokens.device)
    return posteriors.T.reshape(clusterer.num_clusters, *tokens.shape[1:])  # (h w, K) -> (K, h, w)
