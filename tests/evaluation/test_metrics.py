"""Scores against scikit-learn, brute force, worked examples and the usual traps."""

import itertools
import time
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.special import entr
from sklearn import metrics as sk

from umsf_lib.config import DataError
from umsf_lib.evaluation.metrics import (
    Table,
    accuracy,
    ami,
    apply_mapping,
    ari,
    confusion,
    constant_score,
    contingency,
    equal_size_ceiling,
    f1_per_class,
    hungarian,
    macro_f1,
    many_to_one,
    mean_iou,
    naming,
    nmi,
    paired_bootstrap,
    scores,
)

GOLDEN = np.array([[50, 10, 0], [5, 60, 5], [0, 20, 50]])
OVER_CLUSTERED = np.array([[40, 0, 0], [35, 2, 1], [0, 30, 3], [1, 28, 2], [0, 4, 54]])
GREEDY_TRAP = np.array([[10, 9], [9, 1]])


def best(table: Table) -> dict[str, Any]:
    return scores(table, hungarian(table))


def expand(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Label vectors (clusters, classes) with this contingency table."""
    rows, cols = np.indices(table.shape)
    return np.repeat(rows.ravel(), table.ravel()), np.repeat(cols.ravel(), table.ravel())


def random_table(seed: int) -> Table:
    """K' and K from 2 to 6, sparse at times, with empty rows and columns at times."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 30, rng.integers(2, 7, size=2))
    table[rng.random(table.shape) < rng.choice([0, 0.5])] = 0
    table[0, 0] += 1
    return table


def brute_force_pixels(table: Table) -> int:
    wide = table if table.shape[0] <= table.shape[1] else table.T
    rows = range(wide.shape[0])
    return max(
        sum(wide[i, j] for i, j in zip(rows, order, strict=True))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )


def test_golden_example() -> None:
    s = best(GOLDEN)
    expected = {"acc": 0.8, "nmi": 0.504849, "ari": 0.483146, "macro_f1": 0.806522}
    expected |= {"miou": 0.678632, "kappa": 0.698682, "many_to_one": 0.8}
    assert {name: s[name] for name in expected} == pytest.approx(expected, abs=5e-7)
    assert s["f1"] == pytest.approx({0: 100 / 115, 1: 120 / 160, 2: 100 / 125})
    assert s["recall"] == pytest.approx({0: 50 / 55, 1: 60 / 90, 2: 50 / 55})
    assert s["classes_found"] == 3
    assert hungarian(GOLDEN).tolist() == [0, 1, 2]


def test_scores_are_plain_numbers() -> None:
    s = best(GOLDEN)
    overall = ["acc", "nmi", "ami", "ari", "macro_f1", "miou", "kappa", "many_to_one"]
    assert list(s) == [*overall, "classes_found", "f1", "recall"]
    of_classes = [*s.pop("f1").items(), *s.pop("recall").items()]
    assert all(type(value) is float for value in s.values())
    assert all(type(c) is int and type(value) is float for c, value in of_classes)


def test_greedy_trap() -> None:
    """Taking the largest cell first gives 11 of 29; the best matching has 18."""
    s = best(GREEDY_TRAP)
    assert (s["acc"], s["many_to_one"]) == (18 / 29, 19 / 29)


def test_unmatched_clusters_are_errors() -> None:
    s = best(OVER_CLUSTERED)
    mapping = hungarian(OVER_CLUSTERED)
    assert (s["acc"], s["many_to_one"]) == (0.62, 0.935)
    assert sorted(mapping.tolist()) == [-1, -1, 0, 1, 2]
    confused = confusion(OVER_CLUSTERED, mapping)
    assert confused.shape == (4, 3) and confused.sum() == 200
    assert confused[-1].sum() == OVER_CLUSTERED[mapping == -1].sum()
    merged = scores(OVER_CLUSTERED, many_to_one(OVER_CLUSTERED))
    assert merged["acc"] == merged["many_to_one"] == 0.935


def test_fewer_clusters_than_classes_leave_classes_without_a_hit() -> None:
    table = np.array([[9, 1, 2], [0, 8, 3]])
    s = best(table)
    assert hungarian(table).tolist() == [0, 1]
    assert s["acc"] == 17 / 23
    assert s["f1"] == pytest.approx({0: 18 / 21, 1: 16 / 20, 2: 0.0})
    assert s["macro_f1"] == pytest.approx(sum(s["f1"].values()) / 3)


@pytest.mark.parametrize("seed", range(40))
def test_hungarian_equals_brute_force(seed: int) -> None:
    table = random_table(seed)
    mapping = hungarian(table)
    matched = mapping[mapping >= 0]
    assert len(set(matched.tolist())) == len(matched) == min(table.shape)
    assert np.trace(confusion(table, mapping)[:-1]) == brute_force_pixels(table)


@pytest.mark.parametrize("seed", range(40))
def test_scores_equal_sklearn(seed: int) -> None:
    table = random_table(seed)
    clusters, truth = expand(table)
    mapping = hungarian(table)
    num_classes = table.shape[1]
    pred = np.where(mapping[clusters] < 0, num_classes, mapping[clusters])  # "none" as one more
    present = sorted({*truth.tolist(), *pred[pred < num_classes].tolist()})
    s = scores(table, mapping)
    close = {"abs": 1e-12}
    assert s["acc"] == pytest.approx(sk.accuracy_score(truth, pred), **close)
    assert s["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, clusters), abs=1e-9)
    assert s["ari"] == pytest.approx(sk.adjusted_rand_score(truth, clusters), **close)
    if len(set(truth.tolist())) > 1:  # else scikit-learn gives 1 to a single cluster
        expected = sk.adjusted_mutual_info_score(truth, clusters)
        assert s["ami"] == pytest.approx(expected, abs=1e-9)
    recall = sk.recall_score(truth, pred, labels=sorted(set(truth.tolist())), average=None)
    assert list(s["recall"].values()) == pytest.approx(recall, **close)
    assert s["classes_found"] == (recall >= 0.05).sum()
    f1 = sk.f1_score(truth, pred, labels=present, average=None, zero_division=0)
    assert s["f1"] == pytest.approx(dict(zip(present, f1, strict=True)), **close)
    assert s["macro_f1"] == pytest.approx(np.mean(f1), **close)
    iou = sk.jaccard_score(truth, pred, labels=present, average="macro", zero_division=0)
    assert s["miou"] == pytest.approx(iou, **close)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn warns where kappa is not defined
        expected = sk.cohen_kappa_score(truth, pred)
    assert s["kappa"] == pytest.approx(0 if np.isnan(expected) else expected, **close)
    purity = sk.cluster.contingency_matrix(truth, clusters).max(axis=0).sum() / len(truth)
    if len(set(truth.tolist())) > 1:  # else it would be 1 whatever the clusters are
        assert s["many_to_one"] == pytest.approx(purity, **close)
        assert s["many_to_one"] >= s["acc"]


@pytest.mark.parametrize("seed", range(40))
def test_scores_do_not_depend_on_the_order_of_clusters(seed: int) -> None:
    """Also with ties, which small counts make frequent."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 3, (4, 4))
    table[0, 0] += 1
    expected = best(table)
    f1 = expected.pop("f1")
    for _ in range(5):
        s = best(rng.permutation(table))
        assert sum(s.pop("f1").values()) == pytest.approx(sum(f1.values()))
        for name in ("kappa", "miou", "recall", "classes_found"):
            s.pop(name)  # may differ between matchings of equal accuracy and F1
        assert s == pytest.approx({name: expected[name] for name in s})


def test_golden_scores_under_every_permutation() -> None:
    expected = best(GOLDEN)
    for order in itertools.permutations(range(3)):
        s = best(GOLDEN[list(order)])
        assert s.pop("f1") == pytest.approx(expected["f1"])
        assert s.pop("recall") == pytest.approx(expected["recall"])
        assert s == pytest.approx({name: expected[name] for name in s})


def test_constant_prediction_is_no_evidence() -> None:
    """Class shares .7 .2 .1, everything in one cluster: accuracy .7, NMI, AMI and ARI 0."""
    table = np.array([[70, 20, 10], [0, 0, 0], [0, 0, 0]])
    s = best(table)
    assert (s["acc"], s["nmi"], s["ari"], s["kappa"]) == (0.7, 0, 0, 0)
    assert s["ami"] == pytest.approx(0, abs=1e-12) and s["classes_found"] == 1
    assert constant_score(table) == constant_score(table[::-1]) == 0.7


@pytest.mark.parametrize("table", [[[5, 0], [0, 0]], [[5, 0], [7, 0]], [[1, 0], [0, 0]]])
def test_labels_of_one_class_are_no_evidence(table: list[list[int]]) -> None:
    """What a constant predictor has, too, is in ACC; the scores beyond chance are 0."""
    s = best(np.array(table))
    assert s["acc"] == max(max(row) for row in table) / np.sum(table)
    assert (s["nmi"], s["ami"], s["ari"], s["kappa"], s["many_to_one"]) == (0, 0, 0, 0, 0)
    assert constant_score(np.array(table)) == 1


def test_equal_sized_clusters_have_a_ceiling() -> None:
    """The published shares of WHU-OPT-SAR; the bound counts no class for more than 1/K."""
    shares = np.array([404, 38, 57, 64, 407, 10, 19])
    assert equal_size_ceiling(np.diag(shares)) == pytest.approx(0.474, abs=5e-4)
    assert equal_size_ceiling(np.eye(4, dtype=np.int64)) == 1
    two_clusters = np.array([[50, 0, 0], [0, 30, 20]])
    assert equal_size_ceiling(two_clusters) == pytest.approx(0.8)


def test_absent_classes_are_left_out_unless_predicted() -> None:
    """Class 2 is absent from the truth: no entry if unpredicted, F1 of 0 if predicted."""
    unpredicted = np.array([[6, 1, 0], [0, 3, 0], [0, 0, 0]])
    predicted = np.array([[6, 1, 0], [0, 3, 0], [2, 0, 0]])
    identity = np.arange(3)
    assert list(scores(unpredicted, identity)["f1"]) == [0, 1]
    assert scores(predicted, identity)["f1"][2] == 0
    for table, present in ((unpredicted, 2), (predicted, 3)):
        s = scores(table, identity)
        assert s["macro_f1"] == pytest.approx(sum(s["f1"].values()) / present)


def test_contingency_counts_pixels_and_ignores_nodata() -> None:
    rng = np.random.default_rng(0)
    pred = rng.integers(0, 250, (40, 50)).astype(np.uint8)  # uint8 x 7 would wrap around
    label = rng.choice(np.array([0, 1, 2, 3, 4, 5, 6, 255], np.uint8), (40, 50))
    pred[label == 255] = 255
    table = contingency(pred, label, 250, 7)
    assert table.dtype == np.int64 and table.shape == (250, 7)
    assert table.sum() == (label != 255).sum()
    for i, j in ((3, 6), (100, 0), (249, 2)):
        assert table[i, j] == ((pred == i) & (label == j)).sum()


def test_tables_of_scenes_add_up() -> None:
    rng = np.random.default_rng(1)
    pred, label = rng.integers(0, 4, (2, 300)), rng.integers(0, 3, (2, 300))
    parts = [contingency(p, y, 4, 3) for p, y in zip(pred, label, strict=True)]
    assert np.array_equal(sum(parts), contingency(pred, label, 4, 3))


@pytest.mark.parametrize(
    ("pred", "label", "words"),
    [
        ([0, 1, 7], [0, 1, 2], ["prediction", "0 to 7", "0 to 2"]),
        ([0, 1, -1], [0, 1, 2], ["prediction", "-1 to 1"]),
        ([0, 1, 2], [0, 10, 20], ["label", "0 to 20"]),
        ([0, 1], [0, 1, 2], ["(2,)", "(3,)"]),
    ],
)
def test_contingency_refuses_what_does_not_fit(
    pred: list[int], label: list[int], words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        contingency(np.array(pred), np.array(label), 3, 3)
    assert all(word in str(error.value) for word in words)


def test_empty_table_is_an_error_everywhere() -> None:
    nothing = contingency(np.array([1]), np.array([255]), 3, 3)
    assert nothing.sum() == 0
    calls = [hungarian, many_to_one, constant_score, equal_size_ceiling, nmi, ami, ari, naming]
    for call in (*calls, accuracy, macro_f1, mean_iou, lambda t: scores(t, np.arange(3))):
        with pytest.raises(DataError, match="0 scored pixels"):
            call(nothing)


def test_mapping_fitted_on_one_table_scores_another() -> None:
    validation = np.array([[1, 30, 2], [40, 3, 0], [0, 2, 20]])
    test = np.array([[5, 4, 0], [6, 5, 0], [0, 1, 9]])
    mapping = hungarian(validation)
    assert mapping.tolist() == [1, 0, 2]
    assert scores(test, mapping)["acc"] == 19 / 30
    changed = np.array([[5, 1, 0], [0, 6, 1], [0, 0, 9]])
    assert (scores(changed, mapping)["acc"], best(changed)["acc"]) == (10 / 22, 20 / 22)
    with pytest.raises(DataError, match="3 clusters.* 4"):
        scores(np.ones((4, 3), dtype=np.int64), mapping)


def test_mapped_pixels_give_the_same_confusion_as_the_mapped_table() -> None:
    rng = np.random.default_rng(2)
    pred, label = rng.integers(0, 5, (8, 9)).astype(np.uint8), rng.integers(0, 3, (8, 9))
    table = contingency(pred, label, 5, 3)
    mapping = hungarian(table)
    classes = apply_mapping(pred, mapping)
    direct = contingency(np.where(classes == 255, 3, classes), label, 4, 3)
    assert classes.dtype == np.uint8
    assert np.array_equal(direct, confusion(table, mapping))


def test_apply_mapping_keeps_nodata_and_refuses_unknown_clusters() -> None:
    pred = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert apply_mapping(pred, np.array([4, -1, 0])).tolist() == [[4, 255], [0, 255]]
    with pytest.raises(DataError, match="0 to 2 where 0 to 1"):
        apply_mapping(pred, np.array([4, 0]))


def test_a_cluster_never_seen_gets_no_majority() -> None:
    assert many_to_one(np.array([[0, 0], [1, 3], [5, 2]])).tolist() == [-1, 1, 0]


def test_a_cluster_never_seen_is_named_by_the_most_frequent_class() -> None:
    """Class 1 has 6 of the 11 pixels; clusters 1 and 3 have none of them."""
    table = np.array([[4, 1, 0], [0, 0, 0], [0, 5, 1], [0, 0, 0]])
    assert naming(table).tolist() == [0, 1, 1, 1]
    assert scores(table, naming(table))["acc"] == 9 / 11


def test_a_class_is_found_from_a_recall_of_a_twentieth() -> None:
    """Merged into the largest class, two classes are lost: 4 of 100 pixels, and no cluster."""
    table = np.array([[900, 95, 96, 7], [0, 5, 0, 0], [0, 0, 4, 0]])
    s = scores(table, np.array([0, 1, 2]))
    assert s["recall"] == {0: 1.0, 1: 0.05, 2: 0.04, 3: 0.0}
    assert s["classes_found"] == 2


def uneven(pixels: int, seed: int) -> Table:
    """Twelve clusters and seven classes of very unequal sizes that share something."""
    rng = np.random.default_rng(seed)
    shares = np.outer(rng.dirichlet(np.full(12, 0.5)), rng.dirichlet(np.full(7, 0.5)))
    shares[np.arange(7), np.arange(7)] *= 4
    return rng.multinomial(pixels, (shares / shares.sum()).ravel()).reshape(12, 7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pixels", [300, 7000, 29_999, 30_000, 100_000])
def test_ami_is_that_of_scikit_learn_for_few_pixels_and_near_it_for_many(
    pixels: int, seed: int
) -> None:
    table = uneven(pixels, seed)
    clusters, truth = expand(table)
    tolerance = 1e-9 if pixels < 30_000 else 0.0005
    assert ami(table) == pytest.approx(
        sk.adjusted_mutual_info_score(truth, clusters), abs=tolerance
    )


def test_ami_of_a_whole_data_set_is_quick_and_hardly_adjusted() -> None:
    """By chance, three clusters and classes of n pixels share 2 x 2 / 2 n nats."""
    table = GOLDEN * 10_000_000
    start = time.process_time()
    assert 0 < nmi(table) - ami(table) < 1e-8
    assert time.process_time() - start < 0.1
    chance = 2 * 2 / (2 * table.sum())
    entropy = sum(entr(table.sum(axis) / table.sum()).sum() for axis in (0, 1)) / 2
    assert nmi(table) - ami(table) == pytest.approx(chance * (1 - nmi(table)) / entropy, rel=1e-3)


@pytest.mark.parametrize("score", [accuracy, macro_f1, mean_iou, nmi, ami, ari])
@pytest.mark.parametrize("factor", [1, 1000])
def test_a_stack_of_tables_has_the_scores_of_each(score: Any, factor: int) -> None:
    rng = np.random.default_rng(4)
    tables = rng.integers(0, 30, (9, 6, 5)) * factor
    tables[::2, 3:, 1:3] = 0  # absent classes, and a cluster that is empty
    tables[0, 2] = 0
    near = 0.01 if (score, factor) == (ami, 1) else 1e-12  # chance has a closed form in a stack
    assert score(tables) == pytest.approx([score(table) for table in tables], abs=near)


def test_ari_is_exact_for_a_whole_data_set() -> None:
    """Two thousand million pixels, where products of pair counts do not fit in 64 bits."""
    large = GOLDEN * 10_000_000 + 1

    def pairs(sizes: np.ndarray) -> Fraction:
        return sum((Fraction(int(n)) * (int(n) - 1) / 2 for n in sizes.flat), Fraction(0))

    both, clusters, classes = pairs(large), pairs(large.sum(1)), pairs(large.sum(0))
    by_chance = clusters * classes / pairs(large.sum(keepdims=True))
    expected = (both - by_chance) / ((clusters + classes) / 2 - by_chance)
    assert ari(large) == float(expected)
    assert nmi(GOLDEN * 10_000_000) == pytest.approx(nmi(GOLDEN), abs=1e-14)


def scene_tables(scenes: int, seed: int, right: float) -> Table:
    rng = np.random.default_rng(seed)
    chances = np.full((7, 7), (1 - right) / 6) + np.eye(7) * (right - (1 - right) / 6)
    return np.stack([rng.multinomial(2000, (chances / 7).ravel()) for _ in range(scenes)]).reshape(
        scenes, 7, 7
    )


def test_bootstrap_equals_a_loop() -> None:
    a, b = scene_tables(5, 0, 0.7), scene_tables(5, 1, 0.68)
    rng = np.random.default_rng(3)
    gains = []
    for count in rng.multinomial(5, np.full(5, 0.2), size=50):
        pooled_a, pooled_b = (sum(c * t for c, t in zip(count, x, strict=True)) for x in (a, b))
        gains.append(nmi(pooled_a) - nmi(pooled_b))
    mean, low, high = paired_bootstrap([a], [b], nmi, n=50, seed=3)
    assert mean == pytest.approx(nmi(a.sum(0)) - nmi(b.sum(0)))
    assert (low, high) == pytest.approx(tuple(np.percentile(gains, (2.5, 97.5))))


def test_bootstrap_over_12_scenes_is_fast_and_sees_the_better_method() -> None:
    a, b = scene_tables(12, 0, 0.8), scene_tables(12, 1, 0.7)
    mapping = np.arange(7)
    confused_a, confused_b = confusion(a, mapping), confusion(b, mapping)
    assert confused_a.shape == (12, 8, 7)
    for statistic, tables in (
        (accuracy, (confused_a, confused_b)),
        (macro_f1, (confused_a, confused_b)),
        (nmi, (a, b)),
        (ari, (a, b)),
    ):
        start = time.process_time()
        mean, low, high = paired_bootstrap(*([t] for t in tables), statistic)
        assert time.process_time() - start < 1
        assert 0 < low < mean < high
    point = accuracy(confused_a.sum(0)) - accuracy(confused_b.sum(0))
    gain, _, _ = paired_bootstrap([confused_a], [confused_b], accuracy)
    assert gain == pytest.approx(point)


def test_bootstrap_of_several_runs_averages_their_scores() -> None:
    """Clusters of two runs carry other numbers: their tables must never be added up."""
    tables = scene_tables(12, 0, 0.8)
    renumbered = tables[:, [1, 2, 3, 4, 5, 6, 0]]
    others = [scene_tables(12, 1, 0.7)] * 2
    same, _, _ = paired_bootstrap([tables, tables], others, nmi)
    mixed, low, high = paired_bootstrap([tables, renumbered], others, nmi)
    assert mixed == pytest.approx(same)
    one, low_of_one, high_of_one = paired_bootstrap([tables], others[:1], nmi)
    assert mixed == pytest.approx(one)
    assert high - low < high_of_one - low_of_one
    pair = [tables, renumbered], others
    assert paired_bootstrap(*pair, nmi, same_scenes=True) == pytest.approx(
        (one, low_of_one, high_of_one)
    )


def test_scenes_of_a_block_are_drawn_together() -> None:
    """Seven scenes in blocks of three are three draws, the last of them of one scene."""
    a, b = scene_tables(7, 0, 0.7), scene_tables(7, 1, 0.68)
    blocks = [[x[:3].sum(0), x[3:6].sum(0), x[6]] for x in (a, b)]
    whole = paired_bootstrap(*([np.stack(x)] for x in blocks), ami, n=200)
    assert paired_bootstrap([a], [b], ami, n=200, block=3) == pytest.approx(whole)
    single = paired_bootstrap([a], [b], ami, n=200)
    assert single[0] == pytest.approx(whole[0]) and single[1:] != whole[1:]
    one = paired_bootstrap([a], [b], accuracy, block=7)  # nothing is left to draw
    assert one[0] == one[1] == one[2]


def test_bootstrap_is_paired_and_seeded() -> None:
    a = scene_tables(12, 0, 0.8)
    assert paired_bootstrap([a], [a], nmi) == (0, 0, 0)
    b = scene_tables(12, 1, 0.8)
    assert paired_bootstrap([a], [b], nmi, seed=4) == paired_bootstrap([a], [b], nmi, seed=4)
    assert paired_bootstrap([a], [b], nmi, seed=4) != paired_bootstrap([a], [b], nmi, seed=5)
    with pytest.raises(DataError, match="12 scenes.* 11"):
        paired_bootstrap([a], [b[:11]], nmi)


def test_f1_per_class_follows_the_definition() -> None:
    confused = confusion(GOLDEN, hungarian(GOLDEN))
    right, predicted, true = np.diag(confused), confused[:-1].sum(1), confused.sum(0)
    precision, recall = right / predicted, right / true
    expected = 2 * precision * recall / (precision + recall)
    assert list(f1_per_class(confused).values()) == pytest.approx(expected.tolist())
