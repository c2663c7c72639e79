"""SwAV: each view predicts the balanced code of the other (Caron et al. 2020).

Published: pooled images, crops of two sizes, 3 000 prototypes, LARC, 3 840 queued features from
epoch 15. Here: dense tokens at the same ground in two views, AdamW, ten prototypes per cluster
(one per class would cap the accuracy, since all get equal sizes), a queue that is used once it is
full, prototypes frozen for the first 5 % of the steps and finally merged to K.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clustering.inference import Classifier
from ..clustering.losses import soft_cross_entropy
from ..clustering.task import ClusteringTask
from ..models.umsf_net import UmsfNet
from ..pretraining.augmentations import sample_tokens
from ..progress import Progress
from ..run import Run
from ..training.loop import Metrics, Row
from .base import baseline_steps, learned, token_pairs, train_module, training_tokens
from .heads import TEMPERATURE, PrototypeHead, prototype_head

EPSILON, ITERATIONS = 0.05, 3
FROZEN = 0.05  # share of the steps in which the prototypes are frozen


def fit_swav(run: Run, task: ClusteringTask, *, progress: Progress | None = None) -> Classifier:
    """Train SwAV from our pretrained network, and merge its prototypes to the clusters."""
    head = partial(prototype_head, task)
    return learned(run, task, "swav", head, learn, pretrained=True, progress=progress)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Compute codes ``(M, P)``: rows sum to 1, and each prototype gets nearly M / P of them.

    Args:
        scores: ``(M, P)`` cosines.
        epsilon: smaller values give harder codes.
        iterations: after 3 the column sums are equal within a few percent, after 50 exactly.
    """
    codes = ((scores.float() - scores.max()) / epsilon).exp()
    samples, prototypes = codes.shape
    codes /= codes.sum()
    for _ in range(iterations):
        # A column that has underflowed to 0 must not be divided by 0.
        codes /= codes.sum(dim=0, keepdim=True).clamp_min(1e-30) * prototypes
        codes /= codes.sum(dim=1, keepdim=True).clamp_min(1e-30) * samples
    return codes * samples


def swapped_loss(scores: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the mean cross entropy of each view's scores ``(M, P)`` with the other's codes."""
    first, second = (x / TEMPERATURE for x in scores)
    return (soft_cross_entropy(first, codes[1]) + soft_cross_entropy(second, codes[0])) / 2


class TokenQueue:
    """Queue of the last ``size`` embeddings of one view, used once it is full."""

    def __init__(self, size: int) -> None:
        self.size, self.entries = size, torch.zeros(0)

    def codes(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """Compute codes ``(M, P)`` of embeddings ``(M, D)``, balanced together with the queue."""
        full = len(self.entries) == self.size
        every = torch.cat([z, self.entries]) if full else z
        return sinkhorn(every @ prototypes.T)[: len(z)]

    def enqueue(self, z: Tensor) -> None:
        """Put embeddings ``(M, D)`` in front of the older ones."""
        self.entries = torch.cat([z, self.entries.view(-1, z.shape[1]).to(z)])[: self.size]


def learn(
    task: ClusteringTask, progress: Progress | None, network: UmsfNet
) -> tuple[UmsfNet, list[Row]]:
    """Train encoders, fusion, projection and prototypes; merge the prototypes."""
    config, source, head = task.config, token_pairs(task), network.clustering
    assert isinstance(head, PrototypeHead)
    generator = torch.Generator().manual_seed(config.seed)
    queues = [TokenQueue(config.baseline.queue_size) for _ in range(2)]
    steps = baseline_steps(task, pretrained=True)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        batch = source.draw(config.pretrain.batch, generator)
        z = []  # (M, D) of each view
        for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b)):
            maps = head.embed(network.features(view.images)["fused"])
            z.append(F.normalize(sample_tokens(maps, points)[batch.visible], dim=1))
        free = step >= FROZEN * steps
        prototypes = F.normalize(head.prototypes if free else head.prototypes.detach(), dim=1)
        fixed = [x.detach() for x in z]
        codes = [q.codes(x, prototypes.detach()) for q, x in zip(queues, fixed, strict=True)]
        for queue, x in zip(queues, fixed, strict=True):
            queue.enqueue(x)
        loss = swapped_loss((z[0] @ prototypes.T, z[1] @ prototypes.T), (codes[0], codes[1]))
        used = torch.cat(codes).argmax(dim=1).unique().numel()
        return loss, {"prototypes_used": float(used)}

    _, rows = train_module(network, loss_of, steps, config, generator, progress=progress)
    tokens = F.normalize(training_tokens(network, task, head.embed, progress), dim=1)
    head.settle(F.normalize(head.prototypes.detach(), dim=1)[None], tokens)
    return network, rows
