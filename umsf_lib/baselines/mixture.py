"""Full-covariance Gaussian mixture on local statistics: the baseline to beat."""

from __future__ import annotations

from ..bench import Bench
from ..inference import Classifier


def mixture_statistics(bench: Bench) -> Classifier:
    """The mixture that also teaches the network (``cluster.fit_mixture``)."""
    return bench.cluster("mixture-statistics", "mixture", bench.statistics, bench.stride)
