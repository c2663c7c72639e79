"""Baselines under one contract: ``fit(run, bench) -> Classifier``.

Each gets the inputs, the standardisation, the clusters and the smoothing that our method gets; the
learned ones also its encoders, its windows and as many of them. They train in a stage of the run,
minutes each, so they are asked for by name.
"""

from collections.abc import Callable

from ..bench import Bench
from ..inference import Classifier
from ..runs import Run
from .deepcluster import deepcluster
from .kmeans import kmeans_pixels, kmeans_statistics
from .mixture import merged_statistics, mixture_pixels, mixture_statistics
from .mutual_information import mutual_information
from .random_network import kmeans_random, mixture_random
from .scan import scan
from .supervised import has_ceiling, supervised
from .swav import swav

Fit = Callable[[Run, Bench], Classifier]

BASELINES: dict[str, Fit] = {
    "kmeans-pixels": kmeans_pixels,
    "mixture-pixels": mixture_pixels,
    "kmeans-statistics": kmeans_statistics,
    "mixture-statistics": mixture_statistics,
    "merged-statistics": merged_statistics,
    "kmeans-random": kmeans_random,
    "mixture-random": mixture_random,
}
# These also take ``progress`` (see ``training.train``).
LEARNED: dict[str, Callable[..., Classifier]] = {
    "mutual-information": mutual_information,
    "deepcluster": deepcluster,
    "swav": swav,
    "scan": scan,
}
# The one method that sees labels, those of the training scenes: no rival, but what they all stay
# below.
CEILING: dict[str, Callable[..., Classifier]] = {"supervised": supervised}

__all__ = ["BASELINES", "CEILING", "LEARNED", "Fit", "has_ceiling"]
