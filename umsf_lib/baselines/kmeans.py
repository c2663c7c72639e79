"""k-means on single pixels, and on local statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run


def kmeans_pixels(run: Run, bench: Bench) -> Classifier:
    """k-means on the standardised bands of single pixels: optical and log SAR, nothing else."""

    def bands(scene: int) -> Tensor:  # (C, H, W)
        windows = bench.store.scene(scene)
        return torch.cat([windows[role][0] for role in bench.store.roles])

    return bench.cluster("kmeans-pixels", "kmeans", bands, stride=1)


def kmeans_statistics(run: Run, bench: Bench) -> Classifier:
    """k-means on local statistics: mean and log std at several scales."""
    return bench.cluster("kmeans-statistics", "kmeans", bench.statistics, bench.stride)
