"""A finished run: what each stage left behind, and what a run compares."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from umsf_lib.baselines import LEARNED
from umsf_lib.clustering import stage as classify
from umsf_lib.clustering.mixture import MixtureClusters, fit, merge
from umsf_lib.clustering.stage import (
    cluster,
    clustered_classifier,
    component_posteriors,
    feature_tokens,
    fit_teacher,
    load_clustered,
    merge_components,
    network_classifier,
    starting_network,
    teacher_tokens,
)
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.clustering.tokens import token_validity
from umsf_lib.config import IGNORE, CheckpointError, ConfigError, MissingStageError, load_config
from umsf_lib.data.scene_set import SceneSet, normalisation_of, valid_labels
from umsf_lib.data.stage import load_data
from umsf_lib.evaluation.stage import evaluate, fitted_matching, load_records
from umsf_lib.experiments.pipeline import USUAL, methods, run_everything
from umsf_lib.maps.stage import legend_of, write_maps
from umsf_lib.pretraining.stage import load_pretrained, new_network
from umsf_lib.run import Run

CLUSTER = load_config("tiny").cluster


@pytest.fixture
def task(tiny_run: Run) -> ClusteringTask:
    return ClusteringTask.of_run(tiny_run, load_data(tiny_run))


def test_a_finished_run_is_not_computed_again(tiny_run: Run) -> None:
    def times() -> dict[str, int]:
        files = [p for p in tiny_run.folder.rglob("*") if p.is_file() and p.name != ".lock"]
        return {str(p): p.stat().st_mtime_ns for p in files}

    before = times()
    run_everything(tiny_run, maps=True)
    assert times() == before
    stages = json.loads(tiny_run.path("manifest.json").read_text())["stages"]
    assert set(stages) == {"data", "despeckle", "pretrain", "cluster", "evaluate", "maps"}


def test_features_are_those_of_the_network_at_their_place(
    tiny_run: Run, task: ClusteringTask
) -> None:
    network = load_clustered(tiny_run, task).network
    with np.load(tiny_run.path("features.npz")) as saved:
        features = dict(saved)
    scenes, stride = task.scenes.indices("test"), network.stride
    assert set(features) == {"optical", "sar", "fused", "cluster", "scene", "row", "col"}
    assert set(features["scene"]) == set(scenes)
    norms = np.linalg.norm(features["fused"], axis=1)
    assert norms.max() < 1.001 and np.median(norms) > 0.99  # blending shortens unit vectors a bit
    # The centre of a scene lies in one tile or in blended ones that see nearly the same.
    whole = task.store.scene(scenes[0])
    with torch.no_grad():
        maps = network.features(whole)["optical"][0]
    here = features["scene"] == scenes[0]
    row, col = features["row"][here] // stride, features["col"][here] // stride
    direct = torch.nn.functional.normalize(maps[:, row, col], dim=0).T.numpy()
    cosine = (direct * features["optical"][here]).sum(1)
    assert np.median(cosine) > 0.99
    assert (features["row"] % stride == stride // 2).all()


def test_the_clustered_network_is_an_average_of_the_training(
    tiny_run: Run, task: ClusteringTask
) -> None:
    start, end = starting_network(tiny_run, task), load_clustered(tiny_run, task).network
    assert start.state_dict().keys() == end.state_dict().keys()
    assert any(
        not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True)
    )
    pretrained = load_pretrained(tiny_run, task.scenes).state_dict()
    kept = {k: v for k, v in start.state_dict().items() if not k.startswith("clustering")}
    assert all(torch.equal(pretrained[k], v) for k, v in kept.items())


def test_network_and_teacher_answer_together(tiny_run: Run, task: ClusteringTask) -> None:
    """Component by component, a mean of both; a cluster is the sum of its components."""
    found, scene = load_clustered(tiny_run, task), task.scenes.indices("test")[0]
    assert found.groups.shape == (14,) and set(found.groups.tolist()) == set(range(7))
    network, teacher, mean = (
        clustered_classifier(found, task, teacher_share=share).posteriors(scene)
        for share in (0.0, 1.0, 0.25)
    )
    assert torch.allclose(mean, 0.75 * network + 0.25 * teacher, atol=1e-6)
    assert torch.allclose(mean.sum(0), torch.ones(mean.shape[1:]), atol=1e-5)
    alone = network_classifier(found.network, task, "components").posteriors(scene)
    sums = [alone[found.groups == k].sum(dim=0) for k in range(7)]
    assert torch.allclose(network, torch.stack(sums), atol=1e-6)
    usual = clustered_classifier(found, task).posteriors(scene)
    assert torch.allclose(usual, (network + teacher) / 2, atol=1e-6)


def test_the_teacher_is_the_merged_mixture_before_it_is_merged(
    tiny_run: Run, task: ClusteringTask
) -> None:
    teacher = load_clustered(tiny_run, task).teacher
    merged = fit("merged", task.sample(teacher.tokens, task.stride), 7, CLUSTER, seed=0)
    clusterer = teacher.clusterer
    assert isinstance(clusterer, MixtureClusters) and isinstance(merged, MixtureClusters)
    np.testing.assert_array_equal(clusterer.model.means_, merged.model.means_)


def test_the_teacher_reads_what_the_settings_say(tiny_run: Run, task: ClusteringTask) -> None:
    """Both: statistics and tokens of the network, each with a total variance of 1 in the sample."""
    network = load_pretrained(tiny_run, task.scenes).eval()
    pretrained = task.reduced(feature_tokens(network, task, "fused"))
    found = {}
    for kind in ("statistics", "network", "both"):
        config = tiny_run.config.changed(cluster={"teacher_tokens": kind})
        other = ClusteringTask(task.scenes, task.store, config)
        tokens = teacher_tokens(tiny_run, other)
        found[kind] = task.sample(tokens, task.stride)  # drawn from the scenes
        kept = other.sample(tokens, task.stride)
        np.testing.assert_allclose(kept, found[kind], atol=1e-5)
    statistics = task.sample(task.statistics, task.stride)
    np.testing.assert_allclose(found["statistics"], statistics, atol=1e-5)
    np.testing.assert_allclose(found["network"], task.sample(pretrained, 4), atol=1e-5)
    scaled = [x / np.sqrt(np.trace(np.cov(x.T, ddof=0))) for x in list(found.values())[:2]]
    np.testing.assert_allclose(found["both"], np.hstack(scaled), atol=1e-5)
    simulated = tiny_run.config.changed(cluster={"teacher_tokens": "auto"})
    for usual, kind in ((simulated, "statistics"), (replace(simulated, data="x"), "both")):
        tokens = teacher_tokens(tiny_run, ClusteringTask(task.scenes, task.store, usual))
        np.testing.assert_allclose(task.sample(tokens, 4), found[kind], atol=1e-5)
    config = tiny_run.config.changed(cluster={"teacher_tokens": "network", "initial": "random"})
    untrained = teacher_tokens(tiny_run, ClusteringTask(task.scenes, task.store, config))
    expected = task.reduced(
        feature_tokens(new_network(tiny_run, task.scenes).eval(), task, "fused")
    )
    np.testing.assert_allclose(task.sample(untrained, 4), task.sample(expected, 4), atol=1e-5)


def test_components_are_merged_by_their_weighted_statistics(
    tiny_run: Run, task: ClusteringTask
) -> None:
    """All training tokens at once, NumPy's weighted covariance."""
    found = load_clustered(tiny_run, task)
    posteriors = component_posteriors(found.network, found.teacher, task, 0.5)
    parts: list[list[np.ndarray]] = [[], []]
    for scene in task.scenes.indices("train"):
        valid = token_validity(task.store, scene, task.stride)
        for part, maps in zip(parts, (posteriors, found.teacher.tokens), strict=True):
            part.append(maps(scene)[:, valid].T.double().numpy())
    shares, tokens = (np.concatenate(part) for part in parts)
    means = np.stack([np.average(tokens, axis=0, weights=w) for w in shares.T])
    spread = np.stack([np.cov(tokens.T, aweights=w, ddof=0) for w in shares.T])
    expected = merge(means, spread + 1e-3 * np.eye(tokens.shape[1]), 7)
    np.testing.assert_array_equal(found.groups.numpy(), expected)


