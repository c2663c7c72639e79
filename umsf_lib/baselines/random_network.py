"""k-means and mixture on the tokens of a network that has learned nothing: what its form gives."""

from __future__ import annotations

import torch

from ..bench import Bench
from ..classify import feature_tokens
from ..inference import Classifier
from ..pretrain import WindowSource, new_network
from ..runs import Run
from ..tokens import TokenMap
from ..umsf_net import UmsfNet
from .learning import fused_map

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
