"""Momentum-contrast pretraining of the two encoders and their fusion.

Three contrasts share one step: within each sensor, across the sensors, and on the fused tokens
(without which nothing would train the fusion). Each has its own projector and its own queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config, PretrainConfig
from .despeckle import load_despeckler
from .losses import embedding_statistics, info_nce
from .momentum import Queue, key_network, momentum_update
from .prepare import SceneSet, normalisation_of
from .runs import Run, write_atomically
from .training import Checkpoints, Row, load_checkpoint, train, trainable
from .umsf_net import UmsfNet, build_network
from .views import View, draw_matches, make_view, sample_tokens
from .windows import PixelStore, draw_windows, open_store, training_tiles

LOG_EVERY = 10  # steps

# contrast -> (query projector, key projector), by the projector's name in ``UmsfNet.project``
INTRA = {"intra_optical": ("optical", "optical"), "intra_sar": ("sar", "sar")}
CROSS = {
    "cross_optical": ("cross_optical", "cross_sar"),
    "cross_sar": ("cross_sar", "cross_optical"),
}
FUSED = {"fused": ("fused", "fused")}


@dataclass(frozen=True)
class Batch:
    """Two views of a batch of windows and the ground positions both see.

    ``scene (B,)``; ``centre (B, 2)`` row, col of the window centres in scene px; ``here`` and
    ``there (B, n, 2)`` view coordinates; ``ground (B, n, 2)`` row, col in scene px;
    ``seen (B, n)``.
    """

    first: View
    second: View
    scene: Tensor
    centre: Tensor
    here: Tensor
    there: Tensor
    ground: Tensor
    seen: Tensor


class WindowSource:
    """Draws batches of two-view windows from the pixel store."""

    def __init__(self, scenes: SceneSet, store: PixelStore, config: Config) -> None:
        views = config.views
        self.store, self.config = store, config
        self.tiles = training_tiles(scenes, views.window_px, views.overlap_px)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Draw ``count`` windows, two views of each, and their matched positions."""
        views, store = self.config.views, self.store
        size, jitter = views.window_px, (views.window_px - views.overlap_px) // 2
        where = draw_windows(self.tiles, count, size, jitter, store.places, generator)
        windows = store.windows(*where, size)
        scene, row, col = (t.to(store.device) for t in where)
        log_std = store.std["sar"][scene] if "sar" in store.roles else None
        first, second = (make_view(windows, log_std, views, generator) for _ in range(2))
        here, there, ground, seen = draw_matches(
            first, second, self.config.pretrain.tokens, generator
        )
        corner = torch.stack([row, col], dim=1).float()  # (B, 2)
        ground = corner[:, None] + (ground.flip(2) + 1) / 2 * size  # (x, y) -> row, col in px
        return Batch(first, second, scene, corner + size / 2, here, there, ground, seen)


