"""Scores as records: counted again by slow loops and by scikit-learn."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from sklearn import metrics as oracle

from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import IGNORE, Config, MissingStageError, load_config
from umsf_lib.data.scene_set import SceneSet, valid_labels
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore
from umsf_lib.evaluation.metrics import accuracy, confusion, scores
from umsf_lib.evaluation.stage import (
    OVERALL,
    block_means,
    class_f1,
    dense_tables,
    evaluate,
    fitted_matching,
    gains,
    headline,
    limits,
    load_records,
    majority_label,
    matchings,
    score_scenes,
    score_table,
)
from umsf_lib.run import Run, write_json

from ..conftest import CPU
from ..fakes import write_set

FIELDS = {"run", "method", "variant", "profile", "dataset", "protocol", "split", "matching"}
FIELDS |= {"metric", "class", "seed", "value"}
TINY = load_config("tiny", overrides="map.patch_px=8 cluster.smoothing_px=0")


def guesses(scenes: SceneSet, clusters: int, right: float = 0.6, seed: int = 0) -> Classifier:
    """A classifier whose clusters are renamed classes, right in a share of the pixels."""
    names = np.random.default_rng(seed).permutation(clusters)

    def posteriors(scene: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, scene])
        labels = scenes.plane("label", scene)
        known = np.where((labels != IGNORE) & (rng.random(labels.shape) < right), labels, 255)
        guess = np.where(known == 255, rng.integers(0, clusters, labels.shape), known)
        values = torch.from_numpy(np.eye(clusters, dtype=np.float32)[names[guess]])
        noise = torch.from_numpy(rng.random(values.shape).astype(np.float32))
        return (values + 0.5 * noise).softmax(2).permute(2, 0, 1)

    return Classifier(f"guess-{clusters}", clusters, 1, posteriors)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose clustering is done, with something else than a network."""
    return clustered(tmp_path, TINY)


def clustered(root: Path, config: Config) -> Run:
    run = Run.open(config, "mine", root)
    write_json(run.path("network.json"), 0)
    run.stage("cluster", lambda: ["network.json"], {})
    return run


def given(*methods: Classifier) -> dict[str, Callable[[], Classifier]]:
    return {method.name: partial(dataclasses.replace, method) for method in methods}


def bench_of(scenes: SceneSet, config: Config = TINY) -> ClusteringTask:
    return ClusteringTask(scenes, PixelStore(scenes, scenes.statistics, CPU), config)


def slow_patches(posteriors: np.ndarray, labels: np.ndarray, size: int, classes: int) -> Any:
    """The patch protocol, patch by patch."""
    predicted, true = [], []
    for top in range(0, labels.shape[0] - size + 1, size):
        for left in range(0, labels.shape[1] - size + 1, size):
            here = (slice(top, top + size), slice(left, left + size))
            counts = Counter(int(v) for v in labels[here].flat if v != IGNORE)
            most = max(counts.values(), default=0)
            best = min((c for c in range(classes) if counts[c] == most), default=IGNORE)
            true.append(best if 2 * sum(counts.values()) >= size * size else IGNORE)
            means = [float(p[here].mean()) for p in posteriors]
            predicted.append(means.index(max(means)))
    return np.array(predicted), np.array(true)


