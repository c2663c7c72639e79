"""k-means on single pixels, and on local statistics."""

from __future__ import annotations

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run


def kmeans_pixels(run: Run, bench: Bench) -> Classifier:
    """k-means on the bands of single pixels (``Bench.pixels``)."""
    return bench.cluster("kmeans-pixels", "kmeans", bench.pixels, stride=1)


def kmeans_statistics(run: Run, bench: Bench) -> Classifier:
    """k-means on local statistics: mean and log std at several scales."""
    return bench.cluster("kmeans-statistics", "kmeans", bench.statistics, bench.stride)
