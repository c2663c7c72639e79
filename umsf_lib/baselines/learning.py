"""What the learned baselines share: budget of windows, stage, training loop, heads.

Each is our own network with another head, trained on the same windows by ``training.train`` and
mapped like ours, so that only the method differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ..bench import Bench
from ..classify import network_classifier
from ..cluster import central
from ..config import Config, ModelConfig
from ..inference import Classifier, scene_map
from ..pretrain import load_pretrained, new_network, steps_per_epoch, write_rows
from ..runs import Run, write_atomically
from ..training import Metrics, Row, load_checkpoint, train, trainable
from ..umsf_net import UmsfNet, clustering_head, projection_head
from ..windows import training_tiles

TEMPERATURE = 0.1  # of cosines to prototypes (Caron et al. 2020)
Progress = Callable[[int, int, Row], None]
LossOf = Callable[[int], tuple[Tensor, Metrics]]


class Learn(Protocol):
    """Trains a network with its head attached; returns what is to be kept, and the log."""

    def __call__(
        self, bench: Bench, progress: Progress | None, network: UmsfNet
    ) -> tuple[UmsfNet, list[Row]]: ...


def baseline_steps(bench: Bench, *, pretrained: bool) -> int:
    """Steps of ``pretrain.batch`` windows in which a baseline sees as many windows as ours.

    Those of pretraining and self-training together, or of self-training alone where it starts
    from our pretrained network.
    """
    config, views = bench.config, bench.config.views
    tiles = training_tiles(bench.scenes, views.window_px, views.overlap_px)
    windows = config.cluster.rounds * config.cluster.steps * config.cluster.batch
    if not pretrained:
        per_epoch = steps_per_epoch(config, len(tiles)) * config.pretrain.batch
        windows += config.pretrain.epochs * per_epoch
    return max(1, windows // config.pretrain.batch)


def dense(config: Config) -> Config:
    """With as many matched tokens per window as the baselines take for samples."""
    return replace(config, pretrain=replace(config.pretrain, tokens=config.baseline.tokens))


def learned(
    run: Run,
    bench: Bench,
    name: str,
    head: Callable[[], nn.Module],
    learn: Learn,
    *,
    pretrained: bool,
    progress: Progress | None,
) -> Classifier:
    """Train in the stage ``name``, unless it is done, and load.

    Writes the network and its log ``<name>.csv``.

    Args:
        run: whose network, windows and seed are used.
        bench: scenes and settings.
        name: of the method, its stage and its files.
        head: makes the module that maps fused tokens to logits of the clusters.
        learn: trains the network.
        pretrained: start from our pretrained network, not from random weights.
        progress: see ``training.train``.
    """
    inputs = run.config.section("views", "model", "pretrain", "cluster", "baseline", "map", "seed")
    for stage in ("pretrain",) if pretrained else ("data", "despeckle"):
        inputs[stage] = run.outputs_of(stage)
    file = f"checkpoints/{name}.pt"

    def make() -> list[str]:
        network = (load_pretrained if pretrained else new_network)(run, bench.scenes)
        network.clustering = head()
        trained, rows = learn(bench, progress, network.to(run.device))
        content = {"settings": inputs, "module": trained.state_dict()}
        write_atomically(run.path(file), partial(torch.save, content))
        write_rows(run.path(f"{name}.csv"), rows)
        return [file, f"{name}.csv"]

    run.stage(name, make, inputs)
    network = new_network(run, bench.scenes)
    network.clustering = head()
    network.load_state_dict(load_checkpoint(run.path(file), inputs)["module"])
    return network_classifier(network.to(run.device).eval(), bench, name)


def train_module(
    module: nn.Module,
    loss_of: LossOf,
    steps: int,
    config: Config,
    generator: torch.Generator,
    *,
    after_step: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """``training.train`` with AdamW, a short warm-up and a cosine."""
    settings = trainable(module.parameters())
    optimizer = torch.optim.AdamW(settings, config.baseline.lr, weight_decay=1e-4)
    module.train()
    return train(
        module,
        loss_of,
        optimizer,
        steps=steps,
        warmup=max(1, steps // 20),
        generator=generator,
        amp=config.pretrain.amp,
        after_step=after_step,
        progress=progress,
    )


def fused_map(network: UmsfNet, windows: dict[str, Tensor]) -> Tensor:
    """Fused tokens ``(B, C, h, w)`` of a batch of windows or of a view's images."""
    return network.features(windows.get("optical"), windows.get("sar"))["fused"]


