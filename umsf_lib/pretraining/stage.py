"""The stage ``pretrain``: momentum contrast on windows of the training scenes."""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import Config, ConfigError, PretrainConfig
from ..data.scene_set import SceneSet, normalisation_of
from ..data.windows import PixelStore, draw_windows, open_store, training_tiles
from ..models.kept import kept_record, start_from_kept
from ..models.stage import load_despeckler
from ..models.umsf_net import UmsfNet
from ..progress import Progress
from ..run import Run, code_digest, seed_everything, use_deterministic
from ..training.checkpoints import Checkpoints, load_checkpoint, load_weights
from ..training.distributed import any_process, own_rows, rank, world_size
from ..training.loop import Metrics, Row, cosine_with_warmup, train, trainable, write_rows
from .batches import Batch, ValidAt, two_views
from .losses import collapsed, embedding_statistics
from .moco import MomentumContrast
from .neighbours import Corners, Neighbours, ScenePlane

LOG_EVERY = 10  # steps
FIRST_LOOKS = 10  # rows of the collapse monitor from a network that has hardly learnt
BASE_BATCH = 32  # batch to which the learning rate of SGD refers


def pretrain(run: Run, scenes: SceneSet, *, progress: Progress | None = None) -> bool:
    """Run the stage ``pretrain``: train, or return at once if the run has it.

    It writes ``pretrain.csv`` and checkpoints, and resumes from the newest checkpoint. Several
    processes (``distributed.processes``) share every batch; only the first of them writes.

    Returns:
        True if it trained.

    Raises:
        ConfigError: if settings conflict, the loss diverges or memory is full.
        CheckpointError: if the run's checkpoints were made with other settings.
        DataError: if there is no valid window, or another process trains in this run folder.
        Stopped: by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    inputs = pretraining_inputs(run)
    if not any_process(not run.is_current("pretrain", inputs, __name__, trains=True)):
        return False
    folder, every = run.path("checkpoints"), run.config.pretrain.checkpoint_every
    checkpoints = Checkpoints(folder, inputs, every, code_digest(__name__), run.config.stale)
    if rank() > 0:
        _pretrain(run, scenes, checkpoints, None)
        return True
    run.make(
        "pretrain",
        lambda: _pretrain(run, scenes, checkpoints, progress),
        inputs,
        lambda: checkpoints.code,  # older than today's if the training went on from older code
    )
    return True


def _pretrain(
    run: Run, scenes: SceneSet, checkpoints: Checkpoints, progress: Progress | None
) -> list[str]:
    """Train and write the files of the stage; return their names."""
    config, settings = run.config, run.config.pretrain
    use_deterministic(config.deterministic)
    generator = seed_everything(config.seed)
    learner, source = build_learner(run, scenes, generator)
    _say_if_capped(config, len(source.tiles))
    optimizer = new_optimizer(learner, settings)
    step_of = average_gradients(learner)
    stash: dict[str, Any] = {}

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        batch = source.draw(settings.batch, generator)
        loss, extra = step_of(batch)
        stash.update(batch=batch, keys=extra["enqueue"])
        metrics = extra["parts"]
        if (step + 1) % LOG_EVERY == 0:  # reading the monitor of collapse waits for the device
            q, k = (extra[side][learner.watched][0] for side in ("query", "key"))  # (M, D)
            metrics = metrics | embedding_statistics(q, k, extra["negatives"], extra["mask"])
        return loss, metrics

    def after_step(step: int) -> None:
        learner.enqueue(stash["batch"], stash["keys"])
        learner.update_keys()

    per_epoch = steps_per_epoch(config, len(source.tiles))
    if config.stale == "fresh" and rank() == 0:
        checkpoints.delete_others()
    any_process(False)  # the other processes wait for it
    rows = train(
        learner,
        loss_of,
        optimizer,
        steps=settings.epochs * per_epoch,
        schedule=partial(cosine_with_warmup, warmup=settings.warmup_epochs * per_epoch),
        generator=generator,
        batch=("pretrain.batch", settings.batch),
        amp=settings.amp,
        after_step=after_step,
        checkpoints=checkpoints,
        log_every=LOG_EVERY,
        progress=progress,
    )
    _say_if_collapsed(rows, learner.query.projection_dim)
    if rank() > 0:
        return []  # the first process may still be writing
    write_rows(run.path("pretrain.csv"), rows)
    return ["pretrain.csv", f"checkpoints/{checkpoints.paths()[-1].name}"]


def build_learner(
    run: Run, scenes: SceneSet, generator: torch.Generator
) -> tuple[MomentumContrast, WindowSource]:
    """Build the networks with the run's despeckler, the queues and the source of windows.

    Raises:
        ConfigError: if batch norm meets a batch of one window or several CPU processes.
    """
    config = run.config
    _check_batch_norm(config, run.device)
    store = open_store(scenes, config, run.device)
    source = WindowSource(scenes, store, config)
    settings = replace(config.pretrain, queue_size=queue_size(config, len(source.tiles)))
    network = new_network(run, scenes)
    if config.model.weights == "umsf-small":
        start_from_kept(network, scenes.layout)
    learner = MomentumContrast(network, settings, generator).to(run.device)
    if run.device.type == "cuda":
        learner.tune_for_cuda(settings.compile)
    return learner, source


def queue_size(config: Config, tiles: int) -> int:
    """Return the queue size: as configured, but at most half of what one epoch enqueues.

    A longer queue would hold stale copies of the query's own ground.
    """
    per_window = config.pretrain.tokens + 1
    return min(config.pretrain.queue_size, max(1, tiles * per_window // 2))


def _check_batch_norm(config: Config, device: torch.device) -> None:
    if config.model.norm != "batch":
        return
    if config.pretrain.batch == 1:
        raise ConfigError(
            "pretrain.batch is 1, but batch norm (model.norm=batch) needs the statistics of at "
            "least 2 windows; set pretrain.batch to 2 or more, or model.norm=group."
        )
    if world_size() > 1 and device.type != "cuda":
        raise ConfigError(
            f"{world_size()} processes without a GPU cannot share the statistics of batch norm "
            "(model.norm=batch); use one process, or model.norm=group."
        )


def new_network(run: Run, scenes: SceneSet) -> UmsfNet:
    """Build the run's network before pretraining: seeded weights, trained despeckler."""
    config = run.config
    torch.manual_seed(config.seed)
    network = build_network(config, scenes)
    if network.despeckler is not None:
        network.despeckler.load_state_dict(load_despeckler(run).state_dict())
    return network


