"""Patches, splits and classifiers of frozen features; the variogram."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import umsf_lib.evaluation.probe
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import IGNORE, load_config
from umsf_lib.data.scene_set import SceneSet, valid_labels
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore
from umsf_lib.evaluation.probe import (
    PROTOCOLS,
    SPLITS,
    Labelled,
    accuracy_table,
    judge,
    labelled_tokens,
    leak,
    linear_probe,
    mean_variogram,
    patches_of,
    probe_features,
    same_class,
    splits,
    variogram,
)
from umsf_lib.evaluation.stage import COLUMNS, load_records
from umsf_lib.run import Run


def rows_and_columns(height: int, width: int, stride: int) -> Tensor:
    """Tokens that tell where they lie: row and column of their centre in pixels."""
    lines = (
        torch.arange(math.ceil(n / stride)) * stride + (stride - 1) / 2 for n in (height, width)
    )
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).float()


def test_patches_have_the_mean_token_and_the_commonest_label(
    whu: SceneSet, whu_store: PixelStore
) -> None:
    config = load_config("tiny", overrides="map.patch_px=16")
    task, which = ClusteringTask(whu, whu_store, config), whu.indices("test")

    def tokens(scene: int) -> Tensor:
        return rows_and_columns(whu.records[scene].height, whu.records[scene].width, 4)

    found, number = patches_of(tokens, task, which, stride=4), 0
    for scene in which:
        labels = valid_labels(whu, scene)
        for top in range(0, labels.shape[0] - 15, 16):
            for left in range(0, labels.shape[1] - 15, 16):
                block = labels[top : top + 16, left : left + 16]
                known = block[block != IGNORE]
                if known.size < 128:
                    continue
                assert found.label[number] == np.bincount(known).argmax()
                assert found.features[number].tolist() == [top + 7.5, left + 7.5]
                assert found.scene[number] == scene
                assert found.corner[number].tolist() == [top, left]
                number += 1
    assert number == len(found.label) > 10


def blobs(scenes: int, each: int) -> Labelled:
    """A class per scene, whose patches share features of their own that tell nothing elsewhere."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(scenes), each)
    own = rng.normal(size=(scenes, 8))[scene]
    label = rng.integers(0, 2, scenes)[scene]  # all patches of a scene are of one class
    corner = np.zeros((len(label), 2), int)
    return Labelled(own + 0.01 * rng.normal(size=own.shape), label, scene, corner)


def test_splits_hold_out_a_fifth_of_patches_or_of_scenes() -> None:
    patches = blobs(10, 6)
    for protocol in PROTOCOLS:
        drawn = list(splits(patches, protocol, seed=3))
        assert len(drawn) == SPLITS and len({tuple(test) for _, test in drawn}) > 10
        for fit, test in drawn:
            assert len(test) == 12 and sorted([*fit, *test]) == list(range(60))
            apart = not set(patches.scene[fit]) & set(patches.scene[test])
            assert apart == (protocol == "patch-by-scene")


def test_random_splits_leak_what_scenes_share() -> None:
    """Labels here belong to scenes, not to features: only a leak can find them."""
    patches = blobs(30, 10)
    leaking, honest = (judge(patches, protocol, "knn_acc", 0) for protocol in PROTOCOLS)
    assert leaking.mean() > 0.98 and honest.mean() < 0.75
    fit, test = next(splits(patches, "patch-random", 0))
    model = KNeighborsClassifier(5).fit(patches.features[fit], patches.label[fit])
    right = (model.predict(patches.features[test]) == patches.label[test]).mean()
    assert leaking.shape == (SPLITS,) and leaking[0] == right


def test_a_random_forest_finds_what_features_tell() -> None:
    patches = blobs(30, 3)
    told = replace(patches, features=np.column_stack([patches.features, 5 * patches.label]))
    assert judge(told, "patch-by-scene", "rf_acc", 0).mean() > 0.95


def test_records_of_a_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(umsf_lib.evaluation.probe, "SPLITS", 3)
    run = Run.open(load_config("tiny", overrides="synthetic.test=5 map.patch_px=32"))
    task = ClusteringTask.of_run(run, load_data(run))
    made_of = {"statistics": "local"}
    assert probe_features(run, task, {"statistics": task.statistics}, made_of)
    assert not probe_features(run, task, {"statistics": task.statistics}, made_of)
    table = load_records([run.folder])
    assert list(table.columns) == COLUMNS and set(table.protocol) == set(PROTOCOLS)
    assert set(table.metric) == {"rf_acc", "rf_acc_std", "knn_acc", "knn_acc_std"}
    patches = patches_of(task.statistics, task, task.scenes.indices("test"), task.stride)
    expected = judge(patches, "patch-random", "knn_acc", run.config.seed)
    chosen = table[(table.protocol == "patch-random") & (table.method == "statistics")]
    values = chosen.set_index("metric").value
    assert values["knn_acc"] == pytest.approx(expected.mean())
    assert values["knn_acc_std"] == pytest.approx(expected.std())


