"""SCAN: neighbours must share a cluster, then confident tokens are self-labelled.

Source: Van Gansbeke et al. 2020. Published: MoCo features, 20 to 50 neighbours mined before the
MLP, ten linear heads on frozen features for ImageNet, entropy weight 5 (2 in the code's default),
self-labelling of images above probability 0.99 under strong augmentation. Here: fused dense tokens
of our own pretrained network, neighbours from a sample of training tokens, entropy weights swept
and chosen without labels, self-labelling of dense tokens with a cut-out square; the EMA is kept.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clustering.inference import Classifier
from ..clustering.losses import soft_cross_entropy
from ..clustering.task import ClusteringTask
from ..data.windows import draw_windows, training_tiles
from ..models.speckle import draw_uniform
from ..models.umsf_net import UmsfNet
from ..pretraining.augmentations import View, make_view, resample
from ..progress import Progress, in_phase
from ..run import Run
from ..training.loop import Metrics, Row
from .base import baseline_steps, learned, train_module, training_tokens

NEIGHBOURS = 20
ENTROPY_WEIGHTS = (0.5, 1.0, 2.0, 5.0)
HEAD_EPOCHS, HEAD_BATCH = 50, 512
THRESHOLD = 0.99
CUT = 0.3  # side of the cut-out square, in windows


def fit_scan(run: Run, task: ClusteringTask, *, progress: Progress | None = None) -> Classifier:
    """Run SCAN on our pretrained network: linear heads on its tokens, then self-labelling."""
    head = partial(nn.Conv2d, run.config.model.channels, task.num_clusters, 1)
    return learned(run, task, "scan", head, learn, pretrained=True, progress=progress)


def nearest_neighbours(tokens: Tensor, count: int = NEIGHBOURS, chunk: int = 1024) -> Tensor:
    """Find the nearest rows by cosine: ``(n, D)`` -> indices ``(n, 1 + count)``, itself first."""
    unit = F.normalize(tokens, dim=1)
    rows = []
    for start in range(0, len(unit), chunk):
        similarity = unit[start : start + chunk] @ unit.T  # (chunk, n)
        own = torch.arange(start, start + len(similarity), device=unit.device)
        similarity[own - start, own] = torch.inf  # a copy of it must not come before
        rows.append(similarity.topk(min(1 + count, len(unit)), dim=1).indices)
    return torch.cat(rows)


def scan_loss(anchor: Tensor, neighbour: Tensor, entropy_weight: float | Tensor) -> Tensor:
    """Compute ``-mean ln <a, b> - entropy_weight * H(mean a)``; at best -5 ln K for a weight of 5.

    Both hold probabilities ``(..., M, K)`` of tokens a and their neighbours b; the result is
    ``(...)``.
    """
    agreement = (anchor * neighbour).sum(dim=-1).clamp_min(1e-12)
    shares = anchor.mean(dim=-2).clamp_min(1e-12)
    entropy = -(shares * shares.log()).sum(dim=-1)
    return -agreement.log().mean(dim=-1) - entropy_weight * entropy


class LinearHeads(nn.Module):
    """Linear heads side by side, with weights ``(H, K, C)``."""

    def __init__(self, heads: int, channels: int, num_clusters: int) -> None:
        super().__init__()
        layers = [nn.Linear(channels, num_clusters) for _ in range(heads)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(M, C)`` to probabilities ``(H, M, K)``."""
        return (tokens @ self.weight.transpose(1, 2) + self.bias[:, None]).softmax(dim=2)


def learn(
    task: ClusteringTask, progress: Progress | None, network: UmsfNet
) -> tuple[UmsfNet, list[Row]]:
    """Run both steps; the second is skipped, with a warning, if no token is confident."""
    tokens = training_tokens(network, task, lambda features: features, progress)  # (n, C)
    neighbours = nearest_neighbours(tokens)
    heads, rows = cluster_step(tokens, neighbours, task, in_phase(progress, "linear heads"))
    chosen = best_head(heads, tokens, neighbours)
    linear = network.clustering
    assert isinstance(linear, nn.Conv2d) and linear.bias is not None
    with torch.no_grad():
        linear.weight.copy_(heads.weight[chosen, :, :, None, None])
        linear.bias.copy_(heads.bias[chosen])
        sure = heads(tokens)[chosen].amax(dim=1) > THRESHOLD
    rows = [row | {"round": 1.0} for row in rows]
    if not sure.any():
        warnings.warn(
            f"SCAN: no token reached probability {THRESHOLD}, so the self-labelling step is "
            "skipped and the clusters of the first step are kept.",
            stacklevel=2,
        )
        return network, rows
    network, more = self_label(network, task, progress)
    return network, rows + [row | {"round": 2.0} for row in more]


