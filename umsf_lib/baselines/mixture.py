"""Full-covariance Gaussian mixtures on local statistics: the baselines to beat."""

from __future__ import annotations

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run


def mixture_statistics(run: Run, bench: Bench) -> Classifier:
    """The mixture that also teaches the network (``cluster.fit_mixture``)."""
    return bench.cluster("mixture-statistics", "mixture", bench.statistics, bench.stride)


def merged_statistics(run: Run, bench: Bench) -> Classifier:
    """More components than clusters, merged without labels (``cluster.fit_merged``)."""
    return bench.cluster("merged-statistics", "merged", bench.statistics, bench.stride)
