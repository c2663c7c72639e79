"""Baselines under one contract: ``fit(run, task) -> Classifier``.

Each gets the inputs, the standardisation, the clusters and the smoothing that our method gets; the
learned ones also its encoders, its windows and as many of them. They train in a stage of the run,
minutes each, so they are asked for by name.
"""

from collections.abc import Callable

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..run import Run
from .classical import (
    kmeans_pixels,
    kmeans_random,
    kmeans_statistics,
    merged_statistics,
    mixture_pixels,
    mixture_random,
    mixture_statistics,
)
from .deepcluster import deepcluster
from .mutual_information import mutual_information
from .scan import scan
from .supervised import has_ceiling, supervised
from .swav import swav

Fit = Callable[[Run, ClusteringTask], Classifier]

BASELINES: dict[str, Fit] = {
    "kmeans-pixels": kmeans_pixels,
    "mixture-pixels": mixture_pixels,
    "kmeans-statistics": kmeans_statistics,
    "mixture-statistics": mixture_statistics,
    "merged-statistics": merged_statistics,
    "kmeans-random": kmeans_random,
    "mixture-random": mixture_random,
}
# These also take ``progress`` (see ``loop.train``).
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
