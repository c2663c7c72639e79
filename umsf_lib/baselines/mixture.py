"""Full-covariance Gaussian mixtures: on single pixels, and on local statistics, hardest to beat."""

from __future__ import annotations

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run


def mixture_pixels(run: Run, bench: Bench) -> Classifier:
    """One component per cluster on the bands of single pixels (``Bench.pixels``)."""
    return bench.cluster("mixture-pixels", "mixture", bench.pixels, stride=1)


def mixture_statistics(run: Run, bench: Bench) -> Classifier:
    """One component per cluster (``cluster.fit_mixture``) on local statistics."""
    return bench.cluster("mixture-statistics", "mixture", bench.statistics, bench.stride)


def merged_statistics(run: Run, bench: Bench) -> Classifier:
    """The mixture that teaches the network, merged without one (``cluster.fit_merged``)."""
    return bench.cluster("merged-statistics", "merged", bench.statistics, bench.stride)