def test_a_component_without_tokens_stays_by_itself(
    tiny_run: Run, task: ClusteringTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_clustered(tiny_run, task)
    posteriors = component_posteriors(found.network, found.teacher, task, 0.5)

    def without_the_third(scene: int) -> torch.Tensor:
        maps = posteriors(scene).clone()
        maps[3] += maps[2]
        maps[2] = 0
        return maps

    monkeypatch.setattr(classify, "component_posteriors", lambda *given: without_the_third)
    groups = merge_components(found.network, found.teacher, task)
    assert set(groups.tolist()) == set(range(7)) and (groups == groups[2]).sum() == 1


def test_one_component_per_cluster_needs_no_merging(tiny_run: Run, task: ClusteringTask) -> None:
    config = tiny_run.config.changed(cluster={"components": 1})
    single = ClusteringTask(task.scenes, task.store, config)
    teacher = fit_teacher(tiny_run, single)
    assert teacher.clusterer.num_clusters == single.num_components == 7
    network = load_clustered(tiny_run, task).network
    assert merge_components(network, teacher, single).tolist() == list(range(7))


def test_scores_know_the_code_of_every_method(tiny_run: Run, task: ClusteringTask, monkeypatch):
    known = {}
    monkeypatch.setattr(tiny_run, "stage", lambda *_, modules: known.update(modules=modules))
    evaluate(tiny_run, task, methods(tiny_run, task))
    for package in ("baselines", "experiments"):  # above evaluation, which imports neither
        assert any(name.startswith(f"umsf_lib.{package}.") for name in known["modules"])


def test_clustering_needs_pretraining(project: Path) -> None:
    run = Run.open(load_config("tiny"))
    scenes = load_data(run)
    with pytest.raises(MissingStageError, match="03_momentum_contrast_pretraining"):
        cluster(run, ClusteringTask.of_run(run, scenes))
    assert not list(run.path("checkpoints").glob("*.pt"))


def test_a_clustered_network_of_another_normalisation_is_refused(
    tiny_run: Run, task: ClusteringTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_clustered(tiny_run, task)
    other = normalisation_of(tiny_run)
    other["sar"]["scaling"] = "intensity"
    monkeypatch.setattr("umsf_lib.clustering.stage.normalisation_of", lambda run: other)
    with pytest.raises(
        CheckpointError, match=r"normalisation\.sar\.scaling 'amplitude8' -> 'inten"
    ):
        load_clustered(tiny_run, task)


def test_maps_lie_on_the_grid_of_their_scene(tiny_run: Run, task: ClusteringTask) -> None:
    classifier = clustered_classifier(load_clustered(tiny_run, task), task)
    mapping = fitted_matching(tiny_run, "umsf")
    layout, smoothing = task.scenes.layout, tiny_run.config.cluster.smoothing_px
    for scene in task.scenes.indices("test"):
        name = task.scenes.records[scene].name
        source = task.scenes.sources[name].profile()
        files = {p.name.split(".")[-2]: p for p in tiny_run.path("maps").glob(f"{name}.*.tif")}
        assert set(files) == {"prediction", "confidence", "optical", "sar", "label", "error"}
        layers = {}
        for layer, path in files.items():
            with rasterio.open(path) as opened:
                assert (opened.crs, opened.transform) == (source.crs, source.transform)
                assert opened.shape == (source.height, source.width)
                layers[layer] = opened.read(1)
                if layer in ("prediction", "label"):
                    colors = opened.colormap(1)
                    assert all(colors[c.code][:3] == c.rgb for c in layout.classes)
                    assert opened.nodata == 0
        posteriors = classifier.pixels(task.store, scene, smoothing).numpy()
        cluster_map = posteriors.argmax(0)
        codes = np.array([c.code for c in layout.classes])
        matched = mapping[cluster_map] >= 0
        assert (layers["prediction"] == codes[mapping[cluster_map]])[matched].all()
        assert np.allclose(layers["confidence"], posteriors.max(0), atol=1e-6)
        labels = valid_labels(task.scenes, scene)
        assert (layers["error"] == (layers["prediction"] != layers["label"]))[labels < IGNORE].all()


def test_legends_name_clusters(whu: SceneSet, pairs: SceneSet) -> None:
    legend = legend_of(whu, 3, np.array([4, -1, 0]))
    names = [legend.classes[row].name for row in legend.of_cluster]
    assert names == ["forest", "cluster 1", "farmland"]
    codes = [c.code for c in legend.classes]
    assert len(set(codes)) == len(codes)
    plain = legend_of(pairs, 4, None)
    assert [c.name for c in plain.classes] == [f"cluster {i}" for i in range(4)]


def test_maps_of_a_changed_run_are_written_anew(tiny_run: Run, task: ClusteringTask) -> None:
    classifier = clustered_classifier(load_clustered(tiny_run, task), task)
    mapping = fitted_matching(tiny_run, "umsf")
    which = task.scenes.indices("test")
    assert not write_maps(tiny_run, task, classifier, mapping, which)


def test_methods_are_those_asked_for_and_those_scored_before(
    tiny_run: Run, task: ClusteringTask
) -> None:
    scored = set(load_records([tiny_run.folder]).method)
    assert scored == set(USUAL) and set(LEARNED).isdisjoint(scored)
    assert list(methods(tiny_run, task, ["umsf"])) == list(USUAL)
    for name, make in methods(tiny_run, task).items():
        classifier = make()
        assert (classifier.name, classifier.num_clusters) == (name, 7)


def test_learned_baselines_are_trained_when_they_are_asked_for(
    tiny_run: Run, task: ClusteringTask, tmp_path: Path
) -> None:
    copy = tmp_path / tiny_run.folder.name
    shutil.copytree(tiny_run.folder, copy)
    (copy / "metrics.json").unlink()
    run = Run.open(tiny_run.config, copy.name, root=tmp_path)
    found = methods(run, task, ["swav"])
    assert list(found) == ["swav"] and run.is_done("swav") and evaluate(run, task, found)
    # Who knows nothing of it compares it, too.
    again = methods(run, task, ["kmeans-statistics"])
    assert list(again) == ["kmeans-statistics", "swav"] and evaluate(run, task, again)
    assert not evaluate(run, task, methods(run, task, ["swav"]))


def test_comparing_needs_clustering(project: Path) -> None:
    run = Run.open(load_config("tiny"))
    task = ClusteringTask.of_run(run, load_data(run))
    with pytest.raises(MissingStageError, match="04_fusion_and_clustering"):
        methods(run, task)


def test_a_run_of_other_settings_is_refused(tiny_run: Run) -> None:
    copy = tiny_run.folder.parent / "copy"
    shutil.copytree(tiny_run.folder, copy)
    changed = replace(tiny_run.config, seed=5)
    with pytest.raises(ConfigError, match="seed 0 -> 5"):
        Run.open(changed, "copy", root=copy.parent)
    shutil.rmtree(copy)


@pytest.mark.parametrize("fusion", ["asanet", "amm_fusenet", "ref_net"])
def test_a_run_may_fuse_as_a_published_network_does(project: Path, fusion: str) -> None:
    """Pretraining, clustering, scores and maps; the fusion itself learns in both trainings."""
    config = load_config("tiny", overrides=f"model.fusion={fusion}")
    run = Run.open(config, fusion)
    run_everything(run, ["umsf"], maps=True)
    scenes = load_data(run)
    task = ClusteringTask.of_run(run, scenes)
    found = [
        network.state_dict()
        for network in (
            new_network(run, scenes),
            load_pretrained(run, scenes),
            load_clustered(run, task).network,
        )
    ]
    for before, after in itertools.pairwise(found):
        own = [name for name in before if name.startswith("fusion.") and "weight" in name]
        assert own and any(not torch.equal(before[name], after[name]) for name in own)
    assert load_records([run.folder]).query("metric == 'acc'").value.between(0, 1).all()
    assert len(list(run.path("maps").glob("*.prediction.tif"))) == len(scenes.split["test"])
