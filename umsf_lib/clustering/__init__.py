"""Clustering: tokens in, clusters out, without labels. Open ``stage`` first.

A mixture model of ``tokens`` (``mixture``) teaches the network (``self_training``, ``losses``).
``inference`` and ``smoothing`` make maps of whole scenes. ``task`` holds the inputs of all methods.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    losses="clustering_loss",
    self_training="smooth",
    stage="cluster clustered_classifier feature_tokens fit_teacher load_clustered",
    task="ClusteringTask",
)