def cluster_step(
    tokens: Tensor, neighbours: Tensor, task: ClusteringTask, progress: Progress | None = None
) -> tuple[LinearHeads, list[Row]]:
    """Train the heads of all entropy weights at once on frozen tokens ``(n, C)``."""
    config, device = task.config, tokens.device
    count = config.baseline.heads
    generator = torch.Generator().manual_seed(config.seed)
    heads = LinearHeads(count * len(ENTROPY_WEIGHTS), tokens.shape[1], task.num_clusters)
    weights = torch.tensor(ENTROPY_WEIGHTS, device=device).repeat_interleave(count)  # (H,)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        anchor = torch.randint(len(tokens), (HEAD_BATCH,), generator=generator).to(device)
        pick = torch.randint(neighbours.shape[1], (HEAD_BATCH,), generator=generator).to(device)
        other = neighbours[anchor, pick]
        losses = scan_loss(heads(tokens[anchor]), heads(tokens[other]), weights)  # (H,)
        return losses.sum(), {}

    steps = HEAD_EPOCHS * max(1, len(tokens) // HEAD_BATCH)
    return train_module(heads.to(device), loss_of, steps, config, generator, progress=progress)


@torch.no_grad()
def best_head(heads: LinearHeads, tokens: Tensor, neighbours: Tensor) -> int:
    """Find the head with the lowest loss at entropy weight 1, over all tokens and neighbours."""
    p = heads(tokens)  # (H, n, K)
    losses = [scan_loss(p, p[:, other], 1.0) for other in neighbours.T]
    return int(torch.stack(losses).mean(dim=0).argmin())


def pseudo_labels(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return one-hot labels ``(B, K, h, w)``, 0 where ``p`` is not confident, and that mask."""
    sure = p.amax(dim=1) > THRESHOLD
    labels = F.one_hot(p.argmax(dim=1), p.shape[1]).permute(0, 3, 1, 2)
    return (labels * sure[:, None]).float(), sure


def self_label(
    network: UmsfNet, task: ClusteringTask, progress: Progress | None
) -> tuple[UmsfNet, list[Row]]:
    """Train strongly augmented windows on confident labels of plain ones; returns the EMA."""
    config, store, views = task.config, task.store, task.config.views
    tiles = training_tiles(task.scenes, views.window_px, views.overlap_px)
    generator = torch.Generator().manual_seed(config.seed + 1)
    jitter = (views.window_px - views.overlap_px) // 2

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        size, count = views.window_px, config.pretrain.batch
        where = draw_windows(tiles, count, size, jitter, store.places, generator)
        windows = store.windows(*where, size)
        with torch.no_grad():
            p = network(windows).softmax(dim=1)
        labels, sure = pseudo_labels(p)
        ground = F.avg_pool2d(windows["valid"].float(), network.stride)  # (B, 1, h, w)
        labels, sure = labels * (ground >= 0.5), sure & (ground >= 0.5)[:, 0]
        strong = make_view(windows, views, generator)
        images = cut_out(strong, generator)
        taught = resample(labels, strong.theta)  # the labels of the same ground
        known = taught.sum(dim=1)
        target = taught / known[:, None].clamp_min(1e-6)
        logits = network(images)
        loss = soft_cross_entropy(logits, target, (known > 0.5).float())
        return loss, {"confident": sure.float().mean()}

    steps = baseline_steps(task, pretrained=True)
    return train_module(network, loss_of, steps, config, generator, ema=True, progress=progress)


def cut_out(view: View, generator: torch.Generator) -> dict[str, Tensor]:
    """Set one square per window of a view to 0, the mean, in both sensors."""
    some = next(iter(view.images.values()))
    size, device = some.shape[-1], some.device
    side = round(CUT * size)
    corner = draw_uniform((len(some), 2, 1), generator, device) * (size - side)
    line = torch.arange(size, device=device)
    inside = (line >= corner) & (line < corner + side)  # (B, 2, size)
    hole = inside[:, None, 0, :, None] & inside[:, None, 1, None, :]
    shown = {role: view.images[role] for role in ("optical", "sar") if role in view.images}
    return view.images | {role: images.masked_fill(hole, 0) for role, images in shown.items()}
