"""The plain mutual-information head: the published clustering loss, without a teacher.

The loss is minus the mutual information of token and cluster, ``H(p_i) - H(mean p)``
(``clustering_loss`` with balance 1 and equal sizes), plus the symmetric KL divergence of two views,
with the published weights 0.5 and 0.5. Published: one pooled vector per patch, one head. Here:
dense tokens, or pooled vectors if the contrast is fully pooled too (``pretrain.pooled`` 1, variant
``as_published``); several heads, of which the one with the highest mutual information on training
tokens is kept.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..clustering.inference import Classifier
from ..clustering.losses import clustering_loss, symmetric_kl
from ..clustering.task import ClusteringTask
from ..models.umsf_net import UmsfNet
from ..pretraining.augmentations import sample_tokens
from ..progress import Progress
from ..run import Run
from ..training.loop import Metrics, Row
from .base import baseline_steps, learned, token_pairs, train_module, training_tokens
from .heads import Heads

NAME = "mutual-information"
BALANCE = 1.0  # any other weight is no mutual information


def fit_mutual_information(
    run: Run, task: ClusteringTask, *, progress: Progress | None = None
) -> Classifier:
    """Train all weights of our pretrained network with the clustering loss and consistency."""
    head = partial(Heads, run.config.model, run.config.baseline.heads, task.num_clusters)
    views = run.config.views
    return learned(run, task, NAME, head, learn, pretrained=True, views=views, progress=progress)


def learn(
    task: ClusteringTask, progress: Progress | None, network: UmsfNet
) -> tuple[UmsfNet, list[Row]]:
    """Train all heads at once, and keep the one with the lowest loss on training tokens."""
    config, source, heads = task.config, token_pairs(task), network.clustering
    assert isinstance(heads, Heads)
    generator = torch.Generator().manual_seed(config.seed)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        batch = source.draw(config.pretrain.batch, generator)
        maps = [network.features(view.images)["fused"] for view in (batch.first, batch.second)]
        clustering, consistency = [], []
        for head in heads.all:
            if config.pretrain.pooled == 1:
                first, second = (
                    head(view.pool(x)[:, :, None, None]).float()[batch.shown, :, 0, 0]
                    for x, view in zip(maps, (batch.first, batch.second), strict=True)
                )
            else:
                first, second = (
                    sample_tokens(head(x).float(), points)[batch.visible]  # (M, K)
                    for x, points in zip(maps, (batch.points_a, batch.points_b), strict=True)
                )
            both = torch.cat([first, second]).softmax(dim=1)
            clustering.append(clustering_loss(both, BALANCE))
            consistency.append(symmetric_kl(first, second))
        told, agreed = torch.stack(clustering).mean(), torch.stack(consistency).mean()
        loss = config.cluster.clustering * told + config.cluster.consistency * agreed
        return loss, {"clustering": told, "consistency": agreed}

    steps = baseline_steps(task, pretrained=True)
    _, rows = train_module(network, loss_of, steps, config, generator, progress=progress)

    def logits(features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in heads.all], dim=1)

    tokens = training_tokens(network, task, logits, progress)
    losses = [clustering_loss(x.softmax(1), BALANCE) for x in tokens.chunk(len(heads.all), dim=1)]
    heads.chosen.fill_(int(torch.stack(losses).argmin()))
    return network, rows
