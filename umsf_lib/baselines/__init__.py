"""Baselines under one contract: ``fit(bench) -> Classifier``.

Each gets the inputs, the standardisation, the clusters and the smoothing that our method gets.
"""

from collections.abc import Callable

from ..bench import Bench
from ..inference import Classifier
from .kmeans import kmeans_pixels, kmeans_statistics
from .mixture import mixture_statistics

BASELINES: dict[str, Callable[[Bench], Classifier]] = {
    "kmeans-pixels": kmeans_pixels,
    "kmeans-statistics": kmeans_statistics,
    "mixture-statistics": mixture_statistics,
}

__all__ = ["BASELINES", "Bench"]
