"""The stage ``cluster``: teacher, self-training, merging, and the classifier of whole scenes.

The teacher has more components than there are clusters, and the network learns to predict all of
them. The posteriors of both are averaged component by component: the network knows the context, and
the teacher keeps the rare land cover that a network loses. Then components are merged to clusters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.scene_set import normalisation_of
from ..data.windows import training_tiles
from ..models.umsf_net import UmsfNet
from ..pretraining.stage import load_pretrained, new_network
from ..progress import Progress, each
from ..run import Run, write_arrays
from ..training.checkpoints import load_checkpoint, load_weights, write_state
from ..training.loop import write_rows
from .inference import Classifier, network_posteriors, scene_map
from .mixture import RIDGE, Clusterer, arrays_of, clusterer_of, fit, merge, posterior_map
from .self_training import self_train
from .task import ClusteringTask
from .tokens import TokenMap, draw_places, token_validity

NETWORK = "checkpoints/clustered.pt"
PLOT_TOKENS, PLOT_SCENES = 2000, 12  # of test scenes, kept for t-SNE


@dataclass(frozen=True)
class Teacher:
    """Label-free teacher: a clusterer of P components, and the tokens that it reads."""

    clusterer: Clusterer
    tokens: TokenMap

    def posteriors(self, scene: int) -> Tensor:
        """Compute the posteriors ``(P, h, w)`` float32 of a scene."""
        return posterior_map(self.clusterer, self.tokens, scene)


@dataclass(frozen=True)
class Clustered:
    """Result of the stage.

    Attributes:
        network: predicts P components from pixels.
        teacher: predicts the same components from tokens (``cluster.teacher_tokens``).
        groups: ``(P,)`` int64, cluster of each component.
    """

    network: UmsfNet
    teacher: Teacher
    groups: Tensor


def cluster(run: Run, task: ClusteringTask, *, progress: Progress | None = None) -> bool:
    """Run the stage ``cluster``: fit the teacher, self-train the network, merge their components.

    It writes all three (``checkpoints/clustered.pt``), ``self_training.csv`` and ``features.npz``
    (tokens of test scenes).

    Returns:
        True if it was computed.
    """
    inputs, views = cluster_inputs(run), run.config.views

    def make() -> list[str]:
        network = starting_network(run, task).to(run.device)
        teacher = fit_teacher(run, task, progress=progress)
        train = each(task.scenes.indices("train"), progress, "posteriors of the teacher")
        taught = {scene: teacher.posteriors(scene) for scene in train}
        tiles = training_tiles(task.scenes, views.window_px, views.overlap_px)
        network, rows = self_train(
            network, task.store, tiles, taught, run.config, progress=progress
        )
        groups = merge_components(network, teacher, task, progress)
        found = Clustered(network, teacher, groups)
        saved = arrays_of(teacher.clusterer)
        arrays = {name: torch.from_numpy(array) for name, array in saved.items()}
        content = {"module": network.state_dict(), "teacher": arrays, "groups": found.groups}
        write_state(run.path(NETWORK), {"settings": inputs} | content)
        write_rows(run.path("self_training.csv"), rows)
        write_arrays(run.path("features.npz"), **sample_features(found, task, progress))
        return [NETWORK, "self_training.csv", "features.npz"]

    return run.stage("cluster", make, inputs, trains=True)


def cluster_inputs(run: Run) -> dict[str, Any]:
    """Return what the result depends on; its checkpoint stores it, and loading compares it."""
    inputs = run.config.section("views", "model", "cluster", "map", "seed")
    made = {"normalisation": normalisation_of(run), "pretrain": run.outputs_of("pretrain")}
    return inputs | made


def starting_network(run: Run, task: ClusteringTask) -> UmsfNet:
    """Load pretrained encoders and fusion, or make random ones (``cluster.initial``); new head."""
    make = load_pretrained if task.config.cluster.initial == "pretrained" else new_network
    network = make(run, task.scenes)
    network.set_num_clusters(task.num_components)
    return network


def teacher_tokens(run: Run, task: ClusteringTask, *, progress: Progress | None = None) -> TokenMap:
    """Return the tokens that the teacher reads (``cluster.teacher_tokens``).

    They are local statistics, fused tokens of ``starting_network``, or both side by side, each
    reduced to ``cluster.max_dims`` principal components.
    """
    wanted = task.config.cluster.teacher_tokens
    if wanted == "auto":
        wanted = "both" if task.config.data else "statistics"
    if wanted == "statistics":
        return task.local_statistics(progress)
    network = starting_network(run, task).to(run.device).eval()
    fused = task.reduced(feature_tokens(network, task, "fused"), progress)
    return fused if wanted == "network" else task.joined([task.local_statistics(progress), fused])


def fit_teacher(run: Run, task: ClusteringTask, *, progress: Progress | None = None) -> Teacher:
    """Fit the label-free teacher (``cluster.teacher``) to tokens of the training scenes."""
    settings, seed = task.config.cluster, task.config.seed
    tokens = teacher_tokens(run, task, progress=progress)
    sample, count = task.sample(tokens, task.stride, progress), task.num_components
    clusterer = fit(settings.teacher, sample, count, settings, seed, progress=progress)
    return Teacher(clusterer, tokens)


def merge_components(
    network: UmsfNet, teacher: Teacher, task: ClusteringTask, progress: Progress | None = None
) -> Tensor:
    """Find the cluster ``(P,)`` int64 of each component by ``mixture.merge``, on training scenes.

    It merges components whose tokens, weighted by the final posteriors, are most similar.
    """
    if task.num_components == task.num_clusters:
        return torch.arange(task.num_clusters)
    share = task.config.cluster.teacher_share
    posteriors = component_posteriors(network, teacher, task, share)
    sizes, sums, squares = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for scene in each(task.scenes.indices("train"), progress, "merge components"):
        valid = token_validity(task.store, scene, task.stride)
        shares = posteriors(scene)[:, valid].double()  # (P, n)
        tokens = teacher.tokens(scene)[:, valid].double()  # (D, n)
        sizes, sums = sizes + shares.sum(dim=1), sums + shares @ tokens.T  # (P,), (P, D)
        # (P, D, D): for each component (D, n) x (n, D)
        squares = squares + torch.stack([(tokens * own) @ tokens.T for own in shares])
    sizes = sizes.clamp_min(1e-9)  # a component without tokens must not divide by 0
    means = sums / sizes[:, None]  # (P, D)
    covariances = squares / sizes[:, None, None] - means[:, :, None] * means[:, None]
    ridge = RIDGE * torch.eye(means.shape[1]).to(covariances)
    groups = merge(means.cpu().numpy(), (covariances + ridge).cpu().numpy(), task.num_clusters)
    return torch.from_numpy(groups)


def component_posteriors(
    network: UmsfNet, teacher: Teacher, task: ClusteringTask, teacher_share: float
) -> TokenMap:
    """Make a function: scene -> component posteriors ``(P, h, w)``, mean of network and teacher.

    The teacher, which has the components of the network, gets the weight ``teacher_share``.
    """
    own = network_posteriors(network, task.store, task.config.map)
    if teacher_share in (0, 1):  # the other is not needed
        return teacher.posteriors if teacher_share == 1 else own
    return lambda scene: torch.lerp(own(scene), teacher.posteriors(scene), teacher_share)


def sample_features(
    found: Clustered, task: ClusteringTask, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Draw unit feature tokens of up to ``PLOT_SCENES`` test scenes, with place and cluster.

    Returns:
        ``optical``, ``sar``, ``fused`` ``(M, C)`` float32, those the network has; ``scene``,
        ``row``, ``col`` ``(M,)`` (the token's centre in scene px); ``cluster`` ``(M,)``.
    """
    classifier, stride, seed = clustered_classifier(found, task), task.stride, task.config.seed
    kinds = ("optical", "sar", "fused") if found.network.sensors == "both" else ("fused",)
    features, test = feature_tokens(found.network, task, *kinds), task.scenes.indices("test")
    test = test[:: max(1, math.ceil(len(test) / PLOT_SCENES))]  # spread evenly
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    places_of = list(draw_places(task.store, test, stride, PLOT_TOKENS, seed))
    for scene, places in each(places_of, progress, "features of test scenes"):
        maps = features(scene)
        here = torch.from_numpy(places).to(maps.device)
        # With k kinds of token: (k C, h, w) -> (k C, n) -> (n, k C) -> k arrays (n, C)
        parts = np.split(maps.flatten(1)[:, here].T.cpu().numpy(), len(kinds), axis=1)
        for kind, part in zip(kinds, parts, strict=True):
            rows[kind].append(part)
        # (K, h, w) -> (h, w) -> (n,)
        clusters = classifier.posteriors(scene).argmax(dim=0).flatten()[here]
        rows["cluster"].append(clusters.cpu().numpy())
        rows["scene"].append(np.full(len(places), scene))
        for axis, place in zip(("row", "col"), np.divmod(places, maps.shape[2]), strict=True):
            rows[axis].append(place * stride + stride // 2)
    return {key: np.concatenate(values) for key, values in rows.items()}


def load_clustered(run: Run, task: ClusteringTask) -> Clustered:
    """Load the result of the stage, with the network on the run's device, in eval mode.

    Raises:
        MissingStageError: if the run has no finished clustering.
    """
    run.outputs_of("cluster")
    network = new_network(run, task.scenes)
    network.set_num_clusters(task.num_components)
    path = run.path(NETWORK)
    content = load_checkpoint(path, cluster_inputs(run))
    load_weights(network, content["module"], path)
    saved = {name: array.numpy() for name, array in content["teacher"].items()}
    teacher = Teacher(clusterer_of(saved), teacher_tokens(run, task))
    return Clustered(network.to(run.device).eval(), teacher, content["groups"])


def clustered_classifier(
    found: Clustered, task: ClusteringTask, name: str = "", teacher_share: float | None = None
) -> Classifier:
    """Make a classifier of whole scenes from the result of the stage.

    Args:
        found: see ``load_clustered``.
        task: scenes and settings.
        name: name of the method; default "umsf", with the teacher share if that is another one.
        teacher_share: replaces the run's: 0 for the network alone, 1 for the teacher alone.
    """
    usual = task.config.cluster.teacher_share
    share = usual if teacher_share is None else teacher_share
    name = name or ("umsf" if share == usual else f"umsf-teacher-{share:g}")
    components = component_posteriors(found.network, found.teacher, task, share)
    members = F.one_hot(found.groups, task.num_clusters).float().to(task.store.device)  # (P, K)

    def posteriors(scene: int) -> Tensor:
        # (P, h, w) x (P, K) -> (K, h, w)
        return torch.einsum("phw,pk->khw", components(scene), members)

    return Classifier(name, task.num_clusters, task.stride, posteriors)


def network_classifier(network: UmsfNet, task: ClusteringTask, name: str) -> Classifier:
    """Make a classifier of whole scenes from a network whose head predicts the clusters."""
    posteriors = network_posteriors(network, task.store, task.config.map)
    return Classifier(name, task.num_clusters, network.stride, posteriors)


def feature_tokens(network: UmsfNet, task: ClusteringTask, *kinds: str) -> TokenMap:
    """Make a function: scene -> unit tokens ``(C, h, w)`` of ``optical``, ``sar`` or ``fused``.

    Several kinds are stacked to ``(k C, h, w)``.
    """

    def features(windows: dict[str, Tensor]) -> Tensor:
        maps = network.features(windows)  # (B, C, h, w) each
        return torch.cat([F.normalize(maps[kind].float(), dim=1) for kind in kinds], dim=1)

    return partial(scene_map, features, task.store, stride=network.stride, config=task.config.map)
