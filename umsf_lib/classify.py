"""The stage ``cluster``: teacher, self-training, and the network as a classifier of scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .bench import Bench
from .checkpoints import load_checkpoint, load_weights, write_state
from .inference import Classifier, scene_map
from .prepare import normalisation_of
from .pretrain import load_pretrained, new_network
from .runs import Run, write_arrays
from .self_training import posteriors_of, self_train
from .training import Row, write_rows
from .umsf_net import UmsfNet
from .windows import training_tiles

NETWORK = "checkpoints/clustered.pt"
PLOT_TOKENS = 2000  # of test scenes, kept for t-SNE
MAP_SYMMETRIES = 4  # of the square, averaged in the final map


def cluster_inputs(run: Run) -> dict[str, Any]:
    """What decides the clustered network; kept in its checkpoint and compared on load."""
    inputs = run.config.section("views", "model", "cluster", "map", "seed")
    return inputs | {
        "normalisation": normalisation_of(run),
        "pretrain": run.outputs_of("pretrain"),
    }


def teacher_of(bench: Bench) -> Classifier:
    """The label-free teacher: clusters of local statistics (``cluster.teacher``)."""
    kind = bench.config.cluster.teacher
    return bench.cluster(f"{kind}-statistics", kind, bench.statistics, bench.stride)


def cluster(
    run: Run, bench: Bench, *, progress: Callable[[int, int, Row], None] | None = None
) -> bool:
    """Stage ``cluster``: fit the teacher, self-train the network.

    Writes the network, ``self_training.csv`` and ``features.npz`` (tokens of test scenes).

    Returns:
        True if it was computed.
    """
    inputs = cluster_inputs(run)
    return run.stage("cluster", lambda: _cluster(run, bench, inputs, progress), inputs)


def _cluster(
    run: Run,
    bench: Bench,
    inputs: dict[str, Any],
    progress: Callable[[int, int, Row], None] | None,
) -> list[str]:
    config, store = run.config, bench.store
    network = starting_network(run, bench).to(run.device)
    teacher = teacher_of(bench)
    lessons = {scene: teacher.posteriors(scene) for scene in bench.scenes.indices("train")}
    tiles = training_tiles(bench.scenes, config.views.window_px, config.views.overlap_px)
    network, rows = self_train(network, store, tiles, lessons, config, progress=progress)
    content = {"settings": inputs, "module": network.state_dict()}
    write_state(run.path(NETWORK), content)
    write_rows(run.path("self_training.csv"), rows)
    write_arrays(run.path("features.npz"), **sample_features(network, bench))
    return [NETWORK, "self_training.csv", "features.npz"]


def starting_network(run: Run, bench: Bench) -> UmsfNet:
    """Pretrained encoders and fusion, or random ones (``cluster.initial``); fresh head."""
    make = load_pretrained if run.config.cluster.initial == "pretrained" else new_network
    network = make(run, bench.scenes)
    network.set_num_clusters(bench.num_clusters)
    return network


def load_clustered(run: Run, bench: Bench) -> UmsfNet:
    """The self-trained network of a run, on the run's device, in eval mode.

    Raises:
        MissingStageError: the run has no finished clustering.
    """
    run.outputs_of("cluster")
    network = new_network(run, bench.scenes)
    network.set_num_clusters(bench.num_clusters)
    path = run.path(NETWORK)
    load_weights(network, load_checkpoint(path, cluster_inputs(run))["module"], path)
    return network.to(run.device).eval()


def network_classifier(network: UmsfNet, bench: Bench, name: str = "umsf") -> Classifier:
    """A network with clustering head, as a classifier of whole scenes."""
    function, config = posteriors_of(network, MAP_SYMMETRIES), bench.config
    return Classifier(
        name,
        bench.num_clusters,
        network.stride,
        lambda scene: scene_map(function, bench.store, scene, network.stride, config.map),
    )


def feature_tokens(network: UmsfNet, bench: Bench, name: str) -> Callable[[int], Tensor]:
    """Unit feature tokens ``(C, h, w)`` of a scene: ``optical``, ``sar`` or ``fused``."""

    @torch.no_grad()
    def features(windows: dict[str, Tensor]) -> Tensor:
        maps = network.features(windows.get("optical"), windows.get("sar"))
        return F.normalize(maps[name].float(), dim=1)

    return lambda scene: scene_map(features, bench.store, scene, network.stride, bench.config.map)


def sample_features(network: UmsfNet, bench: Bench) -> dict[str, np.ndarray]:
    """Unit feature tokens of test scenes with their place and cluster.

    Returns:
        ``optical``, ``sar``, ``fused`` ``(M, C)`` float32 where the network has them; ``scene``,
        ``row``, ``col`` ``(M,)`` (scene px of the token's centre); ``cluster`` ``(M,)``.
    """
    rng, stride = np.random.default_rng(bench.config.seed), network.stride
    scenes = bench.scenes.indices("test")
    if len(scenes) > PLOT_TOKENS:
        scenes = np.sort(rng.choice(scenes, PLOT_TOKENS, replace=False)).tolist()
    names = ("optical", "sar", "fused") if network.sensors == "both" else ("fused",)

    @torch.no_grad()
    def features_and_logits(windows: dict[str, Tensor]) -> Tensor:
        maps = network.features(windows.get("optical"), windows.get("sar"))
        logits = network.clustering(maps["fused"])  # type: ignore[misc]
        return torch.cat([F.normalize(maps[name].float(), dim=1) for name in names] + [logits], 1)

    rows: dict[str, list[np.ndarray]] = {}
    for scene in scenes:
        maps = scene_map(features_and_logits, bench.store, scene, stride, bench.config.map)
        count = maps[0].numel()
        chosen = rng.choice(count, min(count, PLOT_TOKENS // len(scenes)), replace=False)
        row, col = (i * stride + stride // 2 for i in np.divmod(chosen, maps.shape[2]))
        tokens = maps.flatten(1)[:, torch.from_numpy(chosen).to(maps.device)].T.cpu().numpy()
        width = network.model.channels
        *parts, logits = np.split(tokens, range(width, width * len(names) + 1, width), axis=1)
        found = dict(zip(names, parts, strict=True)) | {"cluster": logits.argmax(1)}
        found |= {"scene": np.full(len(chosen), scene), "row": row, "col": col}
        for key, values in found.items():
            rows.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in rows.items()}
