"""Shared parts of the learned baselines: budget of windows, stage, training loop.

Each baseline is our own network with another head. It is trained on the same windows by
``loop.train`` and makes maps in the same way, so only the method differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..clustering.inference import Classifier, scene_map
from ..clustering.self_training import ema_at, keep_texture
from ..clustering.stage import network_classifier
from ..clustering.task import ClusteringTask
from ..config import Config, ViewConfig
from ..data.windows import training_tiles
from ..models.umsf_net import UmsfNet
from ..pretraining.momentum import Network, key_network, momentum_update
from ..pretraining.stage import (
    WindowSource,
    load_pretrained,
    new_network,
    pretraining_inputs,
    steps_per_epoch,
)
from ..progress import Progress
from ..run import Run
from ..training.checkpoints import load_checkpoint, load_weights, write_state
from ..training.loop import LossOf, Row, cosine_with_warmup, train, trainable, write_rows

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


def token_pairs(task: ClusteringTask) -> WindowSource:
    """Return pretraining's source of windows, with ``baseline.tokens`` matched tokens in each."""
    pretrain = replace(task.config.pretrain, tokens=task.config.baseline.tokens)
    return WindowSource(task.scenes, task.store, replace(task.config, pretrain=pretrain))


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
    views, path = views or keep_texture(run.config.views), run.path(f"checkpoints/{name}.pt")
    inputs = pretraining_inputs(run) | run.config.section("cluster", "baseline", "map")
    inputs["views"] = asdict(views)
    if pretrained:
        inputs["pretrained"] = run.outputs_of("pretrain")

    def make() -> list[str]:
        network = (load_pretrained if pretrained else new_network)(run, task.scenes)
        network.clustering = head()
        taught = ClusteringTask(task.scenes, task.store, replace(task.config, views=views))
        trained, rows = learn(taught, progress, network.to(run.device))
        write_state(path, {"settings": inputs, "module": trained.state_dict()})
        write_rows(run.path(f"{name}.csv"), rows)
        return [f"checkpoints/{name}.pt", f"{name}.csv"]

    run.stage(name, make, inputs, trains=True)
    network = new_network(run, task.scenes)
    network.clustering = head()
    load_weights(network, load_checkpoint(path, inputs)["module"], path)
    return network_classifier(network.to(run.device).eval(), task, name)


def train_module(
    module: Network,
    loss_of: LossOf,
    steps: int,
    config: Config,
    generator: torch.Generator,
    *,
    ema: bool = False,
    progress: Progress | None = None,
) -> tuple[Network, list[Row]]:
    """Run ``loop.train`` with AdamW, a short warm-up and a cosine schedule.

    Returns:
        The module, or with ``ema`` its moving average as in our self-training; and the log.
    """
    kept = key_network(module).eval() if ema else module
    optimizer = torch.optim.AdamW(
        trainable(module.parameters()), config.baseline.lr, weight_decay=1e-4
    )

    def follow(step: int) -> None:
        if ema:
            momentum_update(kept, module, ema_at(step, config.cluster.ema))

    module.train()
    rows = train(
        module,
        loss_of,
        optimizer,
        steps=steps,
        schedule=partial(cosine_with_warmup, warmup=max(1, steps // 20)),
        generator=generator,
        batch=("pretrain.batch", config.pretrain.batch),
        amp=config.pretrain.amp,
        after_step=follow,
        progress=progress,
    )
    return kept, rows


def training_tokens(
    network: UmsfNet,
    task: ClusteringTask,
    read: Callable[[Tensor], Tensor],
    progress: Progress | None,
) -> Tensor:
    """Draw tokens ``(n, D)`` float32 of training scenes after ``read``.

    ``read`` maps ``(B, C, h, w)`` to ``(B, D, h, w)``. The network is left in eval mode.
    """

    def function(windows: dict[str, Tensor]) -> Tensor:
        return read(network.features(windows)["fused"])

    def of_scene(scene: int) -> Tensor:
        return scene_map(function, task.store, scene, network.stride, task.config.map)

    network.eval()
    tokens = task.sample(of_scene, network.stride, progress)
    return torch.from_numpy(tokens).float().to(task.store.device)
