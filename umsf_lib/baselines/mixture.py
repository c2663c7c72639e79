"""Full-covariance Gaussian mixture on local statistics: the baseline to beat."""

from __future__ import annotations

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run


def mixture_statistics(run: Run, bench: Bench) -> Classifier:
    """The mixture that also teaches the network (``cluster.fit_mixture``)."""
    return bench.cluster("mixture-statistics", "mixture", bench.statistics, bench.stride)
