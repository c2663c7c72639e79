"""k-means on single pixels, and on local statistics."""

from __future__ import annotations

import torch

from ..clustering.inference import Classifier
from ..clustering.stage import feature_tokens
from ..clustering.task import Bench
from ..clustering.tokens import TokenMap
from ..models.umsf_net import UmsfNet
from ..pretraining.stage import WindowSource, new_network
from ..run import Run
from .base import fused_map


def kmeans_pixels(run: Run, bench: Bench) -> Classifier:
    """k-means on the bands of single pixels (``Bench.pixels``)."""
    return bench.cluster("kmeans-pixels", "kmeans", bench.pixels, stride=1)


def kmeans_statistics(run: Run, bench: Bench) -> Classifier:
    """k-means on local statistics: mean and log std at several scales."""
    return bench.cluster("kmeans-statistics", "kmeans", bench.statistics, bench.stride)


def mixture_pixels(run: Run, bench: Bench) -> Classifier:
    """One component per cluster on the bands of single pixels (``Bench.pixels``)."""
    return bench.cluster("mixture-pixels", "mixture", bench.pixels, stride=1)


def mixture_statistics(run: Run, bench: Bench) -> Classifier:
    """One component per cluster (``cluster.fit_mixture``) on local statistics."""
    return bench.cluster("mixture-statistics", "mixture", bench.statistics, bench.stride)


def merged_statistics(run: Run, bench: Bench) -> Classifier:
    """The mixture that teaches the network, merged without one (``cluster.fit_merged``)."""
    return bench.cluster("merged-statistics", "merged", bench.statistics, bench.stride)


BATCHES = 8  # enough for running statistics


def random_tokens(run: Run, bench: Bench) -> TokenMap:
    """Fused tokens of the network before any training; only batch norm has seen the data."""

    def make() -> TokenMap:
        network = new_network(run, bench.scenes).to(run.device)
        settle_norms(network, bench)
        return feature_tokens(network.eval(), bench, "fused")

    return bench.shared("random", make)


@torch.no_grad()
def settle_norms(network: UmsfNet, bench: Bench) -> None:
    """Give batch norm the moments of the data: its initial ones would leave features unscaled."""
    source = WindowSource(bench.scenes, bench.store, bench.config)
    generator = torch.Generator().manual_seed(bench.config.seed)
    network.train()
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # a plain mean over the batches
    for _ in range(BATCHES):
        fused_map(network, source.draw(bench.config.pretrain.batch, generator).first.images)


def kmeans_random(run: Run, bench: Bench) -> Classifier:
    """k-means on tokens of random weights."""
    return bench.cluster("kmeans-random", "kmeans", random_tokens(run, bench), bench.stride)


def mixture_random(run: Run, bench: Bench) -> Classifier:
    """Full Gaussian mixture on tokens of random weights."""
    return bench.cluster("mixture-random", "mixture", random_tokens(run, bench), bench.stride)