def training_tokens(network: UmsfNet, bench: Bench, read: Callable[[Tensor], Tensor]) -> Tensor:
    """``(n, D)`` tokens of training scenes after ``read``: (B, C, h, w) -> (B, D, h, w)."""
    mode, config = network.training, bench.config.map

    def function(windows: dict[str, Tensor]) -> Tensor:
        return read(fused_map(network, windows))

    network.eval()
    tokens = bench.sample(
        lambda scene: scene_map(function, bench.store, scene, network.stride, config),
        network.stride,
    )
    network.train(mode)
    return torch.from_numpy(tokens).float().to(bench.store.device)


class PrototypeHead(nn.Module):
    """Projection onto the unit sphere and prototypes there, each of which belongs to a cluster."""

    groups: Tensor

    def __init__(self, model: ModelConfig, prototypes: int, num_clusters: int) -> None:
        super().__init__()
        dim = model.projection_dim
        self.num_clusters = num_clusters
        self.projection = projection_head(model.channels, model.projection_hidden, dim, model.norm)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.register_buffer("groups", torch.arange(prototypes) % num_clusters)  # (P,)

    def embed(self, features: Tensor) -> Tensor:
        """Maps ``(B, C, h, w)`` -> ``(B, D, h, w)``, unit vectors."""
        return F.normalize(self.projection(features).float(), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)``: a cluster's probability is the sum of its prototypes'."""
        prototypes = F.normalize(self.prototypes, dim=1)
        scores = torch.einsum("bdhw,pd->bphw", self.embed(features), prototypes)
        members = F.one_hot(self.groups, self.num_clusters).float()  # (P, K)
        shares = torch.einsum("bphw,pk->bkhw", (scores / TEMPERATURE).softmax(dim=1), members)
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    @torch.no_grad()
    def settle(self, candidates: Tensor, tokens: Tensor) -> None:
        """Take the candidate prototypes whose merged clusters agree most with the others'.

        Args:
            candidates: ``(H, P, D)`` unit prototypes of several heads.
            tokens: ``(n, D)`` unit embeddings of training tokens.
        """
        nearest = [(tokens @ prototypes.T).argmax(dim=1).cpu() for prototypes in candidates]
        groups = [
            merged(prototypes.cpu().numpy(), np.unique(index), self.num_clusters)
            for prototypes, index in zip(candidates, nearest, strict=True)
        ]
        chosen = central([g[index] for g, index in zip(groups, nearest, strict=True)])
        self.prototypes.copy_(candidates[chosen])
        self.groups.copy_(torch.from_numpy(groups[chosen]))


def merged(prototypes: np.ndarray, used: np.ndarray, num_clusters: int) -> np.ndarray:
    """Cluster ``(P,)`` of each prototype, by Ward's linkage of those in use.

    Args:
        prototypes: ``(P, D)``, unit rows.
        used: indices of the prototypes that have a token; the others follow the nearest of these.
        num_clusters: K; where fewer prototypes are in use, some clusters stay empty.
    """
    groups = np.arange(len(used))
    if len(used) > num_clusters:
        linkage = AgglomerativeClustering(num_clusters, linkage="ward")
        groups = linkage.fit_predict(prototypes[used])
    result: np.ndarray = groups[(prototypes @ prototypes[used].T).argmax(axis=1)]
    return result


class Heads(nn.Module):
    """Several clustering heads, of which one answers."""

    chosen: Tensor

    def __init__(self, model: ModelConfig, heads: int, num_clusters: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(
            clustering_head(model.channels, model.cluster_hidden, num_clusters)
            for _ in range(heads)
        )
        self.register_buffer("chosen", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)`` of the chosen head."""
        logits: Tensor = self.all[int(self.chosen)](features)
        return logits
