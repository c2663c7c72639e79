"""The stage ``cluster``: teacher, self-training, and the network as a classifier of scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .bench import Bench
from .checkpoints import load_checkpoint, write_state
from .cluster import fit, merge, posterior_map, unmerged
from .inference import Classifier, scene_map
from .prepare import normalisation_of
from .pretrain import load_pretrained, new_network
from .runs import Run, write_arrays
from .self_training import posteriors_of, self_train
from .tokens import TokenMap, token_validity
from .training import Row, write_rows
from .umsf_net import MergedHead, UmsfNet
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


def teacher_of(bench: Bench) -> tuple[Classifier, Tensor]:
    """The label-free teacher: components of local statistics (``cluster.teacher``), not merged.

    Returns:
        A classifier of the P components, and the cluster ``(P,)`` int64 that each belongs to by
        the statistics alone.
    """
    settings, tokens = bench.config.cluster, bench.sample(bench.statistics, bench.stride)
    found = fit(settings.teacher, tokens, bench.num_clusters, settings, bench.config.seed)
    fine, groups = unmerged(found)

    def posteriors(scene: int) -> Tensor:
        return posterior_map(fine, bench.statistics, scene)

    teacher = Classifier("teacher", fine.num_clusters, bench.stride, posteriors)
    return teacher, torch.from_numpy(groups)


def merge_by(tokens: TokenMap, teacher: Classifier, bench: Bench) -> Tensor:
    """Cluster ``(P,)`` int64 of each component, by ``cluster.merge`` in the space of ``tokens``."""
    sums, weights, overlap = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for scene in bench.scenes.indices("train"):
        valid = token_validity(bench.store, scene, bench.stride)
        shares = teacher.posteriors(scene)[:, valid].double()  # (P, n)
        sums = sums + shares @ tokens(scene)[:, valid].double().T  # (P, D)
        weights, overlap = weights + shares.sum(dim=1), overlap + shares @ shares.T
    means = sums / weights.clamp_min(1e-9)[:, None]
    return torch.from_numpy(merge(means.cpu().numpy(), overlap.cpu().numpy(), bench.num_clusters))


def taught(run: Run, bench: Bench, network: UmsfNet) -> tuple[Classifier, Tensor]:
    """The teacher, and the clusters of its components: by what the pretrained network finds alike.

    A network that nothing has pretrained has no say in it.
    """
    teacher, groups = teacher_of(bench)
    merging = run.config.cluster.initial == "pretrained" and len(groups) > bench.num_clusters
    if merging:
        groups = merge_by(feature_tokens(network.eval(), bench, "fused"), teacher, bench)
    return teacher, groups


def merged_teacher(run: Run, bench: Bench) -> Classifier:
    """The teacher with its components merged as our network merges them: what it learns from."""
    network = starting_network(run, bench).to(run.device)
    return merged(*taught(run, bench, network), "teacher")


def merged(fine: Classifier, groups: Tensor, name: str) -> Classifier:
    """A classifier whose clusters are the ``groups (P,)`` of another's P components."""
    members = F.one_hot(groups).float()  # (P, K)

    def posteriors(scene: int) -> Tensor:
        components = fine.posteriors(scene)  # (P, h, w)
        return torch.einsum("phw,pk->khw", components, members.to(components))

    return Classifier(name, members.shape[1], fine.stride, posteriors)


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
    teacher, groups = taught(run, bench, network)
    lessons = {scene: teacher.posteriors(scene) for scene in bench.scenes.indices("train")}
    tiles = training_tiles(bench.scenes, config.views.window_px, config.views.overlap_px)
    network, rows = self_train(network, store, tiles, lessons, config, progress=progress)
    assert network.clustering is not None
    network.clustering = MergedHead(network.clustering, groups.to(run.device), bench.num_clusters)
    content = {"settings": inputs, "module": network.state_dict()}
    write_state(run.path(NETWORK), content)
    write_rows(run.path("self_training.csv"), rows)
    write_arrays(run.path("features.npz"), **sample_features(network, bench))
    return [NETWORK, "self_training.csv", "features.npz"]


def starting_network(run: Run, bench: Bench) -> UmsfNet:
    """Pretrained encoders and fusion, or random ones (``cluster.initial``); fresh head."""
    make = load_pretrained if run.config.cluster.initial == "pretrained" else new_network
    network = make(run, bench.scenes)
    network.set_num_clusters(bench.num_components)
    return network


def load_clustered(run: Run, bench: Bench) -> UmsfNet:
    """The self-trained network of a run, on the run's device, in eval mode.

    Raises:
        MissingStageError: the run has no finished clustering.
    """
    run.outputs_of("cluster")
    network = new_network(run, bench.scenes)
    network.set_num_clusters(bench.num_components)
    assert network.clustering is not None
    groups = torch.zeros(bench.num_components, dtype=torch.int64)
    network.clustering = MergedHead(network.clustering, groups, bench.num_clusters)
    network.load_state_dict(load_checkpoint(run.path(NETWORK), cluster_inputs(run))["module"])
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
