"""Baselines: each routine against a slow one, each method from end to end without any label."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from umsf_lib.baselines import BASELINES, LEARNED
from umsf_lib.baselines.base import baseline_steps
from umsf_lib.baselines.classical import settle_norms
from umsf_lib.baselines.deepcluster import Memory, spherical_kmeans
from umsf_lib.baselines.heads import Heads, PrototypeHead, merged
from umsf_lib.baselines.scan import (
    LinearHeads,
    best_head,
    cut_out,
    learn,
    nearest_neighbours,
    pseudo_labels,
    scan_loss,
)
from umsf_lib.baselines.swav import TokenQueue, sinkhorn, swapped_loss
from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.stage import cluster
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import ConfigError, DataError, load_config
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore
from umsf_lib.experiments.pipeline import METHODS, PRETRAINED, methods
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.augmentations import View
from umsf_lib.pretraining.stage import new_network, pretrain
from umsf_lib.run import Run
from umsf_lib.supervised import CEILING

from ..fakes import write_set

TINY = load_config("tiny")
# Its module: the package's name of it is the method.
mutual_information = importlib.import_module("umsf_lib.baselines.mutual_information")


def unit(rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


# SwAV


def slow_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Entry by entry, in float64."""
    m = [[math.exp(value / epsilon) for value in row] for row in scores.astype(np.float64)]
    samples, prototypes = scores.shape
    for _ in range(iterations):
        for p in range(prototypes):
            total = sum(m[i][p] for i in range(samples))
            for i in range(samples):
                m[i][p] /= total * prototypes
        for i in range(samples):
            total = sum(m[i])
            for p in range(prototypes):
                m[i][p] /= total * samples
    return np.array(m) * samples


@pytest.mark.parametrize("iterations", [1, 3, 60])
def test_sinkhorn_equals_a_slow_loop(iterations: int) -> None:
    scores = unit(40, 8) @ unit(6, 8, seed=1).T
    codes = sinkhorn(scores, 0.05, iterations)
    expected = slow_sinkhorn(scores.numpy(), 0.05, iterations)
    assert np.allclose(codes.numpy(), expected, atol=1e-4)
    assert torch.allclose(codes.sum(1), torch.ones(40), atol=1e-5)
    if iterations == 60:
        assert torch.allclose(codes.sum(0), torch.full((6,), 40 / 6), atol=1e-3)


def test_sinkhorn_of_equal_scores_is_uniform() -> None:
    assert torch.allclose(sinkhorn(torch.ones(5, 4)), torch.full((5, 4), 0.25))


