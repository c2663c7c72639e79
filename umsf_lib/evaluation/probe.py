"""Evaluation of frozen features with labels: are places of one class close to each other?

As in SauMoCo (Kang et al. 2021), a random forest and nearest neighbours classify features of
patches on random splits. Patches of one scene lie side by side, so a random split puts near copies
of a test patch into the training part; splits by scene are reported beside it. The variogram shows
up to which distance places are alike. Nothing here affects training or the choice of settings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..clustering.task import ClusteringTask
from ..clustering.tokens import TokenMap, token_validity
from ..config import IGNORE
from ..data.scene_set import SceneSet, labels_at, valid_labels
from ..pretraining.neighbours import Corners
from ..run import Run, write_json
from .stage import block_means, identity, majority_label

SPLITS = 20
HELD_OUT = 0.2
PROTOCOLS = {"patch-random": "random patches held out", "patch-by-scene": "scenes held out"}
# name of the metric -> classifier with a seed
JUDGES: dict[str, Callable[[int], ClassifierMixin]] = {
    "rf_acc": lambda seed: RandomForestClassifier(50, random_state=seed),
    "knn_acc": lambda seed: KNeighborsClassifier(5),
}


@dataclass(frozen=True)
class Labelled:
    """Frozen features of labelled places, which are tokens or patches."""

    features: np.ndarray  # (n, D)
    label: np.ndarray  # (n,) class ids
    scene: np.ndarray  # (n,) index of the scene
    corner: np.ndarray  # (n, 2) row, col of the first pixel in the scene


def probe_features(
    run: Run, task: ClusteringTask, methods: Mapping[str, TokenMap], made_of: Mapping[str, Any]
) -> bool:
    """Run the stage ``probe``: judge frozen features on the test scenes, write ``probe.json``.

    Args:
        run: receives the records.
        task: scenes and settings.
        methods: name -> frozen tokens at ``model.stride``.
        made_of: name -> plain data that these tokens depend on.

    Returns:
        True if it was computed.
    """
    scenes, seed = task.scenes, run.config.seed
    inputs = {"made_of": made_of, "patch_px": run.config.map.patch_px, "seed": seed}
    inputs |= {"scenes": [scenes.folder.name, scenes.split]}

    def make() -> list[str]:
        rows = []
        for name, token_map in methods.items() if scenes.labelled else ():
            patches = patches_of(token_map, task, scenes.indices("test"), task.stride)
            rows += judge_records(run, name, patches)
        write_json(run.path("probe.json"), rows)
        return ["probe.json"]

    return run.stage("probe", make, inputs)


def patches_of(
    token_map: TokenMap, task: ClusteringTask, scenes: Sequence[int], stride: int
) -> Labelled:
    """Average the tokens of every patch of ``map.patch_px``, and take its most frequent label.

    Patches that are less than half labelled are left out.
    """
    size, classes = task.config.map.patch_px, len(task.scenes.layout.classes)
    parts = []
    for scene in scenes:
        label = majority_label(valid_labels(task.scenes, scene), size, classes)  # (rows, cols)
        known = label != IGNORE
        means = block_means(token_map(scene), size // stride).cpu().numpy()
        features = means[:, : label.shape[0], : label.shape[1]][:, known].T  # (n, D)
        corner = np.argwhere(known) * size
        parts.append((features, label[known], np.full(len(features), scene), corner))
    return _joined(parts)


def _joined(parts: Iterable[tuple[np.ndarray, ...]]) -> Labelled:
    """Join the places of several scenes."""
    return Labelled(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def judge_records(run: Run, method: str, patches: Labelled) -> list[dict[str, Any]]:
    """Make the records of one method: mean and standard deviation over the splits.

    Splits by scene are made only if there are enough scenes to hold out a fifth of them.
    """
    rows = []
    for protocol, metric in itertools.product(PROTOCOLS, JUDGES):
        if protocol == "patch-by-scene" and len(set(patches.scene)) < 1 / HELD_OUT:
            continue
        found = judge(patches, protocol, metric, run.config.seed)
        base = identity(run.folder.name, run.config, method, protocol)
        base |= {"matching": "none", "metric": metric, "class": None}
        rows.append(base | {"value": float(found.mean())})
        rows.append(base | {"metric": f"{metric}_std", "value": float(found.std())})
    return rows


def judge(patches: Labelled, protocol: str, metric: str, seed: int) -> np.ndarray:
    """Compute the accuracy ``(SPLITS,)`` of a classifier on the held-out part of each split."""
    model, parts = JUDGES[metric](seed), splits(patches, protocol, seed)
    return cross_val_score(model, patches.features, patches.label, cv=parts, error_score="raise")


def splits(patches: Labelled, protocol: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices to fit and to test on: ``SPLITS`` 80/20 splits of patches or whole scenes."""
    by_scene = protocol == "patch-by-scene"
    kind = GroupShuffleSplit if by_scene else ShuffleSplit
    drawn = kind(SPLITS, test_size=HELD_OUT, random_state=seed)
    yield from drawn.split(patches.features, groups=patches.scene if by_scene else None)


def accuracy_table(records: pd.DataFrame) -> pd.DataFrame:
    """Tabulate accuracies of frozen features: a row per method and kind of split."""
    chosen = records[records.protocol.isin(PROTOCOLS)]
    chosen = chosen.assign(protocol=chosen.protocol.map(PROTOCOLS))
    return chosen.pivot_table("value", ["method", "protocol"], "metric", sort=False)


