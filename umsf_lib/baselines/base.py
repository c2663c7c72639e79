"""Shared parts of the learned baselines: budget of windows, stage, training loop.

Each baseline is our own network with another head. It is trained on the same windows by
``loop.train`` and makes maps in the same way, so only the method differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from ..clustering.inference import Classifier, scene_map
from ..clustering.self_training import ema_at, keep_texture
from ..clustering.stage import network_classifier
from ..clustering.task import ClusteringTask
from ..config import Config, ViewConfig
from ..data.windows import training_tiles
from ..models.umsf_net import UmsfNet
from ..pretraining.momentum import momentum_update
from ..pretraining.stage import load_pretrained, new_network, pretraining_inputs, steps_per_epoch
from ..run import Run
from ..training.checkpoints import load_checkpoint, load_weights, write_state
from ..training.loop import Metrics, Row, train, trainable, write_rows

Progress = Callable[[int, int, Row], None]
LossOf = Callable[[int], tuple[Tensor, Metrics]]
# Task, progress, network with its head -> the network to keep, and the log.
Learn = Callable[[ClusteringTask, Progress | None, UmsfNet], tuple[UmsfNet, list[Row]]]


def baseline_steps(task: ClusteringTask, *, pretrained: bool) -> int:
    """Return the steps in which a baseline sees as many windows as our method.

    A step has ``pretrain.batch`` windows. The windows of pretraining and self-training count, or
    those of self-training alone if the baseline starts from our pretrained network.
    """
    config, views = task.config, task.config.views
    tiles = training_tiles(task.scenes, views.window_px, views.overlap_px)
    windows = config.cluster.rounds * config.cluster.steps * config.cluster.batch
    if not pretrained:
        per_epoch = steps_per_epoch(config, len(tiles)) * config.pretrain.batch
        windows += config.pretrain.epochs * per_epoch
    return max(1, windows // config.pretrain.batch)


def dense(config: Config) -> Config:
    """Return the config with ``baseline.tokens`` matched tokens per window."""
    return replace(config, pretrain=replace(config.pretrain, tokens=config.baseline.tokens))


def learned(
    run: Run,
    task: ClusteringTask,
    name: str,
    head: Callable[[], nn.Module],
    learn: Learn,
    *,
    pretrained: bool,
    progress: Progress | None,
    views: ViewConfig | None = None,
) -> Classifier:
    """Train in the stage ``name`` unless it is done, and load the result.

    It writes the network and its log ``<name>.csv``.

    Args:
        run: its network, windows and seed are used.
        task: scenes and settings.
        name: name of the method, its stage and its files.
        head: makes the module that maps fused tokens to logits of the clusters.
        learn: trains the network.
        pretrained: start from our pretrained network, not from random weights.
        progress: see ``loop.train``.
        views: replaces the views of our self-training; chosen on development scenes (``tried.md``).
    """
    inputs = pretraining_inputs(run) | run.config.section("cluster", "baseline", "map")
    views = views or keep_texture(run.config.views)
    inputs["views"] = asdict(views)
    taught = ClusteringTask(task.scenes, task.store, replace(task.config, views=views))
    if pretrained:
        inputs["pretrained"] = run.outputs_of("pretrain")
    file = f"checkpoints/{name}.pt"

    def make() -> list[str]:
        network = (load_pretrained if pretrained else new_network)(run, task.scenes)
        network.clustering = head()
        trained, rows = learn(taught, progress, network.to(run.device))
        content = {"settings": inputs, "module": trained.state_dict()}
        write_state(run.path(file), content)
        write_rows(run.path(f"{name}.csv"), rows)
        return [file, f"{name}.csv"]

    run.stage(name, make, inputs, trains=True)
    network = new_network(run, task.scenes)
    network.clustering = head()
    load_weights(network, load_checkpoint(run.path(file), inputs)["module"], run.path(file))
    return network_classifier(network.to(run.device).eval(), task, name)


def train_module(
    module: nn.Module,
    loss_of: LossOf,
    steps: int,
    config: Config,
    generator: torch.Generator,
    *,
    average: nn.Module | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Run ``loop.train`` with AdamW, a short warm-up and a cosine schedule.

    ``average`` becomes the EMA of the module, as in our self-training.
    """
    settings = trainable(module.parameters())
    optimizer = torch.optim.AdamW(settings, config.baseline.lr, weight_decay=1e-4)

    def follow(step: int) -> None:
        if average is not None:
            momentum_update(average, module, ema_at(step, config.cluster.ema))

    module.train()
    return train(
        module,
        loss_of,
        optimizer,
        steps=steps,
        warmup=max(1, steps // 20),
        generator=generator,
        batch=("pretrain.batch", config.pretrain.batch),
        amp=config.pretrain.amp,
        after_step=follow,
        progress=progress,
    )


def fused_map(network: UmsfNet, windows: dict[str, Tensor]) -> Tensor:
    """Compute the fused tokens ``(B, C, h, w)`` of a batch of windows or of a view's images."""
    return network.features(windows)["fused"]


def training_tokens(
    network: UmsfNet, task: ClusteringTask, read: Callable[[Tensor], Tensor]
) -> Tensor:
    """Draw tokens ``(n, D)`` float32 of training scenes after ``read``.

    ``read`` maps ``(B, C, h, w)`` to ``(B, D, h, w)``. The network is left in eval mode.
    """
    config = task.config.map

    def function(windows: dict[str, Tensor]) -> Tensor:
        return read(fused_map(network, windows))

    network.eval()
    tokens = task.sample(
        lambda scene: scene_map(function, task.store, scene, network.stride, config),
        network.stride,
    )
    return torch.from_numpy(tokens).float().to(task.store.device)
