"""The stages ``supervised-<network>``: a fusion network learns from labels of training scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clustering.inference import Classifier, scene_map
from ..clustering.task import ClusteringTask
from ..config import IGNORE, Config, ConfigError, DataError
from ..data.scene_set import SceneSet, normalisation_of
from ..data.windows import PixelStore, training_tiles
from ..models.kept import start_streams
from ..progress import Progress
from ..run import Run, code_digest, seed_everything, use_deterministic
from ..training.checkpoints import Checkpoints, load_checkpoint, load_weights
from ..training.loop import Metrics, polynomial, train, write_rows
from .ceiling import has_ceiling
from .networks import Form, FusionNetwork, PixelNetwork, supervised_network

EVERY = 100  # steps between checkpoints
NO_DECAY = ("log_rate", "skip")  # parameters of a scan that weight decay would harm


def fit_network(
    name: str, run: Run, task: ClusteringTask, *, progress: Progress | None = None
) -> Classifier:
    """Train one of ``NETWORKS`` in the stage ``supervised-<name>``, and load the result.

    It writes checkpoints, from which it goes on as if it had not been stopped, and its log. With
    one sensor (``model.sensors``) it trains the control without a fusion.

    Args:
        name: see ``supervised_network``.
        run: its settings ``supervised``, ``views``, sensors and seed are used.
        task: scenes and pixels.
        progress: see ``loop.train``.

    Returns:
        The classifier of whole scenes: posteriors of each pixel, from tiles whose overlaps are
        blended.

    Raises:
        DataError: the training scenes include test scenes, or have no labels or one class.
        ConfigError: the settings do not fit this network, or a package is missing.
    """
    stage, config = f"supervised-{name}", run.config
    if not has_ceiling(task.scenes):
        raise DataError(
            f"{stage}: the training scenes of {task.scenes.folder.name} have no labels, or include "
            "test scenes; notebooks 03, 04 and 06 need no labels."
        )
    inputs = config.section("views", "supervised", "seed") | {
        "sensors": config.model.sensors,
        "normalisation": normalisation_of(run),
        "labels": [task.scenes.folder.name, task.scenes.split["train"]],
    }
    folder = run.path("checkpoints", stage)
    checkpoints = Checkpoints(folder, inputs, EVERY, code_digest(__name__), config.stale)
    form = Form.of_layout(task.scenes.layout, config.model.sensors, config.supervised)
    if not run.is_current(stage, inputs, __name__, trains=True):
        run.make(
            stage,
            lambda: _train(name, form, run, task, checkpoints, progress),
            inputs,
            lambda: checkpoints.code,  # older than today's if the training went on from older code
        )
    network = supervised_network(name, replace(form, weights="none"))  # its own come now
    path = run.path(next(file for file in run.outputs_of(stage) if file.endswith(".pt")))
    load_weights(network, load_checkpoint(path, inputs)["module"], path)
    return pixel_classifier(network.to(run.device).eval(), task, stage)


def pixel_classifier(network: PixelNetwork, task: ClusteringTask, name: str) -> Classifier:
    """Make a classifier of whole scenes from a network whose logits are those of pixels.

    Its tiles are as large as the windows of the training, for means and maxima of a map enter the
    result; a quarter of its side overlaps the next.
    """

    def posteriors(windows: dict[str, Tensor]) -> Tensor:
        return network(windows)[0].softmax(dim=1)  # (B, K, h, w)

    size = task.config.views.window_px
    tiles = replace(task.config.map, tile_px=size, overlap_px=size // 4)
    of_scene = partial(scene_map, posteriors, task.store, stride=1, config=tiles)
    classes = len(task.scenes.layout.classes)
    return Classifier(name, classes, 1, of_scene, predicts_classes=True)


def _train(
    name: str,
    form: Form,
    run: Run,
    task: ClusteringTask,
    checkpoints: Checkpoints,
    progress: Progress | None,
) -> list[str]:
    """Train and write the files of the stage; return their names."""
    config, settings = run.config, run.config.supervised
    generator = seed_everything(config.seed)
    use_deterministic(False)  # pooling has no such code on a GPU
    network = supervised_network(name, form)
    one = network.takes_one and config.views.window_px > network.multiple
    if settings.batch == 1 and not one:
        raise ConfigError(
            f"supervised.batch is 1 and views.window_px {config.views.window_px}, so the batch "
            f"norms of {name} would see single tokens; set supervised.batch=2 or more."
        )
    if settings.weights == "umsf-small":
        if not isinstance(network, FusionNetwork) or settings.backbone != "small":
            raise ConfigError(
                f"supervised.weights is umsf-small, but {name} with backbone {settings.backbone} "
                "has other shapes; set supervised.weights=none."
            )
        start_streams(network.streams, task.scenes.layout)
    network.to(run.device)
    windows = LabelledWindows(task.scenes, task.store, config)
    if config.stale == "fresh":
        checkpoints.delete_others()

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        images, labels = windows.draw(generator)
        losses = label_losses(network(images), labels)
        return losses[0] + network.auxiliary * losses[1:].sum(), {}

    network.train()
    rows = train(
        network,
        loss_of,
        new_optimizer(network, config),
        steps=settings.steps,
        generator=generator,
        batch=("supervised.batch", settings.batch),
        schedule=partial(polynomial, power=settings.power),
        amp=config.pretrain.amp,
        checkpoints=checkpoints,
        progress=progress,
    )
    log = f"supervised-{name}.csv"
    write_rows(run.path(log), rows)
    return [log, f"checkpoints/supervised-{name}/{checkpoints.paths()[-1].name}"]


def label_losses(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the cross entropy of each output in nats, averaged over labelled pixels.

    Args:
        outputs: logits ``(B, K, h, w)`` each.
        labels: ``(B, h, w)`` int64 class ids; ``IGNORE`` where there is none.

    Returns:
        ``(outputs,)``; 0 if no pixel has a label.
    """
    known = (labels != IGNORE).sum().clamp_min(1)
    sums = [F.cross_entropy(x, labels, ignore_index=IGNORE, reduction="sum") for x in outputs]
    return torch.stack(sums) / known