def build_network(config: Config, scenes: SceneSet) -> UmsfNet:
    """Build the network of a run for the bands of its scenes; weights come from torch's seed."""
    return UmsfNet(config.model, scenes.layout, config.despeckle.channels)


def _say_if_capped(config: Config, tiles: int) -> None:
    wanted, size = config.pretrain.queue_size, queue_size(config, tiles)
    if size < wanted and rank() == 0:
        warnings.warn(
            f"pretrain.queue_size is {wanted}, but {tiles} training windows give {2 * size} keys "
            f"an epoch: the queue is capped at half of them, {size}.",
            stacklevel=2,
        )


def new_optimizer(learner: MomentumContrast, settings: PretrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of the trainable parameters: SGD as in MoCo, or AdamW.

    The learning rate of SGD grows with the batch (Goyal et al. 2017); that of AdamW (Loshchilov &
    Hutter 2019) does not.
    """
    parameters, decay = trainable(learner.parameters()), settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.lr, weight_decay=decay, fused=True)
    rate, momentum = settings.lr * settings.batch / BASE_BATCH, settings.momentum
    return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=True)


def average_gradients(learner: MomentumContrast) -> nn.Module:
    """Wrap the learner so that gradients are averaged over the processes, if there are several.

    Batch norm then uses the statistics of the whole batch (SyncBatchNorm), as one process would.
    """
    if world_size() == 1:
        return learner
    learner.query = nn.SyncBatchNorm.convert_sync_batchnorm(learner.query)
    # Queues and statistics are equal in all processes by construction: nothing to broadcast.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(learner, gradient_as_bucket_view=True, **options)


def steps_per_epoch(config: Config, tiles: int) -> int:
    """Return the steps of an epoch: as configured, else one draw per training tile on average."""
    return config.pretrain.steps_per_epoch or max(1, tiles // config.pretrain.batch)


def _say_if_collapsed(rows: list[Row], dim: int) -> None:
    """Warn if the last row of the collapse monitor shows a collapse; the first rows always do."""
    looks = [row for row in rows if "std" in row]
    said = collapsed(looks[-1], dim) if len(looks) > FIRST_LOOKS else None
    if said and rank() == 0:
        warnings.warn(said, stacklevel=2)


def load_pretrained(run: Run, scenes: SceneSet) -> UmsfNet:
    """Load the pretrained query network of a run, on the CPU.

    Raises:
        MissingStageError: if the run has no finished pretraining.
    """
    files = run.outputs_of("pretrain")
    network = new_network(run, scenes)
    path = run.path(next(file for file in files if file.endswith(".pt")))
    state = load_checkpoint(path, pretraining_inputs(run))["module"]
    start = "query."
    own = {k.removeprefix(start): weight for k, weight in state.items() if k.startswith(start)}
    load_weights(network, own, path)
    return network


def pretraining_inputs(run: Run) -> dict[str, Any]:
    """Return what the result depends on; each checkpoint stores it, and loading compares it."""
    inputs = run.config.section("views", "model", "pretrain", "seed")
    made = {"normalisation": normalisation_of(run), "despeckle": run.outputs_of("despeckle")}
    if run.config.model.weights == "umsf-small":
        made["weights"] = kept_record()["sha256"]
    return inputs | made


class WindowSource:
    """Source of two-view batches, drawn from the pixel store."""

    def __init__(self, scenes: SceneSet, store: PixelStore, config: Config) -> None:
        views = config.views
        self.store, self.config = store, config
        self.tiles = training_tiles(scenes, views.window_px, views.overlap_px)
        self.ground, self.neighbours = ScenePlane.apart(len(scenes.records)), None
        if config.pretrain.positives[2] > 0:
            self.neighbours = Neighbours(scenes, store.roles, views.window_px, config.pretrain)
            self.ground = self.neighbours.ground

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Draw ``count`` windows, two views of each, and their matched positions.

        The second view of some windows shows a neighbour (``pretrain.positives``). With several
        processes, each draws the places of all windows but reads the pixels of its own only.
        """
        views, store = self.config.views, self.store
        size, jitter = views.window_px, (views.window_px - views.overlap_px) // 2
        anchors = draw_windows(self.tiles, count, size, jitter, store.places, generator)
        others = self._partners(anchors, generator)
        rows = own_rows(count)
        pixels = self._pixels(anchors, rows)
        windows = pixels, pixels if others is anchors else self._pixels(others, rows)
        return two_views(
            windows,
            self.ground.plane[anchors[0]],
            (self.ground.corner(*anchors), self.ground.corner(*others)),  # (B, 2) each
            views,
            tokens=self.config.pretrain.tokens,
            generator=generator,
            valid=None if store.all_valid else (self._valid_in(anchors), self._valid_in(others)),
            token_rows=math.ceil(size / self.config.model.stride),
        )

    def _partners(self, anchors: Corners, generator: torch.Generator) -> Corners:
        """Return the windows of the second views: neighbours for a share, else the same windows."""
        if self.neighbours is None:
            return anchors
        near = self.neighbours.draw(anchors, generator)
        view, _, neighbour = self.config.pretrain.positives
        moved = torch.rand(len(near[0]), generator=generator) < neighbour / (view + neighbour)
        scene, row, col = (torch.where(moved, b, a) for a, b in zip(anchors, near, strict=True))
        return scene, row, col

    def _pixels(self, places: Corners, rows: slice) -> dict[str, Tensor]:
        scene, row, col = (x[rows] for x in places)
        return self.store.windows(scene, row, col, self.config.views.window_px)

    def _valid_in(self, windows: Corners) -> ValidAt:
        """Return a function that tells which pixels of these windows are valid."""
        scene, row, col = (x[:, None] for x in windows)  # (B, 1)

        def valid(pixels: Tensor) -> Tensor:
            place = row + pixels[:, :, 0], col + pixels[:, :, 1]  # (B, n) each
            return self.store.valid_at(scene.expand_as(place[0]), *place)

        return valid
