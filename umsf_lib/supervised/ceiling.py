"""The supervised ceiling: our network, trained with the labels of the training scenes.

It does not compete with methods without labels but shows what this network can reach on these
inputs, so it trains longer. Its outputs are matched as theirs are; the networks of ``stage``
predict classes. Only the tables use its result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines.base import baseline_steps, learned, train_module
from ..clustering.inference import Classifier
from ..clustering.losses import soft_cross_entropy
from ..clustering.self_training import PseudoLabelSampler
from ..clustering.task import ClusteringTask
from ..config import IGNORE, DataError
from ..data.scene_set import SceneSet, valid_labels
from ..data.windows import training_tiles
from ..models.umsf_net import UmsfNet, clustering_head
from ..progress import Progress
from ..run import Run
from ..training.loop import Metrics, Row

LONGER = 4  # times the windows of the others, so that the ceiling is really reached


def fit_supervised(
    run: Run, task: ClusteringTask, *, progress: Progress | None = None
) -> Classifier:
    """Train by cross entropy from random weights; the outputs are matched as every method's.

    Raises:
        DataError: if ``has_ceiling`` is False.
    """
    if not has_ceiling(task.scenes):
        raise DataError(
            f"supervised: the training scenes of {task.scenes.folder.name} have no labels, or "
            "include test scenes; leave out this method."
        )
    model, per_class = run.config.model, replace(run.config.cluster, num_clusters=0)
    task = ClusteringTask(task.scenes, task.store, replace(run.config, cluster=per_class))
    head = partial(clustering_head, model.channels, model.cluster_hidden, task.num_clusters)
    return learned(run, task, "supervised", head, learn, pretrained=False, progress=progress)


def has_ceiling(scenes: SceneSet) -> bool:
    """Return whether training scenes have labels and none of them is a test scene."""
    train = scenes.indices("train")
    if not scenes.labelled or set(train) & set(scenes.indices("test")):
        return False
    return any((valid_labels(scenes, scene) != IGNORE).any() for scene in train)


def class_fractions(labels: Tensor, stride: int, classes: int) -> Tensor:
    """Compute the fraction of each class among the pixels of each token.

    Args:
        labels: ``(H, W)`` class ids, 255 = ignore.
        stride: px per token.
        classes: K.

    Returns:
        ``(K, ceil(H / stride), ceil(W / stride))`` float32; unlabelled pixels are missing from
        the sum over K.
    """
    maps = [
        F.avg_pool2d((labels == c).float()[None, None], stride, ceil_mode=True)[0, 0]
        for c in range(classes)  # one by one: all at full size would fill the memory
    ]
    return torch.stack(maps)


def label_loss(logits: Tensor, fractions: Tensor) -> Tensor:
    """Compute the cross entropy in nats, averaged over labelled pixels; 0 if there are none.

    Args:
        logits: ``(B, K, h, w)``.
        fractions: ``(B, K, h, w)`` from ``class_fractions``.
    """
    known = fractions.sum(dim=1)  # (B, h, w)
    return soft_cross_entropy(logits, fractions / known[:, None].clamp_min(1e-6), known)


def learn(
    task: ClusteringTask, progress: Progress | None, network: UmsfNet
) -> tuple[UmsfNet, list[Row]]:
    """Train with the views and the EMA of our self-training, but with labels as the teacher."""
    settings, scenes, device = task.config, task.scenes, task.store.device
    batch = replace(settings.cluster, batch=settings.pretrain.batch)
    config = replace(settings, cluster=batch)
    tiles = training_tiles(scenes, config.views.window_px, config.views.overlap_px)
    teacher = {
        scene: class_fractions(
            torch.from_numpy(valid_labels(scenes, scene)).to(device),
            network.stride,
            task.num_clusters,
        )
        for scene in scenes.indices("train")
    }
    sampler = PseudoLabelSampler(task.store, tiles, teacher, config)
    generator = torch.Generator().manual_seed(config.seed)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        views = sampler.draw(generator)
        losses = [label_loss(network(view.images), view.taught) for view in views]
        return torch.stack(losses).mean(), {}

    steps = LONGER * baseline_steps(task, pretrained=False)
    return train_module(network, loss_of, steps, config, generator, ema=True, progress=progress)