def new_optimizer(network: PixelNetwork, config: Config) -> torch.optim.AdamW:
    """Build AdamW; what a scan forgets and passes by does not decay."""
    free = [p for n, p in network.named_parameters() if n.endswith(NO_DECAY)]
    others = [p for n, p in network.named_parameters() if not n.endswith(NO_DECAY)]
    groups: list[dict[str, Any]] = [{"params": others}]
    groups += [{"params": free, "weight_decay": 0.0}] if free else []
    settings = config.supervised
    return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)


class LabelledWindows:
    """Sampler of training windows with a label, flipped and turned at random."""

    def __init__(self, scenes: SceneSet, store: PixelStore, config: Config) -> None:
        """Choose the share ``supervised.labelled`` of the windows that have a label.

        Raises:
            DataError: no window has one, or all have the same.
        """
        self.scenes, self.store = scenes, store
        self.size, self.batch = config.views.window_px, config.supervised.batch
        tiles = training_tiles(scenes, self.size, config.views.overlap_px)
        found = [set(np.unique(self.labels(*tile)).tolist()) - {IGNORE} for tile in tiles.tolist()]
        known = [number for number, classes in enumerate(found) if classes]
        if not known:
            raise DataError(
                f"no training window of {self.size} px in {scenes.folder} has a label; notebooks "
                "03, 04 and 06 need none."
            )
        count = math.ceil(config.supervised.labelled * len(known))
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(config.seed))
        chosen = sorted(known[number] for number in order[:count].tolist())
        classes = set().union(*(found[number] for number in chosen))
        if len(classes) == 1:
            name = scenes.layout.classes[classes.pop()].name
            raise DataError(
                f"the {count} labelled training windows in {scenes.folder} have only the class "
                f"{name!r}, so there is nothing to tell apart; label another class, or set "
                "supervised.labelled=1."
            )
        self.tiles = tiles[chosen]  # (T, 3) scene, row, col

    def labels(self, scene: int, row: int, col: int) -> np.ndarray:
        """Return the class ids ``(size, size)`` uint8 of a window, ``IGNORE`` at invalid pixels."""
        here = np.s_[row : row + self.size, col : col + self.size]
        valid, label = (self.scenes.plane(role, scene)[here] for role in ("valid", "label"))
        return np.where(valid, label, IGNORE)

    def draw(self, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Draw images ``(B, bands, h, w)`` by sensor, and labels ``(B, h, w)`` int64."""
        tiles = self.tiles[torch.randint(len(self.tiles), (self.batch,), generator=generator)]
        turns = torch.randint(8, (self.batch,), generator=generator).tolist()
        scene, row, col = tiles.T
        found = self.store.windows(scene, row, col, self.size)
        labels = torch.from_numpy(np.stack([self.labels(*tile) for tile in tiles.tolist()]))
        images = {role: turned(found[role], turns) for role in self.store.roles}
        return images, turned(labels.long().to(self.store.device), turns)


def turned(maps: Tensor, turns: Sequence[int]) -> Tensor:
    """Apply one of the eight symmetries of the square to each of ``maps (B, ..., h, w)``."""
    rotated = [one.rot90(turn % 4, (-2, -1)) for one, turn in zip(maps, turns, strict=True)]
    pairs = zip(rotated, turns, strict=True)
    return torch.stack([one.flip(-1) if turn >= 4 else one for one, turn in pairs])
