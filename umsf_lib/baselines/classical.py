"""k-means and Gaussian mixtures on pixels, on local statistics and on random features."""

from __future__ import annotations

import torch

from ..clustering.inference import Classifier
from ..clustering.stage import feature_tokens
from ..clustering.task import ClusteringTask
from ..clustering.tokens import TokenMap
from ..models.umsf_net import UmsfNet
from ..pretraining.stage import WindowSource, new_network
from ..run import Run
from .base import fused_map


def kmeans_pixels(run: Run, task: ClusteringTask) -> Classifier:
    """Fit k-means to the bands of single pixels (``ClusteringTask.pixels``)."""
    return task.cluster("kmeans-pixels", "kmeans", task.pixels, stride=1)


def kmeans_statistics(run: Run, task: ClusteringTask) -> Classifier:
    """Fit k-means to local statistics: mean and log std at several scales."""
    return task.cluster("kmeans-statistics", "kmeans", task.statistics, task.stride)


def mixture_pixels(run: Run, task: ClusteringTask) -> Classifier:
    """Fit one component per cluster to the bands of single pixels (``ClusteringTask.pixels``)."""
    return task.cluster("mixture-pixels", "mixture", task.pixels, stride=1)


def mixture_statistics(run: Run, task: ClusteringTask) -> Classifier:
    """Fit one component per cluster (``mixture.fit_mixture``) to local statistics."""
    return task.cluster("mixture-statistics", "mixture", task.statistics, task.stride)


def merged_statistics(run: Run, task: ClusteringTask) -> Classifier:
    """Fit the mixture that teaches our network, and merge it alone (see ``mixture.merge``)."""
    return task.cluster("merged-statistics", "merged", task.statistics, task.stride)


BATCHES = 8  # enough for running statistics


def random_tokens(run: Run, task: ClusteringTask) -> TokenMap:
    """Return fused tokens of the untrained network; only batch norm has seen the data."""

    def make() -> TokenMap:
        network = new_network(run, task.scenes).to(run.device)
        settle_norms(network, task)
        return feature_tokens(network.eval(), task, "fused")

    return task.shared("random", make)


@torch.no_grad()
def settle_norms(network: UmsfNet, task: ClusteringTask) -> None:
    """Give batch norm the mean and variance of the data; without them features stay unscaled."""
    source = WindowSource(task.scenes, task.store, task.config)
    generator = torch.Generator().manual_seed(task.config.seed)
    network.train()
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # a plain mean over the batches
    for _ in range(BATCHES):
        fused_map(network, source.draw(task.config.pretrain.batch, generator).first.images)


def kmeans_random(run: Run, task: ClusteringTask) -> Classifier:
    """Fit k-means to tokens of random weights."""
    return task.cluster("kmeans-random", "kmeans", random_tokens(run, task), task.stride)


def mixture_random(run: Run, task: ClusteringTask) -> Classifier:
    """Fit a full Gaussian mixture to tokens of random weights."""
    return task.cluster("mixture-random", "mixture", random_tokens(run, task), task.stride)
