"""DeepCluster v2: cluster a memory of embeddings, then predict the clusters (Caron et al. 2020).

Published: one pooled embedding per image and crop, 3 heads of 3 000 centroids, one clustering per
epoch. Here: a grid of dense tokens per training window, ten centroids per cluster and head, ten
clusterings during training (which is only a few epochs long); then the centroids are merged to K.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..config import ConfigError
from ..data.windows import training_tiles
from ..models.umsf_net import UmsfNet
from ..pretraining.augmentations import View, invert_affine, make_view, sample_tokens
from ..progress import Progress, each
from ..run import Run, to_device
from ..training.loop import Metrics, Row
from .base import baseline_steps, learned, train_module, training_tokens
from .heads import TEMPERATURE, PrototypeHead, prototype_head

KMEANS_ITERATIONS = 10
CLUSTERINGS = 10  # over the whole training


def fit_deepcluster(
    run: Run, task: ClusteringTask, *, progress: Progress | None = None
) -> Classifier:
    """Train DeepCluster v2 from random weights, then merge one head's centroids to clusters."""
    head = partial(prototype_head, task)
    return learned(run, task, "deepcluster", head, learn, pretrained=False, progress=progress)


def spherical_kmeans(
    z: Tensor, clusters: int, generator: torch.Generator, iterations: int = KMEANS_ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Run k-means with cosines, starting from random rows; an empty cluster keeps its centroid.

    Args:
        z: ``(n, D)`` unit rows.
        clusters: P.
        generator: CPU generator that chooses the first centroids.
        iterations: number of rounds of assignment and normalised mean.

    Returns:
        Unit centroids ``(P, D)``, and the index ``(n,)`` of the nearest one of each row.

    Raises:
        ConfigError: if there are more clusters than rows.
    """
    if clusters > len(z):
        raise ConfigError(
            f"baseline.prototypes asks for {clusters} clusters of {len(z)} tokens; lower "
            "baseline.prototypes or raise baseline.tokens."
        )
    first = torch.randperm(len(z), generator=generator)[:clusters]
    centroids = z[first.to(z.device)]
    for _ in range(iterations):
        nearest = (z @ centroids.T).argmax(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, z)
        some = nearest.bincount(minlength=clusters)[:, None] > 0
        centroids = torch.where(some, F.normalize(sums, dim=1), centroids)
    return centroids, (z @ centroids.T).argmax(dim=1)


class Memory:
    """Embeddings of a grid of tokens in every training window, one memory per view.

    Attributes:
        tiles: ``(T, 3)`` scene, row, col of the windows.
        grid: ``(n, 2)`` (x, y) of the tokens in a window, in [-1, 1].
        entries: ``(2, T, n, D)`` unit vectors.
        valid: ``(T, n)`` bool, the token lies on valid ground.
    """

    def __init__(self, task: ClusteringTask, dim: int) -> None:
        config, device = task.config, task.store.device
        self.task, self.size = task, config.views.window_px
        self.tiles = training_tiles(task.scenes, self.size, config.views.overlap_px)
        line = int(config.baseline.tokens**0.5)
        steps = (torch.arange(line) + 0.5) / line * 2 - 1  # on the CPU, as all geometry
        self.grid = torch.cartesian_prod(steps, steps).flip(1)
        self.entries = torch.zeros(2, len(self.tiles), len(self.grid), dim, device=device)
        scene, row, col = self.tiles.T[:, :, None]  # (T, 1) each
        inside = ((self.grid + 1) / 2 * self.size).long()  # (n, 2) x, y in px
        places = (row + inside[:, 1], col + inside[:, 0])  # (T, n) each
        self.valid = task.store.valid_at(scene.expand_as(places[0]), *places).to(device)

    def views(self, which: Tensor, generator: torch.Generator) -> list[View]:
        """Make two views of the windows ``which (B,)``."""
        store, (scene, row, col) = self.task.store, self.tiles[which].T
        windows = store.windows(scene, row, col, self.size)
        views = self.task.config.views
        return [make_view(windows, views, generator) for _ in range(2)]

    def embed(self, network: UmsfNet, view: View) -> tuple[Tensor, Tensor]:
        """Embed the grid in a view: ``(B, n, D)``, and ``(B, n)`` bool, True if it is visible."""
        points = invert_affine(view.theta, self.grid.expand(len(view.theta), -1, -1))
        maps = network.clustering.embed(network.features(view.images)["fused"])  # type: ignore[union-attr, operator]
        seen = to_device((points.abs() < 1).all(dim=2), maps.device)
        return F.normalize(sample_tokens(maps, points), dim=2), seen

    @torch.no_grad()
    def fill(
        self, network: UmsfNet, generator: torch.Generator, progress: Progress | None = None
    ) -> None:
        """Fill the memory in one pass over all windows, before training."""
        batches = torch.arange(len(self.tiles)).split(self.task.config.pretrain.batch)
        for some in each(batches, progress, "first embeddings"):
            for bank, view in zip(self.entries, self.views(some, generator), strict=True):
                bank[some] = self.embed(network, view)[0]

    def cluster(self, clusters: int, heads: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Cluster the memory; the heads take turns with the embeddings of the two views.

        Returns:
            Centroids ``(H, P, D)`` and assignments ``(H, T, n)``.
        """
        found = [
            spherical_kmeans(self.entries[head % 2][self.valid], clusters, generator)
            for head in range(heads)
        ]
        assigned = torch.zeros(heads, *self.valid.shape, dtype=torch.int64).to(self.valid.device)
        assigned[:, self.valid] = torch.stack([nearest for _, nearest in found])
        return torch.stack([centroids for centroids, _ in found]), assigned


def learn(
    task: ClusteringTask, progress: Progress | None, network: UmsfNet
) -> tuple[UmsfNet, list[Row]]:
    """Alternate: cluster the memory, train on its assignments, update the entries seen in training.

    The prototypes of the network's head are set at the end.
    """
    config, head = task.config, network.clustering
    assert isinstance(head, PrototypeHead)
    head.prototypes.requires_grad_(False)  # centroids are set, not learned
    count, heads = len(head.prototypes), config.baseline.heads
    generator = torch.Generator().manual_seed(config.seed)
    memory = Memory(task, head.prototypes.shape[1])
    memory.fill(network.train(), generator, progress)
    steps = baseline_steps(task, pretrained=False)
    every = max(1, steps // CLUSTERINGS)
    now: dict[str, Tensor] = {}

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        if step % every == 0:
            now["centroids"], now["assigned"] = memory.cluster(count, heads, generator)
        which = torch.randint(len(memory.tiles), (config.pretrain.batch,), generator=generator)
        losses = []
        for bank, view in zip(memory.entries, memory.views(which, generator), strict=True):
            z, seen = memory.embed(network, view)
            seen &= memory.valid[which.to(seen.device)]
            scores = torch.einsum("md,hpd->mph", z[seen], now["centroids"])  # (M, P, H)
            target = now["assigned"][:, which.to(seen.device)][:, seen].T  # (M, H)
            losses.append(F.cross_entropy(scores / TEMPERATURE, target))
            bank[which] = torch.where(seen[:, :, None], z.detach(), bank[which])
        used = now["assigned"][0].unique().numel()
        return torch.stack(losses).mean(), {"prototypes_used": float(used)}

    _, rows = train_module(network, loss_of, steps, config, generator, progress=progress)
    tokens = F.normalize(training_tokens(network, task, head.embed, progress), dim=1)
    head.settle(now["centroids"], tokens)
    return network, rows