class MomentumContrast(nn.Module):
    """Query network, EMA key network, and one queue per key projector (He et al. 2020, MoCo)."""

    def __init__(self, query: UmsfNet, config: PretrainConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.query = query
        self.key = key_network(query)
        names = query.projectors.keys()
        dim = query.projection_dim
        self._queues = nn.ModuleDict({n: Queue(config.queue_size, dim, generator) for n in names})
        self.contrasts = {
            name: pair for name, pair in (INTRA | CROSS | FUSED).items() if set(pair) <= set(names)
        }

    def train(self, mode: bool = True) -> MomentumContrast:
        """As usual, but the key network stays in eval mode.

        There BatchNorm uses running statistics, so that no key depends on the rest of its batch and
        nothing but its ground gives the positive away (Cai et al. 2021, EMAN).
        """
        super().train(mode)
        self.key.eval()
        return self

    @property
    def queues(self) -> dict[str, Queue]:
        """Queue per key projector."""
        return cast("dict[str, Queue]", dict(self._queues.items()))

    def weights(self) -> dict[str, float]:
        """Weight of each contrast in the loss; the two of a kind share theirs."""
        kinds = ((INTRA, self.config.intra), (CROSS, self.config.cross), (FUSED, self.config.fused))
        weights: dict[str, float] = {}
        for kind, weight in kinds:
            active = [name for name in kind if name in self.contrasts]
            weights |= {name: weight / len(active) for name in active}
        return weights

    def forward(self, batch: Batch, radius_px: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch, and what ``enqueue`` and the log need.

        Args:
            batch: two views with matched positions.
            radius_px: keys of the same scene nearer than this are no negatives.

        Returns:
            Scalar loss; dict with the ``parts`` of the loss and the ``keys`` per projector.
        """
        query = self.embed(self.query, batch.first, batch.here, batch.seen)
        with torch.no_grad():
            key = self.embed(self.key, batch.second, batch.there, batch.seen)
        token_place, pooled_place = places(batch)
        fused = self.queues["fused"]
        masks = [
            fused.own_ground_mask(scene, row, col, radius_px)
            for scene, row, col in (token_place, pooled_place)
        ]
        pooled = self.config.pooled
        parts = {}
        for name, (mine, other) in self.contrasts.items():
            queue = self.queues[other].entries
            dense_loss, pooled_loss = (
                info_nce(q, k, queue, self.config.tau, mask)
                for q, k, mask in zip(query[mine], key[other], masks, strict=True)
            )
            parts[name] = (1 - pooled) * dense_loss + pooled * pooled_loss
        loss = torch.stack([w * parts[name] for name, w in self.weights().items()]).sum()
        return loss, {"parts": parts, "query": query, "key": key, "mask": masks[0]}

    @staticmethod
    def embed(
        network: UmsfNet, view: View, points: Tensor, seen: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Projector -> unit embeddings of the matched tokens ``(M, D)`` and pooled ``(B, D)``."""
        features = network.features(view.images.get("optical"), view.images.get("sar"))
        result = {}
        for name, projected in network.project(features).items():  # (B, D, H, W)
            tokens = sample_tokens(projected, points)[seen]  # (M, D)
            result[name] = (F.normalize(tokens.float(), dim=1), pooled_embedding(projected))
        return result

    @torch.no_grad()
    def update_keys(self) -> None:
        """EMA step of the key network, before its pass (MoCo's order)."""
        momentum_update(self.key, self.query, self.config.ema)

    @torch.no_grad()
    def enqueue(self, batch: Batch, keys: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Put this batch's keys into the queues; after the backward pass, which reads them."""
        token_place, pooled_place = places(batch)
        where = [torch.cat(pair) for pair in zip(token_place, pooled_place, strict=True)]
        for name, queue in self.queues.items():
            queue.enqueue(torch.cat(keys[name]), *where)


def pooled_embedding(projected: Tensor) -> Tensor:
    """Unit embedding ``(B, D)`` of a whole window from its projected tokens."""
    return F.normalize(projected.float().mean(dim=(2, 3)), dim=1)


def places(batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(scene, row, col) of the tokens seen by both views, and of the windows."""
    scene = batch.scene[:, None].expand_as(batch.seen)[batch.seen]
    row, col = batch.ground[batch.seen].T
    return (scene, row, col), (batch.scene, *batch.centre.T)


def steps_per_epoch(config: Config, tiles: int) -> int:
    """Steps in which every training tile is expected once, unless the profile says a number."""
    return config.pretrain.steps_per_epoch or max(1, tiles // config.pretrain.batch)


def queue_size(config: Config, tiles: int) -> int:
    """Queue entries: as configured, but at most half of what one epoch enqueues.

    A longer queue would hold stale copies of the query's own ground.
    """
    per_window = config.pretrain.tokens + 1
    return min(config.pretrain.queue_size, max(1, tiles * per_window // 2))


def pretrain(
    run: Run,
    scenes: SceneSet,
    *,
    progress: Callable[[int, int, Row], None] | None = None,
) -> bool:
    """Stage ``pretrain``: train, or return at once if the run has it.

    Writes ``pretrain.csv`` and checkpoints, resuming from the newest one.

    Returns:
        True if it trained.
    """
    inputs = pretraining_inputs(run)
    return run.stage("pretrain", lambda: _pretrain(run, scenes, inputs, progress), inputs)


def pretraining_inputs(run: Run) -> dict[str, Any]:
    """What decides the result of pretraining; kept in each checkpoint and compared on load."""
    inputs = run.config.section("views", "model", "pretrain", "seed")
    made = {"normalisation": normalisation_of(run), "despeckle": run.outputs_of("despeckle")}
    return inputs | made


def _pretrain(
    run: Run,
    scenes: SceneSet,
    inputs: dict[str, Any],
    progress: Callable[[int, int, Row], None] | None,
) -> list[str]:
    config, settings = run.config, run.config.pretrain
    generator = torch.Generator().manual_seed(config.seed)
    learner, source = build_learner(run, scenes, generator)
    optimizer = torch.optim.SGD(
        trainable(learner.query.parameters()),
        lr=settings.lr * settings.batch / 32,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    stash: dict[str, Any] = {}

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        learner.update_keys()
        batch = source.draw(settings.batch, generator)
        loss, extra = learner(batch, config.views.window_px / 2)
        stash.update(batch=batch, keys=extra["key"])
        return loss, extra["parts"] | _monitor(learner, extra, step)

    per_epoch = steps_per_epoch(config, len(source.tiles))
    checkpoints = Checkpoints(run.path("checkpoints"), inputs)
    rows = train(
        learner,
        loss_of,
        optimizer,
        steps=settings.epochs * per_epoch,
        warmup=settings.warmup_epochs * per_epoch,
        generator=generator,
        amp=settings.amp,
        after_step=lambda step: learner.enqueue(stash["batch"], stash["keys"]),
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        log_every=LOG_EVERY,
        progress=progress,
    )
    write_rows(run.path("pretrain.csv"), rows)
    return ["pretrain.csv", f"checkpoints/{checkpoints.paths()[-1].name}"]


def build_learner(
    run: Run, scenes: SceneSet, generator: torch.Generator
) -> tuple[MomentumContrast, WindowSource]:
    """Networks with the run's despeckler, queues, and the source of windows, on the device."""
    config = run.config
    store = open_store(scenes, config, run.device)
    source = WindowSource(scenes, store, config)
    settings = replace(config.pretrain, queue_size=queue_size(config, len(source.tiles)))
    network = new_network(run, scenes)
    return MomentumContrast(network, settings, generator).to(run.device), source


def new_network(run: Run, scenes: SceneSet) -> UmsfNet:
    """The run's network before any pretraining: seeded weights, trained despeckler."""
    config = run.config
    torch.manual_seed(config.seed)
    network = build_network(config, scenes)
    if network.despeckler is not None:
        network.despeckler.load_state_dict(load_despeckler(run).state_dict())
    return network


def load_pretrained(run: Run, scenes: SceneSet) -> UmsfNet:
    """The pretrained query network of a run, on the CPU.

    Raises:
        MissingStageError: the run has no finished pretraining.
    """
    files = run.outputs_of("pretrain")
    network = new_network(run, scenes)
    path = run.path(next(file for file in files if file.endswith(".pt")))
    state = load_checkpoint(path, pretraining_inputs(run))["module"]
    prefix = "query."
    network.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    )
    return network


def _monitor(learner: MomentumContrast, extra: dict[str, Any], step: int) -> dict[str, float]:
    """Collapse monitor of the fused tokens; read only when a row is logged (it waits)."""
    if (step + 1) % LOG_EVERY:
        return {}
    q, k = extra["query"]["fused"][0], extra["key"]["fused"][0]
    return embedding_statistics(q, k, learner.queues["fused"].entries, extra["mask"])


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a training log as CSV."""
    write_atomically(path, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False))