def test_swapped_loss_equals_a_loop() -> None:
    scores = tuple(unit(7, 4, s) @ unit(5, 4, 9).T for s in (0, 1))
    codes = tuple(torch.rand(7, 5, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    codes = tuple(c / c.sum(1, keepdim=True) for c in codes)
    total = 0.0
    for mine, other in ((0, 1), (1, 0)):
        for i in range(7):
            norm = sum(math.exp(scores[mine][i, p] / 0.1) for p in range(5))
            for p in range(5):
                log_p = float(scores[mine][i, p]) / 0.1 - math.log(norm)
                total -= float(codes[other][i, p]) * log_p / (2 * 7)
    assert swapped_loss(scores, codes).item() == pytest.approx(total, rel=1e-5)  # type: ignore[arg-type]


def test_the_queue_counts_only_when_full_and_keeps_the_newest() -> None:
    queue, prototypes, z = TokenQueue(10), unit(4, 8, 5), unit(6, 8)
    assert torch.equal(queue.codes(z, prototypes), sinkhorn(z @ prototypes.T))
    queue.enqueue(z)
    assert torch.equal(queue.codes(z, prototypes), sinkhorn(z @ prototypes.T))
    newer = unit(6, 8, 1)
    queue.enqueue(newer)
    assert torch.equal(queue.entries, torch.cat([newer, z[:4]]))
    third = unit(3, 8, 2)
    together = sinkhorn(torch.cat([third, newer, z[:4]]) @ prototypes.T)[:3]
    assert torch.equal(queue.codes(third, prototypes), together)


# DeepCluster


def slow_kmeans(z: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, ...]:
    centroids = centroids.copy()
    for step in range(iterations + 1):
        nearest = [int(np.argmax([row @ c for c in centroids])) for row in z]
        if step == iterations:
            return centroids, np.array(nearest)
        for k in range(len(centroids)):
            members = [row for row, own in zip(z, nearest, strict=True) if own == k]
            if members:
                mean = np.mean(members, axis=0)
                centroids[k] = mean / np.linalg.norm(mean)
    raise AssertionError


@pytest.mark.parametrize("iterations", [1, 10])
def test_spherical_kmeans_equals_a_slow_one(iterations: int) -> None:
    z = unit(80, 5).double()
    first = torch.randperm(80, generator=torch.Generator().manual_seed(3))[:6]
    found = spherical_kmeans(z, 6, torch.Generator().manual_seed(3), iterations)
    centroids, nearest = slow_kmeans(z.numpy(), z[first].numpy(), iterations)
    assert np.allclose(found[0].numpy(), centroids) and (found[1].numpy() == nearest).all()
    assert torch.allclose(found[0].norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_an_empty_cluster_keeps_its_centroid() -> None:
    """Copies of one vector: all go to the first centroid, the others stay where they were."""
    z = unit(1, 4).expand(9, -1)
    centroids, nearest = spherical_kmeans(z, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(centroids, z[:3]) and (nearest == nearest[0]).all()


def test_more_prototypes_than_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="baseline.prototypes asks for 9 clusters of 5 tokens"):
        spherical_kmeans(unit(5, 4), 9, torch.Generator())


# SCAN


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (torch.eye(7), -5 * math.log(7)),  # sure and balanced: the minimum, -9.7296
        (torch.full((7, 7), 1 / 7), math.log(7) - 5 * math.log(7)),
        (torch.eye(7)[:1].expand(7, -1), 0.0),  # one cluster for all
    ],
)
def test_scan_loss_in_closed_form(p: Tensor, expected: float) -> None:
    assert scan_loss(p, p, 5.0).item() == pytest.approx(expected, abs=1e-4)


def test_scan_loss_of_several_heads_is_that_of_each() -> None:
    a, b = (torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    a, b = a.softmax(2), b.softmax(2)
    weights = torch.tensor([0.5, 1.0, 5.0])
    found = scan_loss(a, b, weights)
    for h in range(3):
        agreement = np.log((a[h] * b[h]).sum(1).numpy()).mean()
        shares = a[h].mean(0).numpy()
        expected = -agreement + float(weights[h]) * (shares * np.log(shares)).sum()
        assert found[h].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_neighbours_equal_brute_force(chunk: int) -> None:
    tokens = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_neighbours(tokens, 5, chunk)
    rows = tokens.numpy() / np.linalg.norm(tokens.numpy(), axis=1, keepdims=True)
    for i in range(50):
        order = sorted(range(50), key=lambda j: (j != i, -float(rows[i] @ rows[j])))
        assert found[i].tolist() == order[:6]
    assert nearest_neighbours(tokens[:3], 20).shape == (3, 3)  # as many as there are


def test_a_copy_does_not_stand_before_the_token_itself() -> None:
    assert nearest_neighbours(torch.ones(4, 3), 2)[:, 0].tolist() == [0, 1, 2, 3]


def test_only_confident_tokens_get_a_label() -> None:
    p = torch.tensor([[0.995, 0.004, 0.001], [0.985, 0.01, 0.005], [0.0, 0.0, 1.0]])
    labels, sure = pseudo_labels(p.T[None, :, None])  # (1, 3, 1, 3)
    assert sure.flatten().tolist() == [True, False, True]
    assert labels[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_the_best_head_is_the_one_that_tells_the_groups_apart() -> None:
    tokens = torch.eye(2).repeat_interleave(5, 0) * 10
    heads = LinearHeads(3, 2, 2)
    with torch.no_grad():
        heads.bias.zero_()
        heads.weight[0] = 0  # undecided
        heads.weight[1] = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # one cluster for all
        heads.weight[2] = torch.eye(2)
    assert best_head(heads, tokens, nearest_neighbours(tokens, 4)) == 2


def test_one_square_of_each_window_is_cut_out_of_both_sensors() -> None:
    images = {"optical": torch.ones(6, 4, 20, 20), "sar": torch.ones(6, 1, 20, 20)}
    cut = cut_out(View(images, torch.eye(2, 3).expand(6, -1, -1)), torch.Generator().manual_seed(0))
    for window in range(6):
        hole = (cut["optical"][window] == 0).all(0)
        assert torch.equal(hole, cut["sar"][window, 0] == 0)
        rows, cols = hole.nonzero().T
        assert hole.sum() == 36 == (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)
    assert not torch.equal(cut["sar"][0], cut["sar"][1])


# Prototypes to clusters


def test_merging_joins_prototypes_that_share_tokens() -> None:
    """Three groups of prototypes; a token wavers within a group, whatever the group's size."""
    rng, group = np.random.default_rng(0), np.array([0, 1, 1, 2, 2, 2, 0, 1])
    own = rng.choice(3, 400, p=[0.9, 0.07, 0.03])
    shares = rng.random((400, 8)) * (group == own[:, None]) + 1e-3
    found = merged(shares / shares.sum(axis=1, keepdims=True), 3)
    assert adjusted_rand_score(group, found) == 1


def test_one_token_for_all_merges_to_something() -> None:
    assert merged(np.full((5, 6), 1 / 6), 3).shape == (6,)  # one cluster left: any will do


def test_a_cluster_is_as_likely_as_its_prototypes_together() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(TINY.model, 6, 3).eval()
    head.groups.copy_(torch.tensor([0, 2, 2, 0, 0, 2]))
    features = torch.randn(2, 16, 3, 4)
    p = head(features).softmax(1)
    rows = F.normalize(head.prototypes, dim=1)
    for at in ((0, 1, 2), (1, 2, 3)):
        z = F.normalize(head.projection(features[at[0], None, :, at[1], at[2]]), dim=1)[0]
        scores = (rows @ z / 0.1).softmax(0)
        expected = torch.stack(
            [scores[[0, 3, 4]].sum(), torch.tensor(0.0), scores[[1, 2, 5]].sum()]
        )
        assert torch.allclose(p[at[0], :, at[1], at[2]], expected, atol=1e-5)


def test_of_several_candidates_the_one_that_others_agree_with_is_kept() -> None:
    head = PrototypeHead(replace(TINY.model, projection_dim=3), 6, 3)
    good = F.normalize(torch.eye(3).repeat_interleave(2, 0) + 0.01 * torch.rand(6, 3), dim=1)
    odd = F.normalize(torch.tensor([[1.0, 1, 1], *[[-1.0, 0, 0]] * 5]), dim=1)  # all in one
    tokens = F.normalize(torch.eye(3).repeat(30, 1) + 0.1 * torch.rand(90, 3), dim=1)
    head.settle(torch.stack([odd, good, good.flip(0)]), tokens)
    assert torch.equal(head.prototypes, good)
    assert [len(set(g.tolist())) for g in head.groups.split(2)] == [1, 1, 1]


def test_several_heads_answer_as_the_chosen_one() -> None:
    heads = Heads(TINY.model, 3, 4)
    heads.chosen.fill_(2)
    features = torch.randn(1, 16, 2, 2)
    assert torch.equal(heads(features), heads.all[2](features))


# From end to end, on scenes that have no labels


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, ClusteringTask]]:
    """A run on pairs without labels: data, front end and pretraining are there."""
    root = tmp_path_factory.mktemp("unlabelled")
    write_set(root / "data", "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMSF_ROOT", str(root))
        run = Run.open(load_config("tiny", data=str(root / "data"), layout="pairs"))
        scenes = load_data(run)
        train_despeckler(run, scenes)
        pretrain(run, scenes)
        yield run, ClusteringTask.of_run(run, scenes)


def check_posteriors(classifier: Classifier, task: ClusteringTask) -> None:
    for scene in (0, 4):
        maps = classifier.posteriors(scene)
        assert maps.shape[0] == task.num_clusters and maps.isfinite().all()
        assert torch.allclose(maps.sum(0), torch.ones_like(maps[0]), atol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_each_counted_baseline_from_end_to_end(unlabelled, name: str) -> None:
    run, task = unlabelled
    classifier = BASELINES[name](run, task)
    assert classifier.name == name
    check_posteriors(classifier, task)


@pytest.mark.parametrize("name", LEARNED)
def test_each_learned_baseline_from_end_to_end(unlabelled, name: str) -> None:
    run, task = unlabelled
    steps: list[tuple[int, int]] = []
    phases: list[str] = []

    def note(step: int, count: int, row: Mapping[str, Any]) -> None:
        if "phase" in row:
            phases.append(row["phase"])
        else:
            steps.append((step, count))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # SCAN's fallback has a test of its own
        classifier = LEARNED[name](run, task, progress=note)
    assert (classifier.name, classifier.num_clusters) == (name, 12)
    check_posteriors(classifier, task)
    log = pd.read_csv(run.path(f"{name}.csv"))
    assert len(log) and log["loss"].notna().all()
    wanted = baseline_steps(task, pretrained=name != "deepcluster")
    assert steps[-1:] == [(wanted, wanted)] or (name == "scan" and not steps)
    assert "draw tokens" in phases and ("linear heads" in phases) == (name == "scan")

    def never(step: int, steps: int, row: object) -> None:
        raise AssertionError("a finished baseline was trained again")

    before = classifier.posteriors(0)
    assert torch.equal(LEARNED[name](run, task, progress=never).posteriors(0), before)


def test_the_ceiling_is_left_out_where_there_are_no_labels(unlabelled) -> None:
    run, task = unlabelled
    assert methods(run, task, ["supervised"]) == {}
    with pytest.raises(DataError, match="supervised: the training scenes of .* have no labels"):
        CEILING["supervised"](run, task)


def test_baselines_see_as_many_windows_as_ours(unlabelled) -> None:
    _, task = unlabelled
    # tiny: 2 epochs of 4 steps of 4 windows, then 1 round of 4 steps of 2; 4 per baseline step
    assert baseline_steps(task, pretrained=False) == (2 * 4 * 4 + 4 * 2) // 4
    assert baseline_steps(task, pretrained=True) == 4 * 2 // 4


@pytest.mark.parametrize(("pooled", "sizes"), [(1.0, {(1, 1)}), (0.5, {(8, 8)})])
def test_the_published_head_learns_from_pooled_windows(unlabelled, pooled: float, sizes) -> None:
    run, task = unlabelled
    pretrain = replace(task.config.pretrain, pooled=pooled)
    task = ClusteringTask(task.scenes, task.store, replace(task.config, pretrain=pretrain))
    network, seen = new_network(run, task.scenes), set()
    network.clustering = Heads(task.config.model, 1, task.num_clusters)

    def look(head: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if head.training:
            seen.add(tuple(inputs[0].shape[2:]))

    network.clustering.all[0].register_forward_hook(look)
    mutual_information.learn(task, None, network)
    assert seen == sizes


def test_random_weights_stay_and_their_norms_settle(unlabelled) -> None:
    run, task = unlabelled
    before, after = (new_network(run, task.scenes) for _ in range(2))
    settle_norms(after, task)
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    changed = dict(after.named_buffers())
    means = [k for k in changed if k.endswith("running_mean") and "projectors" not in k]
    assert all(changed[k].abs().sum() > 0 for k in means)


def test_the_memory_holds_the_embedding_of_its_ground(unlabelled) -> None:
    """Embedded again without any change of the view, a token is what the bank says."""
    run, task = unlabelled
    still = replace(task.config.views, scale_min=1.0, gain=0, offset=0, blur=0, sar_gain=0)
    config = replace(task.config, views=replace(still, speckle_looks=0))
    task = ClusteringTask(task.scenes, task.store, config)
    network = new_network(run, task.scenes)
    network.clustering = PrototypeHead(config.model, 12, 6)
    network.eval()
    memory = Memory(task, config.model.projection_dim)
    memory.fill(network, torch.Generator().manual_seed(0))
    assert memory.entries.shape == (2, len(memory.tiles), 9, 16)
    assert torch.allclose(memory.entries.norm(dim=3), torch.ones(()), atol=1e-5)
    which = torch.tensor([1, 0])
    scene, row, col = memory.tiles[which].T
    windows = task.store.windows(scene, row, col, config.views.window_px)
    with torch.no_grad():
        same = View(windows, torch.eye(2, 3).expand(2, -1, -1))
        z, seen = memory.embed(network, same)
    assert seen.all()
    # A flipped or turned network sees another picture, so only most of the direction is kept.
    assert (z * memory.entries[0, which]).sum(2).median() > 0.9
    shift = (z * memory.entries[0, which].roll(1, 1)).sum(2).median()
    assert shift < (z * memory.entries[0, which]).sum(2).median()


def test_clusterings_of_the_memory_name_the_nearest_centroid(unlabelled) -> None:
    _, task = unlabelled
    memory = Memory(task, 5)
    shape = memory.entries.shape
    memory.entries = unit(shape[:3].numel(), 5).view(shape)
    centroids, assigned = memory.cluster(4, 3, torch.Generator().manual_seed(0))
    assert centroids.shape == (3, 4, 5) and assigned.shape == (3, *shape[1:3])
    for head, bank in ((0, 0), (1, 1), (2, 0)):
        expected = (memory.entries[bank] @ centroids[head].T).argmax(-1)
        assert memory.valid.any() and not memory.valid.all()  # a scene has nodata
        assert torch.equal(assigned[head][memory.valid], expected[memory.valid])
    assert not torch.equal(centroids[0], centroids[2])  # same bank, other first members


def test_scan_without_a_confident_token_says_so(unlabelled, monkeypatch) -> None:
    run, task = unlabelled
    monkeypatch.setitem(learn.__globals__, "THRESHOLD", 2.0)
    network = new_network(run, task.scenes)
    network.clustering = torch.nn.Conv2d(task.config.model.channels, task.num_clusters, 1)
    with pytest.warns(UserWarning, match="no token reached probability 2.0"):
        kept, rows = learn(task, None, network)
    assert kept is network and {row["round"] for row in rows} == {1.0}


class Flat(PixelStore):
    """The places of a real store, every pixel the same."""

    def __init__(self, store: PixelStore) -> None:
        self.__dict__ |= store.__dict__ | {"whole": [True] * len(store.records)}

    def windows(self, *where: Any) -> dict[str, Tensor]:
        kept = ("valid", "sar_log_std")
        return {k: v if k in kept else v * 0 for k, v in super().windows(*where).items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*BASELINES, *LEARNED])
def test_constant_scenes_give_posteriors(unlabelled, name: str, monkeypatch) -> None:
    run, task = unlabelled
    task = ClusteringTask(task.scenes, Flat(task.store), task.config)
    monkeypatch.setattr(run, "stage", lambda name, make, inputs, **_: make())
    classifier = (BASELINES | LEARNED)[name](run, task)
    check_posteriors(classifier, task)
    if name in BASELINES and not name.endswith("-random"):  # a network sees its padding, too
        tokens = classifier.posteriors(0)
        assert torch.allclose(tokens, tokens[:, :1, :1].expand_as(tokens))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", ["constant scenes", "one cluster"])
def test_ours_gives_posteriors_where_there_is_nothing_to_find(unlabelled, change: str) -> None:
    run, _ = unlabelled
    settings = {"cluster": {"num_clusters": 1}} if change == "one cluster" else {}
    run = run.variant(change.replace(" ", "_"), ("data", "despeckle", "pretrain"), **settings)
    task = ClusteringTask.of_run(run, load_data(run))
    if change == "constant scenes":
        task = ClusteringTask(task.scenes, Flat(task.store), task.config)
    cluster(run, task)
    check_posteriors(METHODS["umsf"](run, task), task)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*BASELINES, *PRETRAINED, *LEARNED])
def test_one_cluster_holds_everything(unlabelled, name: str, monkeypatch) -> None:
    run, task = unlabelled
    config = replace(task.config, cluster=replace(task.config.cluster, num_clusters=1))
    one = Run(run.folder, config, run.manifest)
    monkeypatch.setattr(one, "stage", lambda name, make, inputs, **_: make())
    task = ClusteringTask(task.scenes, task.store, config)
    check_posteriors(METHODS[name](one, task), task)
