"""Self-training of the clustering head from a label-free teacher.

A mixture on local statistics gives posteriors for every token. The network learns to predict them
from the pixels of two augmented views, and must agree with itself across the views. In further
rounds its own posteriors are the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from ..progress import Progress, each
from ..run import to_device
from ..training.loop import Metrics, Row, cosine_with_warmup, train, trainable
from .inference import network_posteriors
from .losses import clustering_loss, consistency_loss, soft_cross_entropy
from .smoothing import guide_of, smooth_tokens
from .tokens import token_validity

SMALLEST_SHARE = 1e-3  # floor of a cluster's share: the KL term must not divide by 0
STREAM_WEIGHT = 0.005  # of each stream's loss beside that of the fused tokens, as in REF-Net


def self_train(
    network: UmsfNet,
    store: PixelStore,
    tiles: Tensor,
    teacher: dict[int, Tensor],
    config: Config,
    *,
    progress: Progress | None = None,
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
            own = network_posteriors(average, store, config.map)
            taught = each(list(teacher), progress, "posteriors of the network")
            teacher = {scene: own(scene) for scene in taught}
        smoothed = smooth(teacher, store, config, progress=progress)
        sampler = PseudoLabelSampler(store, tiles, smoothed, config)
        done = number * settings.steps

        def report(step: int, steps: int, row: Mapping[str, Any], done: int = done) -> None:
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


def smooth(
    teacher: dict[int, Tensor],
    store: PixelStore,
    config: Config,
    *,
    progress: Progress | None = None,
) -> dict[int, Tensor]:
    """Smooth a teacher's posteriors: single tokens of another cluster are mostly noise."""
    stride, sigma = config.model.stride, config.cluster.smoothing_px
    return {
        scene: smooth_tokens(maps, guide_of(store, scene), stride, sigma)
        for scene, maps in each(list(teacher.items()), progress, "smooth the teacher")
    }


@dataclass(frozen=True, kw_only=True)
class TaughtView(View):
    """A view, and the teacher's posteriors ``taught (B, K, h, w)`` of the ground it shows.

    Unlike those of a ``View``, its ``valid`` tokens are on the device.
    """

    taught: Tensor


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

    def draw(self, generator: torch.Generator) -> tuple[TaughtView, TaughtView]:
        """Draw two views of a batch; windows start on the token grid, so that the tokens fit."""
        views, stride, store = self.config.views, self.config.model.stride, self.store
        size, jitter = views.window_px, (views.window_px - views.overlap_px) // 2
        count = self.config.cluster.batch
        scene, row, col = draw_windows(self.tiles, count, size, jitter, store.places, generator)
        row, col = row // stride, col // stride  # tokens
        windows = store.windows(scene, row * stride, col * stride, size)
        places, side = torch.stack([scene, row, col], dim=1).tolist(), size // stride

        def cut(maps: dict[int, Tensor]) -> Tensor:
            """Windows (B, ..., h, w) of the maps."""
            return torch.stack([maps[s][..., r : r + side, c : c + side] for s, r, c in places])

        taught = cut(self.teacher)  # (B, K, h, w)
        ground = None if store.all_valid else cut(self.valid)[:, None].float()  # (B, 1, h, w)

        def view() -> TaughtView:
            drawn = make_view(windows, views, generator)
            # Only flipped and turned, each token is 0 or 1 but for rounding: (B, h, w)
            valid = None if ground is None else resample(ground, drawn.theta)[:, 0] > 0.99
            seen = resample(taught, drawn.theta)
            return TaughtView(drawn.images, drawn.theta, valid, taught=seen)

        return view(), view()


def _round(
    network: UmsfNet,
    average: UmsfNet,
    sampler: PseudoLabelSampler,
    config: Config,
    generator: torch.Generator,
    done: int,
    progress: Progress,
) -> list[Row]:
    """Train for one round, after ``done`` steps of earlier rounds."""
    settings = config.cluster
    optimizer = torch.optim.AdamW(trainable(network.parameters()), settings.lr, weight_decay=1e-4)
    network.train()

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        views = sampler.draw(generator)
        return self_training_loss(network, average, views, sampler.shares, config, generator)

    return train(
        network,
        loss_of,
        optimizer,
        steps=settings.steps,
        schedule=partial(cosine_with_warmup, warmup=max(1, settings.steps // 20)),
        generator=generator,
        batch=("cluster.batch", settings.batch),
        amp=config.pretrain.amp,
        after_step=lambda s: momentum_update(average, network, ema_at(done + s, settings.ema)),
        progress=progress,
    )


def ema_at(step: int, ema: float) -> float:
    """Return the EMA momentum after ``step``: low at first, so that it forgets random weights."""
    return min(ema, (1 + step) / (10 + step))


def self_training_loss(
    network: UmsfNet,
    average: UmsfNet,
    views: tuple[TaughtView, TaughtView],
    shares: Tensor,
    config: Config,
    generator: torch.Generator,
) -> tuple[Tensor, Metrics]:
    """Add up the teacher's cross entropy, the clustering loss and consistency with the EMA network.

    The prior of the clustering loss is the teacher's cluster ``shares (K,)``: equal shares would be
    wrong for land cover. Streams that only training has (REF-Net) learn from the teacher, too.
    """
    settings = config.cluster
    # Of each view those of the fused tokens, then of the streams: (B, K, h, w) each
    every = [network.logits(network.features(view.images), streams=True) for view in views]
    logits = [said for said, *_ in every]
    taught = [
        torch.stack([soft_cross_entropy(one, view.taught, view.valid) for one in said])
        for said, view in zip(every, views, strict=True)
    ]
    fused, *streams = torch.stack(taught).mean(dim=0)
    parts: dict[str, Tensor | float] = {"teacher": fused}
    loss = fused + STREAM_WEIGHT * sum(streams)
    if settings.clustering > 0:
        valid = [view.valid for view in views if view.valid is not None]  # both or none
        weight = torch.cat(valid) if valid else None
        probabilities = torch.cat(logits).softmax(dim=1)
        parts["clustering"] = clustering_loss(probabilities, settings.balance, shares, weight)
        loss = loss + settings.clustering * parts["clustering"]
    if settings.consistency > 0:
        parts["consistency"] = _cross_view(average, views, logits, config, generator)
        loss = loss + settings.consistency * parts["consistency"]
    return loss, parts


def _cross_view(
    average: UmsfNet,
    views: tuple[TaughtView, TaughtView],
    logits: list[Tensor],
    config: Config,
    generator: torch.Generator,
) -> Tensor:
    """Compute the loss of each view against the EMA network's posteriors of the other view."""
    height, width = logits[0].shape[2:]
    *points, visible = draw_matches(*views, height * width, generator)
    students, teachers, valid = [], [], []
    for view, own, where in zip(views, logits, points, strict=True):
        around = [x[:, visible] for x in tokens_around(where, height, width)]
        index, weight = (to_device(x, own.device) for x in around)  # (4, M) each
        with torch.no_grad():
            answers = average(view.images).softmax(dim=1)
        students.append(read_tokens(own, index, weight))  # (B, K, h, w) -> (M, K)
        teachers.append(read_tokens(answers, index, weight))
        if view.valid is not None:  # (B, h, w) -> (M,)
            valid.append(read_tokens(view.valid[:, None].float(), index, weight)[:, 0])
    both = torch.stack(valid).prod(dim=0) if valid else None  # 1 where both see valid ground
    losses = [
        consistency_loss(student, teacher, config.cluster.temperature, both)
        for student, teacher in zip(students, reversed(teachers), strict=True)
    ]
    return torch.stack(losses).mean()