def patch_majority(
    posteriors: torch.Tensor, labels: np.ndarray, size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same as ``score_scenes`` counts it."""
    predicted = block_means(posteriors, size).argmax(0).numpy()
    return predicted, majority_label(labels, size, classes)


@pytest.mark.parametrize("shape", [(32, 40), (37, 45), (8, 8)])
@pytest.mark.parametrize("labelled", [1.0, 0.5, 0.0])
def test_patch_majority_equals_a_slow_loop(shape: tuple[int, int], labelled: float) -> None:
    rng = np.random.default_rng(0)
    posteriors = rng.random((5, *shape)).astype(np.float32)
    labels = rng.integers(0, 3, shape)
    labels[rng.random(shape) >= labelled] = IGNORE
    predicted, true = patch_majority(torch.from_numpy(posteriors), labels, 8, 3)
    assert predicted.shape == true.shape == (shape[0] // 8, shape[1] // 8)
    expected = slow_patches(posteriors, labels, 8, 3)
    np.testing.assert_array_equal(predicted.ravel(), expected[0])
    np.testing.assert_array_equal(true.ravel(), expected[1])
    if labelled in (0.0, 1.0):
        assert (true == IGNORE).all() == (labelled == 0)


def test_a_half_labelled_patch_counts_and_one_pixel_less_does_not() -> None:
    labels = np.full((4, 8), IGNORE)
    labels.ravel()[[0, 1, 2, 3, 8, 9, 10, 11]] = 1  # 8 of 16 in the first patch
    labels[0:2, 4:7] = 2  # 6 of 16 in the second
    posteriors = torch.zeros(2, 4, 8)
    assert patch_majority(posteriors, labels, 4, 3)[1].tolist() == [[1, IGNORE]]


def test_scenes_smaller_than_a_patch_have_none() -> None:
    predicted, true = patch_majority(torch.rand(3, 10, 40), np.zeros((10, 40), int), 16, 2)
    assert predicted.size == true.size == 0


def test_tables_count_each_valid_labelled_pixel_once(whu: SceneSet) -> None:
    task, method = bench_of(whu), guesses(whu, 7)
    tables = score_scenes([method], task, [1, 3])[method.name]
    assert tables["dense"].shape == tables["patch"].shape == (2, 7, 7)
    for k, scene in enumerate((1, 3)):
        labels = valid_labels(whu, scene)
        predicted = method.posteriors(scene).argmax(0).numpy()
        scored = labels != IGNORE
        expected = oracle.cluster.contingency_matrix(predicted[scored], labels[scored])
        np.testing.assert_array_equal(tables["dense"][k], expected)
        pred, true = slow_patches(method.posteriors(scene).numpy(), labels, 8, 7)
        by_hand = np.zeros((7, 7), int)
        for p, t in zip(pred, true, strict=True):
            if t != IGNORE:
                by_hand[p, t] += 1
        np.testing.assert_array_equal(tables["patch"][k], by_hand)
    assert score_scenes([method], task, [])[method.name]["dense"].shape == (0, 7, 7)


def rows_of(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run.path("metrics.json").read_text())
    return rows


def test_records_are_complete_and_each_occurs_once(run: Run, whu: SceneSet) -> None:
    methods = [guesses(whu, 7), guesses(whu, 10, seed=1)]
    assert evaluate(run, bench_of(whu), given(*methods))
    rows = rows_of(run)
    assert all(set(row) == FIELDS for row in rows)
    names = [land.name for land in whu.layout.classes]
    wanted = {(metric, None) for metric in OVERALL}
    wanted |= {(metric, name) for metric in ("f1", "recall") for name in names}
    expected = {
        (method.name, protocol, matching, *pair)
        for method in methods
        for protocol in ("dense", "patch")
        for matching in ("validation", "named", "test")
        for pair in wanted
    } | {
        (method.name, protocol, "none", metric, None)
        for method in methods
        for protocol in ("dense", "patch")
        for metric in ("constant", "equal_size_ceiling")
    }
    found = [(r["method"], r["protocol"], r["matching"], r["metric"], r["class"]) for r in rows]
    assert len(found) == len(set(found)) and set(found) == expected
    for row in rows:
        assert (row["run"], row["profile"], row["seed"]) == ("mine", "tiny", 0)
        assert (row["split"], row["dataset"]) == ("test", "easy")
        assert row["variant"] == "both-attention-pretrained"
        largest = 7 if row["metric"] == "classes_found" else 1
        assert type(row["value"]) is float and -1 <= row["value"] <= largest


def test_scores_equal_scikit_learn_on_the_pooled_test_pixels(run: Run, whu: SceneSet) -> None:
    method = guesses(whu, 7)
    evaluate(run, bench_of(whu), given(method))

    def pooled(part: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = []
        for scene in whu.indices(part):
            labels = valid_labels(whu, scene)
            scored = labels != IGNORE
            pairs.append((method.posteriors(scene).argmax(0).numpy()[scored], labels[scored]))
        return np.concatenate([p for p, _ in pairs]), np.concatenate([t for _, t in pairs])

    val, true_val = pooled("val")
    test, true = pooled("test")
    # At 60 % right the best matching is the majority of each cluster, which are all different.
    mapping = np.array([np.bincount(true_val[val == k], minlength=7).argmax() for k in range(7)])
    assert len(set(mapping)) == 7
    np.testing.assert_array_equal(fitted_matching(run, method.name), mapping)
    mapped = mapping[test]
    expected = {
        "acc": oracle.accuracy_score(true, mapped),
        "nmi": oracle.normalized_mutual_info_score(true, test),
        "ami": oracle.adjusted_mutual_info_score(true, test),
        "ari": oracle.adjusted_rand_score(true, test),
        "macro_f1": oracle.f1_score(true, mapped, average="macro"),
        "miou": oracle.jaccard_score(true, mapped, average="macro"),
        "kappa": oracle.cohen_kappa_score(true, mapped),
        "constant": np.bincount(true).max() / len(true),
        "equal_size_ceiling": np.minimum(np.bincount(true) / len(true), 1 / 7).sum(),
    }
    rows = [
        r
        for r in rows_of(run)
        if r["protocol"] == "dense" and r["matching"] in ("validation", "none")
    ]
    found = {r["metric"]: r["value"] for r in rows if r["class"] is None}
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, abs=1e-9), metric
    by_class = oracle.f1_score(true, mapped, average=None)
    f1 = {r["class"]: r["value"] for r in rows if r["metric"] == "f1"}
    assert [f1[land.name] for land in whu.layout.classes] == pytest.approx(list(by_class))
    by_class = oracle.recall_score(true, mapped, average=None)
    recall = {r["class"]: r["value"] for r in rows if r["metric"] == "recall"}
    assert [recall[land.name] for land in whu.layout.classes] == pytest.approx(list(by_class))
    assert found["classes_found"] == 7


def test_the_matching_is_fitted_on_validation_scenes_not_on_test(run: Run, whu: SceneSet) -> None:
    """A method that renames its clusters on the test scenes must not be helped."""
    honest = guesses(whu, 7, right=0.9)
    tests = whu.indices("test")
    turned = dataclasses.replace(
        honest,
        name="turned",
        posteriors=lambda s: (
            honest.posteriors(s).roll(1, 0) if s in tests else honest.posteriors(s)
        ),
    )
    evaluate(run, bench_of(whu), given(honest, turned))
    acc = {
        (r["method"], r["matching"]): r["value"]
        for r in rows_of(run)
        if r["metric"] == "acc" and r["protocol"] == "dense"
    }
    assert acc["turned", "test"] == pytest.approx(acc[honest.name, "test"])
    assert acc["turned", "validation"] < 0.1 < 0.8 < acc[honest.name, "validation"]
    expected = fitted_matching(run, honest.name)
    np.testing.assert_array_equal(fitted_matching(run, "turned"), expected)


def test_clusters_are_named_by_the_validation_scenes(run: Run, whu: SceneSet) -> None:
    """Ten clusters of seven classes; the tenth occurs on test scenes only."""
    method, tests = guesses(whu, 10), whu.indices("test")

    def posteriors(scene: int) -> torch.Tensor:
        maps = method.posteriors(scene).clone()
        maps[9] = 0.2 if scene in tests else 0
        return maps

    evaluate(run, bench_of(whu), given(dataclasses.replace(method, posteriors=posteriors)))
    pixels: dict[str, list[tuple[int, int]]] = {"val": [], "test": []}
    for part, found in pixels.items():
        for scene in whu.indices(part):
            clusters, labels = posteriors(scene).argmax(0).numpy(), valid_labels(whu, scene)
            found += [(int(c), int(t)) for c, t in zip(clusters.flat, labels.flat, strict=True)]
    seen = [[t for c, t in pixels["val"] if c == k and t != IGNORE] for k in range(10)]
    most = Counter(sum(seen, [])).most_common(1)[0][0]
    names = [Counter(found).most_common(1)[0][0] if found else most for found in seen]
    assert not seen[9] and any(c == 9 for c, _ in pixels["test"])
    assert dense_tables(run, method.name, "named")[1].tolist() == names
    scored = [(names[c], t) for c, t in pixels["test"] if t != IGNORE]
    rows = [r for r in rows_of(run) if (r["protocol"], r["matching"]) == ("dense", "named")]
    values = {r["metric"]: r["value"] for r in rows if r["class"] is None}
    assert values["acc"] == pytest.approx(oracle.accuracy_score(*zip(*scored, strict=True)))
    right = Counter(t for name, t in scored if name == t)
    sizes = Counter(t for _, t in scored)
    recall = {r["class"]: r["value"] for r in rows if r["metric"] == "recall"}
    for land in whu.layout.classes:
        assert recall[land.name] == pytest.approx(right[land.id] / sizes[land.id])
    assert values["classes_found"] == sum(right[k] >= 0.05 * sizes[k] for k in sizes)


def test_a_transductive_set_has_only_the_matching_on_test(run: Run, terramesh: SceneSet) -> None:
    method = guesses(terramesh, 8)
    evaluate(run, bench_of(terramesh), given(method))
    assert {row["matching"] for row in rows_of(run)} == {"test", "none"}
    table = score_scenes([method], bench_of(terramesh), range(5))[method.name]["dense"].sum(axis=0)
    np.testing.assert_array_equal(fitted_matching(run, method.name), table.argmax(axis=1))


@pytest.mark.parametrize("kind", ["whu", "terramesh"])  # the second has no validation scenes
def test_a_method_that_knows_the_classes_is_not_matched(
    run: Run, kind: str, request: pytest.FixtureRequest
) -> None:
    """Its outputs count as they are, and only test scenes are mapped; another is matched still."""
    scenes: SceneSet = request.getfixturevalue(kind)
    classes, calls = len(scenes.layout.classes), Counter[int]()
    honest = guesses(scenes, classes)

    def posteriors(scene: int) -> torch.Tensor:
        calls[scene] += 1
        return honest.posteriors(scene)

    learnt = dataclasses.replace(
        honest, name="learnt", posteriors=posteriors, predicts_classes=True
    )
    evaluate(run, bench_of(scenes), given(learnt, honest))
    assert calls == Counter(scenes.indices("test"))
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"dense": [], "patch": []}
    for scene in scenes.indices("test"):
        maps, labels = honest.posteriors(scene).numpy(), valid_labels(scenes, scene)
        pairs["dense"].append((maps.argmax(0).ravel(), labels.ravel()))
        pairs["patch"].append(slow_patches(maps, labels, 8, classes))
    rows = pd.DataFrame(rows_of(run)).query("method == 'learnt' and `class`.isnull()")
    matched = {"test"} if kind == "terramesh" else {"validation", "named", "test"}
    for protocol, found in pairs.items():
        said, true = (np.concatenate(part) for part in zip(*found, strict=True))
        said, true = said[true != IGNORE], true[true != IGNORE]
        expected = {
            "acc": oracle.accuracy_score(true, said),
            "kappa": oracle.cohen_kappa_score(true, said),
            "macro_f1": oracle.f1_score(true, said, average="macro"),
            "nmi": oracle.normalized_mutual_info_score(true, said),
        }
        here = rows[(rows.protocol == protocol) & (rows.matching != "none")]
        assert set(here.matching) == matched
        for metric, value in expected.items():
            assert list(here[here.metric == metric].value) == [pytest.approx(value)] * len(matched)
    tables, mapping = dense_tables(run, "learnt")
    np.testing.assert_array_equal(mapping, np.arange(classes))
    np.testing.assert_array_equal(tables, dense_tables(run, honest.name)[0])
    assert fitted_matching(run, honest.name).tolist() != mapping.tolist()  # type: ignore[union-attr]


def test_validation_scenes_without_labels_fit_no_matching() -> None:
    test = np.array([[[5, 1], [0, 4]]])
    for val in (np.zeros((0, 2, 2), int), np.zeros((3, 2, 2), int)):
        assert list(matchings(val, test)) == ["test"]
    assert list(matchings(test, test)) == ["validation", "named", "test"]


def test_tables_are_kept_per_test_scene(run: Run, whu: SceneSet) -> None:
    method = guesses(whu, 7)
    evaluate(run, bench_of(whu), given(method))
    with np.load(run.path("confusions.npz")) as saved:
        expected = score_scenes([method], bench_of(whu), whu.indices("test"))[method.name]
        for protocol, tables in expected.items():
            np.testing.assert_array_equal(saved[f"{method.name}/{protocol}/test"], tables)


def test_patches_larger_than_the_scenes_leave_the_dense_scores(tmp_path, whu: SceneSet) -> None:
    config = dataclasses.replace(TINY, map=dataclasses.replace(TINY.map, patch_px=64))
    run = clustered(tmp_path, config)
    evaluate(run, bench_of(whu, config), given(guesses(whu, 7)))
    assert {row["protocol"] for row in rows_of(run)} == {"dense"}


# The stage


def test_a_matching_waits_for_the_evaluation(tmp_path: Path) -> None:
    run = Run.open(TINY, "mine", tmp_path)
    with pytest.raises(MissingStageError, match="05_evaluation"):
        fitted_matching(run, "umsf")


def test_evaluation_is_not_repeated_unless_something_changed(run, tmp_path: Path) -> None:
    layout = write_set(tmp_path / "data")
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")

    def again() -> bool:
        scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
        return evaluate(run, bench_of(scenes), given(guesses(scenes, 7)))

    assert evaluate(run, bench_of(scenes), given(guesses(scenes, 7))) and not again()
    before = rows_of(run)
    label = next(iter((tmp_path / "data" / "lbl").glob("*17.tif")))
    other = next(iter((tmp_path / "data" / "lbl").glob("*14.tif")))
    assert label.exists() and other.exists()
    correct(label)
    assert again() and rows_of(run) != before  # corrected labels of a test scene
    write_json(run.path("network.json"), 1)
    run.stage("cluster", lambda: ["network.json"], {})
    assert again() and not again()


def correct(label: Path) -> None:
    """Give every labelled pixel of a file another class."""
    with rasterio.open(label, "r+") as file:
        codes = file.read(1)
        file.write(np.where(codes > 0, codes % 70 + 10, 0).astype(np.uint8), 1)


def test_another_method_is_scored_with_the_others(run: Run, whu: SceneSet) -> None:
    one, other = guesses(whu, 7), dataclasses.replace(guesses(whu, 7), name="other")
    task = bench_of(whu)
    assert evaluate(run, task, given(one)) and evaluate(run, task, given(one, other))
    assert {row["method"] for row in rows_of(run)} == {one.name, "other"}
    assert not evaluate(run, task, given(one, other))


@pytest.mark.parametrize("code", [0, 10])  # nodata alone; farmland alone
def test_labels_of_no_or_of_one_class(run, tmp_path: Path, code: int) -> None:
    layout = write_set(tmp_path / "data")
    for path in (tmp_path / "data" / "lbl").glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(np.full(file.shape, code, np.uint8), 1)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    method = guesses(scenes, 7, right=0)
    assert evaluate(run, bench_of(scenes), given(method))
    fitted = ("validation", "none")
    found = {r["metric"]: r["value"] for r in rows_of(run) if r["matching"] in fitted}
    if code == 0:
        assert found == {} and gains(run, method.name, [method.name], accuracy).empty
    else:
        assert found["constant"] == 1 and found["acc"] < 0.5 and found["nmi"] == found["ari"] == 0


def test_records_of_several_runs_make_one_table(tmp_path: Path, whu: SceneSet) -> None:
    folders = []
    for seed in (0, 1):
        run = clustered(tmp_path / str(seed), dataclasses.replace(TINY, seed=seed))
        evaluate(run, bench_of(whu), given(guesses(whu, 7, seed=seed)))
        folders.append(run.folder)
    table = load_records([*folders, tmp_path / "unfinished"])
    assert set(table.columns) == FIELDS
    assert len(table) == sum(len(json.loads((f / "metrics.json").read_text())) for f in folders)
    assert set(table.seed) == {0, 1} and table.value.notna().all()
    assert load_records([]).empty


# Tables of records


def test_tables_repeat_the_records(run: Run, whu: SceneSet) -> None:
    methods = [guesses(whu, 7), dataclasses.replace(guesses(whu, 7, right=0.3), name="other")]
    evaluate(run, bench_of(whu), given(*methods))
    records = load_records([run.folder])
    assert set(headline(records).matching) == {"validation"}
    table, f1 = score_table(records, "dense"), class_f1(records, whu.layout.classes)
    assert list(table.columns) == list(OVERALL)
    assert list(table.index) == list(f1) == [method.name for method in methods]
    for name in f1:
        tables, mapping = dense_tables(run, name)
        np.testing.assert_array_equal(mapping, fitted_matching(run, name))
        expected = scores(tables.sum(axis=0), mapping)
        assert dict(table.loc[name]) == pytest.approx({m: expected[m] for m in OVERALL})
        assert list(f1[name]) == pytest.approx([expected["f1"][i] for i in range(7)])
    counts = tables.sum(axis=(0, 1))
    found = limits(records, "dense")
    assert found["constant"] == pytest.approx(counts.max() / counts.sum())
    assert found["equal_size_ceiling"] == pytest.approx(
        np.minimum(counts / counts.sum(), 1 / 7).sum()
    )


def test_gains_are_differences_of_scores(run: Run, whu: SceneSet) -> None:
    good = dataclasses.replace(guesses(whu, 7, right=0.95), name="good")
    evaluate(run, bench_of(whu), given(good, guesses(whu, 7, right=0.5)))
    table = gains(run, "good", ["guess-7", "good"], accuracy)
    assert table.loc["good"].tolist() == [0, 0, 0]
    pairs = [dense_tables(run, name) for name in ("good", "guess-7")]
    ours, theirs = ([accuracy(confusion(one, m)) for one in tables] for tables, m in pairs)
    apart = np.subtract(ours, theirs)  # of each scene: no resample of them lies outside
    low, high = table.loc["guess-7", ["low", "high"]]
    gain = table.loc["guess-7", "gain"]
    assert apart.min() - 1e-9 <= low <= gain <= high <= apart.max() + 1e-9 and gain > 0.2


def test_data_without_classes_are_evaluated_to_nothing(run: Run, pairs: SceneSet) -> None:
    def never() -> Any:
        raise AssertionError("a method was fitted for nothing")

    assert evaluate(run, bench_of(pairs), {"umsf": never})
    assert run.is_done("evaluate") and fitted_matching(run, "umsf") is None
    records = load_records([run.folder])
    assert records.empty and set(records.columns) == FIELDS
    assert score_table(records, "dense").empty and class_f1(records, ()) == {}
    assert np.isnan(list(limits(records, "dense").values())).all()
    assert dense_tables(run, "umsf")[0].shape == (0, 0, 0)
    assert gains(run, "umsf", ["other"], accuracy).empty
