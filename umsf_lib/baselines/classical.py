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

BATCHES = 8  # enough for running statistics


def fit_classical(kind: str, what: str, run: Run, task: ClusteringTask) -> Classifier:
    """Fit k-means or a mixture; "merged" on "statistics" is the teacher of our network, alone.

    Args:
        kind: see ``mixture.fit``.
        what: "pixels": the bands of single pixels (``ClusteringTask.pixels``); "statistics": mean
            and log std at several scales; "random": tokens of random weights.
        run: its untrained network is used.
        task: scenes and settings.
    """
    name = f"{kind}-{what}"
    if what == "pixels":
        return task.cluster(name, kind, task.pixels, stride=1)
    tokens = task.statistics if what == "statistics" else random_tokens(run, task)
    return task.cluster(name, kind, tokens, task.stride)


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
        network.features(source.draw(task.config.pretrain.batch, generator).first.images)
