"""Baselines with one interface: ``fit(run, task) -> Classifier``.

Each gets the same inputs, standardisation, number of clusters and smoothing as our method. The
learned ones also get its encoders and as many of its windows. They train for minutes each, in a
stage of the run, so they only run if they are asked for by name.
"""

from collections.abc import Callable
from functools import partial

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..run import Run
from .classical import fit_classical
from .deepcluster import fit_deepcluster
from .mutual_information import fit_mutual_information
from .scan import fit_scan
from .swav import fit_swav

Fit = Callable[[Run, ClusteringTask], Classifier]

BASELINES: dict[str, Fit] = {
    f"{kind}-{what}": partial(fit_classical, kind, what)
    for what, kinds in {
        "pixels": ("kmeans", "mixture"),
        "statistics": ("kmeans", "mixture", "merged"),
        "random": ("kmeans", "mixture"),
    }.items()
    for kind in kinds
}
# These also take ``progress`` (see ``loop.train``).
LEARNED: dict[str, Callable[..., Classifier]] = {
    "mutual-information": fit_mutual_information,
    "deepcluster": fit_deepcluster,
    "swav": fit_swav,
    "scan": fit_scan,
}

__all__ = ["BASELINES", "LEARNED", "Fit"]