def leak(table: pd.DataFrame) -> pd.DataFrame:
    """Subtract the accuracy with held-out scenes from that with random patches: a row per method.

    Args:
        table: from ``accuracy_table``; if it has only one kind of split, the result is empty.
    """
    kinds = table.index.get_level_values("protocol")
    of_patches, of_scenes = (
        table[kinds == kind].droplevel("protocol").reindex(columns=list(JUDGES))
        for kind in PROTOCOLS.values()
    )
    return (of_patches - of_scenes).dropna()


def mean_variogram(
    maps_of: TokenMap, task: ClusteringTask, scenes: Sequence[int], lags: list[int], stride: int
) -> list[float]:
    """Average over scenes the variogram of valid ground, divided by the variance.

    Args:
        maps_of: scene -> ``(C, h, w)``.
        task: source of the valid masks.
        scenes: indices of at least one scene.
        lags: distances in tokens.
        stride: px per token; 1 if the maps are pixels.
    """
    curves = []
    for scene in scenes:
        maps, valid = maps_of(scene), token_validity(task.store, scene, stride)
        variance = float(maps[:, valid].var(dim=1).mean())
        curves.append([value / variance for value in variogram(maps, lags, valid)])
    return [float(np.nanmean(values)) for values in zip(*curves, strict=True)]


def variogram(maps: Tensor, lags_px: list[int], valid: Tensor) -> list[float]:
    """Compute half the mean squared difference of values a lag apart along rows and columns.

    ``gamma(h) = 1/2 E |z(x + h) - z(x)|^2``, averaged over the bands (Matheron 1963). Divided by
    the variance it rises from near 0 to about 1, where places are no longer correlated.

    Args:
        maps: ``(C, h, w)``.
        lags_px: distances, smaller than both sides.
        valid: ``(h, w)`` bool, the pixels that count.

    Returns:
        One value per lag; NaN where no pair is valid.
    """
    found = []
    for lag in lags_px:
        steps = []
        for dim in (1, 2):
            n = maps.shape[dim] - lag
            both = valid.narrow(dim - 1, 0, n) & valid.narrow(dim - 1, lag, n)
            step = maps.narrow(dim, lag, n) - maps.narrow(dim, 0, n)
            steps.append(step.square().mean(0)[both])
        found.append(float(torch.cat(steps).double().mean()) / 2)
    return found


def same_class(scenes: SceneSet, windows: Corners, others: Corners, size: int) -> float:
    """Return the share of pairs of windows, i.e. of positives, with the same most frequent class.

    Pairs with a window that is less than half labelled do not count; NaN if none is left.
    """
    labels = np.array([window_labels(scenes, corners, size) for corners in (windows, others)])
    known = (labels != IGNORE).all(axis=0)
    return float((labels[0] == labels[1])[known].mean()) if known.any() else math.nan


def window_labels(scenes: SceneSet, corners: Corners, size: int) -> list[int]:
    """Return the most frequent class of each window, ``IGNORE`` if less than half is labelled."""
    planes = {scene: valid_labels(scenes, scene) for scene in set(corners[0].tolist())}
    found = []
    for scene, row, col in torch.stack(corners, dim=1).tolist():
        block = planes[scene][row : row + size, col : col + size]
        found.append(int(majority_label(block, size, len(scenes.layout.classes)).item()))
    return found


def labelled_tokens(
    token_map: TokenMap, scenes: SceneSet, which: Sequence[int], stride: int, count: int, seed: int
) -> Labelled:
    """Draw tokens with the label at their centre, equally many from each scene.

    Args:
        token_map: scene -> ``(D, h, w)`` at ``stride``.
        scenes: source of the labels.
        which: indices of scenes.
        stride: px per token.
        count: number of tokens in all; fewer are drawn where less ground is labelled.
        seed: seed of the draws.
    """
    rng, parts = np.random.default_rng(seed), []
    for scene in which:
        tokens = token_map(scene)  # (D, h, w)
        row, col = (stride * i.ravel() + stride // 2 for i in np.indices(tokens.shape[1:]))
        label = labels_at(scenes, np.full(row.size, scene), row, col)
        known = np.flatnonzero(label != IGNORE)
        chosen = np.sort(rng.permutation(known)[: count // len(which)])
        drawn = tokens.flatten(1)[:, torch.from_numpy(chosen).to(tokens.device)]  # (D, n)
        features = drawn.T.double().cpu().numpy()
        corner = np.stack([row, col], axis=1)[chosen] - stride // 2
        parts.append((features, label[chosen], np.full(len(chosen), scene), corner))
    return _joined(parts)


def linear_probe(known: Labelled, test: Labelled, per_class: int, seed: int) -> dict[str, float]:
    """Score frozen features by logistic regression on a few labelled, standardised tokens.

    Args:
        known: tokens to fit on, from other scenes than ``test``.
        test: tokens to score on.
        per_class: tokens of each class to fit on; all tokens of a class that has fewer.
        seed: seed of their choice.

    Returns:
        ``acc`` and ``macro_f1`` over the classes of ``test``.
    """
    order = np.random.default_rng(seed).permutation(len(known.label))
    of_class = [order[known.label[order] == c][:per_class] for c in np.unique(known.label)]
    fit = np.concatenate(of_class)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    said = model.fit(known.features[fit], known.label[fit]).predict(test.features)
    classes = np.unique(test.label)
    f1 = f1_score(test.label, said, labels=classes, average="macro", zero_division=0)
    return {"acc": float((said == test.label).mean()), "macro_f1": float(f1)}
