"""Clusterers on data whose answer is known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from umsf_lib.clustering.mixture import (
    arrays_of,
    bhattacharyya,
    central,
    clusterer_of,
    fit,
    fit_kmeans,
    fit_mixture,
    merge,
    posterior_map,
)
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import ClusterConfig, ConfigError, load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.windows import PixelStore

KINDS = ("kmeans", "mixture", "merged")
SETTINGS = ClusterConfig(restarts=2, components=2)


def gaussians(
    means: list, covariances: list, counts: list, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens ``(n, D)`` of known Gaussians and the component of each."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.multivariate_normal(mean, covariance, count)
        for mean, covariance, count in zip(means, covariances, counts, strict=True)
    ]
    return np.concatenate(parts), np.repeat(np.arange(len(counts)), counts)


CIGARS = ([[0, 0], [0, 3]], [np.diag([100, 0.1])] * 2, [1500, 500])
BLOBS = ([[0, 0, 0], [6, 0, 0], [0, 6, 6]], [np.eye(3)] * 3, [400, 200, 60])


@pytest.mark.parametrize("kind", KINDS)
def test_posteriors_are_shares(kind: str) -> None:
    tokens, _ = gaussians(*BLOBS)
    clusterer = fit(kind, tokens, 3, SETTINGS, seed=0)
    new = np.random.default_rng(1).normal(0, 20, (200, 3))  # far from what it was fitted on
    posteriors = clusterer.posteriors(new)
    assert posteriors.shape == (200, 3) and clusterer.num_clusters == 3
    assert posteriors.min() >= 0
    np.testing.assert_allclose(posteriors.sum(axis=1), 1, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_clear_blobs_are_found_by_all(kind: str) -> None:
    tokens, truth = gaussians(*BLOBS)
    found = fit(kind, tokens, 3, SETTINGS, seed=0).posteriors(tokens).argmax(axis=1)
    assert adjusted_rand_score(truth, found) > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_fits_follow_the_seed(kind: str) -> None:
    tokens = np.random.default_rng(0).normal(size=(400, 4))  # no clusters: every start differs
    first, again, other = (
        fit(kind, tokens, 5, SETTINGS, seed).posteriors(tokens) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_mixture_separates_what_kmeans_cannot() -> None:
    tokens, truth = gaussians(*CIGARS)
    mixture = fit_mixture(tokens, 2, restarts=5, seed=0).posteriors(tokens).argmax(axis=1)
    means = fit_kmeans(tokens, 2, seed=0).posteriors(tokens).argmax(axis=1)
    assert adjusted_rand_score(truth, mixture) > 0.98
    assert adjusted_rand_score(truth, means) < 0.1


def test_a_date_is_a_seed() -> None:
    tokens = np.random.default_rng(0).normal(size=(40, 2))
    first, again = (fit_mixture(tokens, 2, restarts=2, seed=20261127) for _ in range(2))
    assert np.array_equal(first.posteriors(tokens), again.posteriors(tokens))


def test_mixture_posteriors_obey_bayes() -> None:
    means, covariances, counts = [[0, 0], [4, 2]], [np.eye(2), [[2, 0.9], [0.9, 1]]], [4000, 1000]
    tokens, _ = gaussians(means, covariances, counts)
    found = fit_mixture(tokens, 2, restarts=3, seed=0)
    order = np.argsort(found.model.means_[:, 0])
    density = np.stack(
        [
            share * multivariate_normal(mean, covariance).pdf(tokens)
            for share, mean, covariance in zip((0.8, 0.2), means, covariances, strict=True)
        ],
        axis=1,
    )
    expected = density / density.sum(axis=1, keepdims=True)
    error = np.abs(found.posteriors(tokens)[:, order] - expected)
    assert error.mean() < 0.005 and error.max() < 0.2


def test_kmeans_assigns_the_nearest_centre() -> None:
    tokens = np.random.default_rng(0).normal(size=(300, 3))
    found = fit_kmeans(tokens, 4, seed=0)
    distances = ((tokens[:, None] - found.centres[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.posteriors(tokens), np.eye(4)[distances.argmin(axis=1)])


def test_merging_joins_the_components_of_one_group() -> None:
    """Two common groups, neither of them a Gaussian, and a rare one."""
    means = [[0, 0], [4, 2], [0, 14], [4, 12], [14, 7]]
    tokens, blob = gaussians(means, [2 * np.eye(2)] * 4 + [np.eye(2) / 9], [900] * 4 + [120])
    truth = np.array([0, 0, 1, 1, 2])[blob]
    merged = fit("merged", tokens, 3, ClusterConfig(restarts=3, components=3), seed=0)
    assert merged.groups.shape == (9,) and set(merged.groups) == {0, 1, 2}
    assert adjusted_rand_score(truth, merged.posteriors(tokens).argmax(axis=1)) > 0.99
    shares = merged.model.predict_proba(tokens)
    sums = [shares[:, merged.groups == k].sum(axis=1) for k in range(3)]
    np.testing.assert_allclose(merged.posteriors(tokens), np.stack(sums, axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_merging_equals_a_slow_average_linkage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means, roots = rng.normal(size=(11, 3)), rng.normal(size=(11, 3, 4))
    covariances = roots @ roots.transpose(0, 2, 1)
    distance = bhattacharyya(means, covariances)
    groups = [{i} for i in range(11)]

    def between(a: set, b: set) -> float:
        return float(np.mean([distance[i, j] for i in a for j in b]))

    while len(groups) > 4:
        one, other = min(itertools.combinations(groups, 2), key=lambda pair: between(*pair))
        groups = [g for g in groups if g not in (one, other)] + [one | other]
    found = merge(means, covariances, 4)
    assert {frozenset(np.flatnonzero(found == k)) for k in range(4)} == set(map(frozenset, groups))


def test_merging_of_what_cannot_be_told_apart_gives_as_many_clusters() -> None:
    same = np.stack([np.eye(2)] * 4)
    assert set(merge(np.zeros((4, 2)), same, 2)) == {0, 1}
    some = same * np.array([1, 1, 1e-3, 1e-3])[:, None, None]
    assert set(merge(np.zeros((4, 2)), some, 3)) == {0, 1, 2}
    assert merge(np.zeros((1, 2)), same[:1], 1).tolist() == [0]  # one cluster left


def test_the_bhattacharyya_distance_is_the_log_of_an_integral() -> None:
    """Against the sum over a grid, and against 17 / 8 of two unit Gaussians 1 and 4 apart."""
    means = np.array([[0.0, 0.0], [1.0, -1.0], [0.5, 2.0]])
    covariances = np.array(
        [[[1.0, 0.3], [0.3, 0.5]], [[2.0, -0.5], [-0.5, 1.0]], [[0.3, 0], [0, 3]]]
    )
    axis = np.linspace(-12, 12, 481)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    roots = [
        np.sqrt(multivariate_normal(mean, covariance).pdf(grid))
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    area = (axis[1] - axis[0]) ** 2
    expected = [[-np.log((p * q).sum() * area) for q in roots] for p in roots]
    np.testing.assert_allclose(bhattacharyya(means, covariances), expected, atol=1e-6)
    pair = bhattacharyya(np.array([[1.0, 1.0], [2.0, 5.0]]), np.stack([np.eye(2)] * 2))
    np.testing.assert_allclose(pair, [[0, 17 / 8], [17 / 8, 0]])


def test_merging_reckons_with_spread() -> None:
    """Of four Gaussians in a row the wide ones are joined, though the narrow ones lie closer."""
    means = np.array([[0.0], [4.0], [5.0], [6.0]])
    covariances = np.array([16.0, 16.0, 0.01, 0.01])[:, None, None]
    assert len(set(merge(means, covariances, 3)[:2])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_clusters_than_tokens_are_refused(kind: str) -> None:
    tokens = np.random.default_rng(0).normal(size=(6, 2))
    count = 14 if kind == "merged" else 7
    said = rf"cluster\.components ask for {count} groups of tokens, but there are 6 tokens; ask"
    with pytest.raises(ConfigError, match=said):
        fit(kind, tokens, 7, SETTINGS, seed=0)


@pytest.mark.parametrize("kind", ["kmeans", "mixture"])
def test_a_clusterer_survives_being_taken_apart(kind: str) -> None:
    tokens, _ = gaussians(*BLOBS)
    found = fit(kind, tokens, 6, SETTINGS, seed=0)
    assert found.num_clusters == 6
    again = clusterer_of(arrays_of(found))
    np.testing.assert_array_equal(again.posteriors(tokens), found.posteriors(tokens))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_all_the_same_are_shared_out_somehow(kind: str) -> None:
    posteriors = fit(kind, np.ones((60, 3)), 4, SETTINGS, seed=0).posteriors(np.ones((5, 3)))
    assert np.isfinite(posteriors).all() and np.allclose(posteriors.sum(axis=1), 1)


def test_central_is_the_medoid() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        base = rng.integers(0, 4, 200)
        noise = rng.permutation([0.05, 0.2, 0.5, 0.9, 0.4])
        labels = [
            np.where(rng.random(200) < share, rng.integers(0, 4, 200), base) for share in noise
        ]
        agreement = [
            np.mean([adjusted_rand_score(labels[i], labels[j]) for j in range(5) if j != i])
            for i in range(5)
        ]
        assert central(labels) == int(np.argmax(agreement))


def test_central_ignores_the_names_of_clusters_and_odd_ones_out() -> None:
    base = np.random.default_rng(0).integers(0, 3, 300)
    odd = np.random.default_rng(1).integers(0, 3, 300)
    assert central([odd, base, (base + 1) % 3, odd[::-1]]) in (1, 2)
    assert central([odd]) == 0


@pytest.mark.parametrize("at_once", [16, 1000])  # of 35 tokens
def test_a_posterior_map_has_each_token_at_its_place(at_once: int, monkeypatch) -> None:
    monkeypatch.setattr("umsf_lib.clustering.mixture.AT_ONCE", at_once)
    tokens, _ = gaussians(*BLOBS)
    clusterer = fit_mixture(tokens, 3, restarts=1, seed=0)
    maps = {scene: torch.randn(3, 5, 7) * 4 for scene in (0, 1)}
    for scene in maps:
        found = posterior_map(clusterer, maps.__getitem__, scene)
        assert found.shape == (3, 5, 7) and found.dtype == torch.float32
        for row in range(5):
            for col in range(7):
                token = maps[scene][:, row, col].double().numpy()[None]
                expected = clusterer.posteriors(token)[0]
                np.testing.assert_allclose(found[:, row, col].numpy(), expected, atol=1e-5)


# The task


@pytest.fixture
def task(whu: SceneSet, whu_store: PixelStore) -> ClusteringTask:
    config = load_config("tiny", overrides="cluster.tokens=200 cluster.restarts=1")
    return ClusteringTask(whu, whu_store, config)


def with_clusters(task: ClusteringTask, **change: object) -> ClusteringTask:
    cluster = dataclasses.replace(task.config.cluster, **change)
    return dataclasses.replace(task, config=dataclasses.replace(task.config, cluster=cluster))


def test_many_statistics_are_reduced_and_few_are_not(task: ClusteringTask) -> None:
    whole = with_clusters(task, max_dims=28).statistics(0)
    reduced = task.statistics(0)
    assert whole.shape[0] == 28 and reduced.shape == (16, *whole.shape[1:])
    assert task.statistics(0) is reduced  # several methods ask for the same scene in turn


def test_pixels_are_the_bands_of_both_sensors_without_indices(task: ClusteringTask) -> None:
    windows = task.store.scene(0)
    both = torch.cat([windows["optical"][0], windows["sar"][0]])
    assert len(both) == 5 and torch.equal(task.pixels(0), both)


def test_as_many_clusters_as_classes_unless_asked(task: ClusteringTask, whu_store, pairs) -> None:
    assert task.num_clusters == 7
    assert with_clusters(task, num_clusters=12).num_clusters == 12
    assert ClusteringTask(pairs, whu_store, task.config).num_clusters == 12  # no classes


@pytest.mark.parametrize("kind", KINDS)
def test_a_bench_makes_classifiers_of_whole_scenes(task: ClusteringTask, kind: str) -> None:
    classifier = task.cluster("any", kind, task.statistics, task.stride)
    assert (classifier.name, classifier.num_clusters, classifier.stride) == ("any", 7, 4)
    for scene in (0, 4):
        record = task.scenes.records[scene]
        pixels = classifier.pixels(task.store, scene, 4.0)
        assert pixels.shape == (7, record.height, record.width)
        assert torch.allclose(pixels.sum(0), torch.ones(record.height, record.width), atol=1e-5)


def test_only_training_scenes_are_sampled(task: ClusteringTask) -> None:
    seen = []

    def token_map(scene: int) -> torch.Tensor:
        seen.append(scene)
        return task.statistics(scene)

    task.statistics  # noqa: B018  (made beforehand, so that only the sample is watched)
    assert len(task.sample(token_map, task.stride)) == 200 and seen == [0, 1]
