"""Self-training of the clustering head from a label-free teacher.

A mixture on local statistics gives posteriors for every token. The network learns to predict them
from the pixels of two augmented views, and must agree with itself across the views. In further
rounds its own posteriors are the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import Config, ViewConfig
from ..data.windows import PixelStore, draw_windows
from ..models.umsf_net import UmsfNet
from ..pretraining.augmentations import (
    View,
    draw_matches,
    make_view,
    read_tokens,
    resample,
    tokens_around,
)
from ..pretraining.momentum import key_network, momentum_update
from ..run import to_device
from ..training.loop import Row, train, trainable
from .inference import average_over_flips, scene_map
from .losses import clustering_loss, consistency_loss, soft_cross_entropy
from .smoothing import guide_of, smooth_tokens, valid_weight
from .tokens import token_validity

TEACHER_SYMMETRIES = 2  # of the square, averaged when the network becomes its own teacher
SMALLEST_SHARE = 1e-3  # floor of a cluster's share: the KL term must not divide by 0


@dataclass(frozen=True)
class TaughtBatch:
    """Two views of a batch of windows, and the teacher's posteriors ``(B, K, h, w)`` in each.

    ``valid (B, h, w)`` float32 of each view is 1 where a token lies on valid ground, else 0; None
    where all of them do.
    """

    first: View
    second: View
    taught: tuple[Tensor, Tensor]
    valid: tuple[Tensor | None, Tensor | None] = (None, None)


class PseudoLabelSampler:
    """Sampler of windows together with the teacher's posteriors on the same ground."""

    def __init__(
        self, store: PixelStore, tiles: Tensor, teacher: dict[int, Tensor], config: Config
    ) -> None:
        self.store, self.tiles, self.config = store, tiles, config
        self.teacher = teacher  # scene -> (K, h, w) at the network's stride
        self.valid = {s: token_validity(store, s, config.model.stride) for s in teacher}  # (h, w)
        totals = [maps[:, self.valid[scene]].sum(dim=1) for scene, maps in teacher.items()]
        shares = torch.stack(totals).sum(dim=0)
        shares = (shares / shares.sum()).clamp_min(SMALLEST_SHARE)
        self.shares = shares / shares.sum()  # (K,) of the valid ground

    def draw(self, generator: torch.Generator) -> TaughtBatch:
        """Draw one batch; windows start on the token grid, so that the teacher's tokens fit."""
        views, stride, store = self.config.views, self.config.model.stride, self.store
        size, jitter = views.window_px, (views.window_px - views.overlap_px) // 2
        count = self.config.cluster.batch
        scene, row, col = draw_windows(self.tiles, count, size, jitter, store.places, generator)
        row, col = row // stride * stride, col // stride * stride
        windows = store.windows(scene, row, col, size)
        first, second = (make_view(windows, views, generator) for _ in range(2))
        places = torch.stack([scene, row // stride, col // stride], dim=1).tolist()
        side = size // stride
        taught = torch.stack([self.teacher[s][:, r : r + side, c : c + side] for s, r, c in places])
        batch = TaughtBatch(
            first, second, (resample(taught, first.theta), resample(taught, second.theta))
        )
        if store.all_valid:
            return batch
        valid = torch.stack([self.valid[s][None, r : r + side, c : c + side] for s, r, c in places])
        # Views are only flipped and turned, so each token is 0 or 1 but for rounding.
        seen = [resample(valid.float(), view.theta)[:, 0] > 0.99 for view in (first, second)]
        return replace(batch, valid=(seen[0].float(), seen[1].float()))  # (B, h, w) each


def posteriors_of(network: UmsfNet, symmetries: int) -> Callable[[dict[str, Tensor]], Tensor]:
    """Make a function: windows -> posteriors ``(B, K, h, w)``, averaged over some symmetries."""

    def function(windows: dict[str, Tensor]) -> Tensor:
        return network(windows).softmax(dim=1)

    return average_over_flips(function, symmetries)


def self_train(
    network: UmsfNet,
    store: PixelStore,
    tiles: Tensor,
    teacher: dict[int, Tensor],
    config: Config,
    *,
    progress: Callable[[int, int, Row], None] | None = None,
) -> tuple[UmsfNet, list[Row]]:
    """Train the network on the teacher's posteriors and, in further rounds, on its own.

    Args:
        network: encoders, fusion and clustering head; trained in place.
        store: source of the windows.
        tiles: ``(T, 3)`` scene, row, col of the training tiles.
        teacher: training scene -> posteriors ``(K, h, w)`` at the network's stride.
        config: ``cluster`` holds the rounds, steps and weights.
        progress: see ``loop.train``; called with steps over all rounds.

    Returns:
        The EMA of the network, which is better and more stable than its last step; the log rows.
    """
    settings = config.cluster
    config = replace(config, views=keep_texture(config.views))
    generator = torch.Generator().manual_seed(config.seed + 1)
    average = key_network(network).eval()
    rows: list[Row] = []
    for number in range(settings.rounds):
        if number > 0:
            teacher = own_posteriors(average, store, list(teacher), config)
        sampler = PseudoLabelSampler(store, tiles, smooth(teacher, store, config), config)
        done = number * settings.steps

        def report(step: int, steps: int, row: Row, done: int = done) -> None:
            if progress:
                progress(done + step, settings.rounds * settings.steps, row)

        new = _round(network, average, sampler, config, generator, done, report)
        rows += [row | {"round": number + 1.0, "step": row["step"] + done} for row in new]
    return average, rows


def keep_texture(views: ViewConfig) -> ViewConfig:
    """Limit views to flips, quarter turns and small gain changes: the teacher reads local spread.

    Resampled crops, blur or more speckle would change the spread, and the network could no longer
    see what the teacher has seen.
    """
    return replace(views, scale_min=1.0, blur=0.0, speckle_looks=0)


def smooth(teacher: dict[int, Tensor], store: PixelStore, config: Config) -> dict[int, Tensor]:
    """Smooth a teacher's posteriors: single tokens of another cluster are mostly noise."""
    stride, sigma = config.model.stride, config.cluster.smoothing_px
    return {
        scene: smooth_tokens(
            maps, guide_of(store, scene), stride, sigma, valid_weight(store, scene)
        )
        for scene, maps in teacher.items()
    }


def own_posteriors(
    network: UmsfNet, store: PixelStore, scenes: Sequence[int], config: Config
) -> dict[int, Tensor]:
    """Compute the network's own posteriors of whole scenes, the teacher of the next round."""
    function, stride = posteriors_of(network, TEACHER_SYMMETRIES), network.stride
    return {s: scene_map(function, store, s, stride, config.map) for s in scenes}


def _round(
    network: UmsfNet,
    average: UmsfNet,
    sampler: PseudoLabelSampler,
    config: Config,
    generator: torch.Generator,
    done: int,
    progress: Callable[[int, int, Row], None],
) -> list[Row]:
    """Train for one round, after ``done`` steps of earlier rounds."""
    settings = config.cluster
    optimizer = torch.optim.AdamW(trainable(network.parameters()), settings.lr, weight_decay=1e-4)
    network.train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch = sampler.draw(generator)
        return self_training_loss(network, average, batch, sampler.shares, config, generator)

    def follow(step: int) -> None:
        momentum_update(average, network, ema_at(done + step, settings.ema))

    return train(
        network,
        loss_of,
        optimizer,
        steps=settings.steps,
        warmup=max(1, settings.steps // 20),
        generator=generator,
        batch=("cluster.batch", settings.batch),
        amp=config.pretrain.amp,
        after_step=follow,
        progress=progress,
    )


def ema_at(step: int, ema: float) -> float:
    """Return the EMA momentum after ``step``: low at first, so that it forgets random weights."""
    return min(ema, (1 + step) / (10 + step))


def self_training_loss(
    network: UmsfNet,
    average: UmsfNet,
    batch: TaughtBatch,
    shares: Tensor,
    config: Config,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Add up the teacher's cross entropy, the clustering loss and consistency with the EMA network.

    The prior of the clustering loss is the teacher's cluster ``shares (K,)``: equal shares would be
    wrong for land cover.
    """
    settings = config.cluster
    logits = [network(view.images) for view in (batch.first, batch.second)]
    taught = torch.stack(
        [soft_cross_entropy(*pair) for pair in zip(logits, batch.taught, batch.valid, strict=True)]
    ).mean()
    parts: dict[str, Any] = {"teacher": taught}
    loss = taught
    if settings.clustering > 0:
        probabilities = torch.cat(logits).softmax(dim=1)
        first, second = batch.valid
        valid = None if first is None or second is None else torch.cat([first, second])
        parts["clustering"] = clustering_loss(probabilities, settings.balance, shares, valid)
        loss = loss + settings.clustering * parts["clustering"]
    if settings.consistency > 0:
        consistency = _cross_view(average, batch, logits, config, generator)
        parts["consistency"] = consistency
        loss = loss + settings.consistency * consistency
    return loss, parts


def _cross_view(
    average: UmsfNet,
    batch: TaughtBatch,
    logits: list[Tensor],
    config: Config,
    generator: torch.Generator,
) -> Tensor:
    """Compute the loss of each view against the EMA network's posteriors of the other view."""
    count, device = logits[0][0, 0].numel(), logits[0].device
    points_a, points_b, visible = draw_matches(batch.first, batch.second, count, generator)
    with torch.no_grad():
        answers = [average(view.images).softmax(dim=1) for view in (batch.first, batch.second)]
    around = [tokens_around(points, *logits[0].shape[2:]) for points in (points_a, points_b)]
    places = [
        (to_device(index[:, visible], device), to_device(weight[:, visible], device))
        for index, weight in around
    ]  # (4, M) each
    weight = None
    for valid, place in zip(batch.valid, places, strict=True):
        if valid is not None:
            share = read_tokens(valid[:, None], *place)[:, 0]  # (M,)
            weight = share if weight is None else weight * share
    losses = []
    for mine, other in ((0, 1), (1, 0)):
        student = read_tokens(logits[mine], *places[mine])  # (B, K, h, w) -> (M, K)
        teacher = read_tokens(answers[other], *places[other])
        losses.append(consistency_loss(student, teacher, config.cluster.temperature, weight))
    return torch.stack(losses).mean()