def test_variogram_equals_a_loop_and_knows_noise() -> None:
    maps = torch.randn(2, 9, 11, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(9, 11, generator=torch.Generator().manual_seed(1)) > 0.3
    for lag in (1, 4):
        halves = []
        for r in range(9):
            for c in range(11):
                for r2, c2 in ((r + lag, c), (r, c + lag)):
                    if r2 < 9 and c2 < 11 and valid[r, c] and valid[r2, c2]:
                        step = maps[:, r, c] - maps[:, r2, c2]
                        halves.append(float((step**2).mean()) / 2)
        assert variogram(maps, [lag], valid)[0] == pytest.approx(np.mean(halves), rel=1e-5)
    noise = torch.randn(1, 300, 300, generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones(300, 300, dtype=torch.bool)
    assert variogram(noise, [1, 7], everywhere) == pytest.approx([1, 1], rel=0.02)
    assert math.isnan(variogram(maps, [3], torch.zeros(9, 11, dtype=torch.bool))[0])


def test_mean_variogram_is_relative_to_the_variance_of_valid_ground(
    whu: SceneSet, whu_store: PixelStore
) -> None:
    task, which = ClusteringTask(whu, whu_store, load_config("tiny")), whu.indices("train")

    def optical(scene: int) -> Tensor:
        return whu_store.scene(scene)["optical"][0]

    expected = []
    for scene in which:
        valid = torch.from_numpy(np.array(whu.plane("valid", scene)))
        spread = optical(scene)[:, valid].var(dim=1).mean().item()
        expected.append(variogram(optical(scene), [1, 5], valid)[1] / spread)
    found = mean_variogram(optical, task, which, [1, 5], 1)
    assert found[1] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found == pytest.approx([1, 1], abs=0.1)  # these scenes are noise


def test_same_class_compares_majorities(whu: SceneSet) -> None:
    scene = whu.indices("train")[0]
    labels = valid_labels(whu, scene)
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 24, (2, 40, 2))
    right, pairs = 0, 0
    for a, b in zip(*corners, strict=True):
        blocks = [labels[r : r + 16, c : c + 16] for r, c in (a, b)]
        if min((block != IGNORE).sum() for block in blocks) >= 128:
            best = [np.bincount(block[block != IGNORE]).argmax() for block in blocks]
            right, pairs = right + (best[0] == best[1]), pairs + 1
    first, second = ((torch.full((40,), scene), *torch.from_numpy(c).T) for c in corners)
    assert pairs > 10
    assert same_class(whu, first, second, 16) == pytest.approx(right / pairs)


def test_table_and_leak_of_records() -> None:
    rows = [
        {"method": m, "protocol": p, "metric": metric, "value": value}
        for m in ("b", "a")
        for p, value in (("patch-random", 0.9), ("patch-by-scene", 0.7), ("dense", 0.1))
        for metric in ("rf_acc", "rf_acc_std", "knn_acc", "knn_acc_std")
    ]
    table = accuracy_table(pd.DataFrame(rows))
    assert list(table.index.get_level_values("method").unique()) == ["b", "a"]
    assert leak(table).to_numpy().tolist() == [[pytest.approx(0.2)] * 2] * 2
    only = pd.DataFrame([row for row in rows if row["protocol"] == "patch-random"])
    assert leak(accuracy_table(only)).empty
    assert leak(accuracy_table(pd.DataFrame(rows[:0], columns=list(rows[0])))).empty


def tokens_with(features: np.ndarray, label: np.ndarray) -> Labelled:
    return Labelled(features, label, np.zeros(len(label), int), np.zeros((len(label), 2), int))


def test_a_linear_probe_learns_from_as_many_tokens_a_class_as_it_is_given() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([2, 5, 6], [900, 60, 40])
    centre = {2: (0, 0), 5: (10, 0), 6: (0, 10)}
    features = np.array([centre[c] for c in label]) + rng.normal(0, 0.5, (1000, 2))
    known = tokens_with(features, label)
    test = tokens_with(np.array([[0.1, 0], [9, 1], [4.2, 0]]), np.array([2, 5, 2]))
    assert linear_probe(known, test, 40, 0) == {"acc": 1.0, "macro_f1": 1.0}
    wrong = tokens_with(test.features, np.array([2, 5, 5]))  # F1: 2/3 of class 2, 2/3 of class 5
    assert linear_probe(known, wrong, 40, 0) == pytest.approx({"acc": 2 / 3, "macro_f1": 2 / 3})
    # Of one token a class, far outliers of the largest class are hardly ever that one.
    noisy = np.concatenate([features, np.tile([[10.0, 0]], (9, 1))])
    probed = [
        linear_probe(tokens_with(noisy, np.append(label, [2] * 9)), test, 1, seed)["acc"]
        for seed in range(20)
    ]
    assert np.median(probed) == 1.0


def test_labelled_tokens_have_the_label_at_their_centre(
    whu: SceneSet, whu_store: PixelStore
) -> None:
    def tokens(scene: int) -> Tensor:
        return rows_and_columns(whu.records[scene].height, whu.records[scene].width, 4)

    which = whu.indices("test")
    found = labelled_tokens(tokens, whu, which, 4, 60, seed=0)
    assert found.features.shape == (60, 2) and IGNORE not in found.label
    assert found.scene.tolist() == np.repeat(which, 30).tolist()
    labels = [valid_labels(whu, scene) for scene in which for _ in range(30)]
    for (row, col), label, plane in zip(found.features, found.label, labels, strict=True):
        assert plane[round(row + 0.5), round(col + 0.5)] == label  # 1.5 px: the centre of 4
    assert len(np.unique(found.features[:30], axis=0)) == 30
