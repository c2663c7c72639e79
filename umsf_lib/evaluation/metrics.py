"""Scores of a clustering against labels, all from one contingency table.

A table ``(K', K)`` int64 counts the pixels of cluster i (row) that have class j (column). Add up
the tables of several scenes, then match and score the sum. A mapping ``(K',)`` gives the class of
each cluster, -1 for none; fit it on validation scenes, apply it to test scenes. In a confusion
table ``(K+1, K)`` the rows are classes; the last row holds unmatched clusters, all errors.

Scores of one table are floats. ``accuracy``, ``macro_f1``, ``mean_iou``, ``nmi``, ``ami`` and
``ari`` also take a stack ``(n, rows, K)``, as a bootstrap draws it, and return ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr, rel_entr
from sklearn.metrics.cluster import expected_mutual_information

from ..config import IGNORE, DataError

Raster = NDArray[Any]  # of any integer type
Table = NDArray[np.int64]
Score = Callable[[Table], Any]  # of a table, for example ``accuracy``
MANY_PIXELS = 30_000  # from here on, what chance shares has a closed form (see ``ami``)
FOUND = 0.05  # least recall of a class that counts as found


def contingency(pred: Raster, label: Raster, num_clusters: int, num_classes: int) -> Table:
    """Count the pixels of each cluster and class: ``(K', K)``; label 255 (``IGNORE``) is left out.

    Args:
        pred: Cluster index per pixel, any shape.
        label: Class id per pixel, same shape.
        num_clusters: K'.
        num_classes: K.

    Raises:
        DataError: If the shapes differ, or a scored pixel has an index outside the table.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape:
        raise DataError(
            f"The prediction has shape {pred.shape} but the label {label.shape};"
            " score them on the same pixel grid."
        )
    scored = label != IGNORE
    clusters = _indices(pred[scored], num_clusters, "prediction")
    classes = _indices(label[scored], num_classes, "label")
    cells = np.bincount(clusters * num_classes + classes, minlength=num_clusters * num_classes)
    return cells.reshape(num_clusters, num_classes)


def _indices(values: Raster, count: int, what: str) -> Table:
    """Check that values are indices below count; widen them, so that uint8 products cannot wrap."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high >= count:
        raise DataError(
            f"The {what} holds values {low} to {high} where 0 to {count - 1} are allowed;"
            f" mark pixels that must not count with the ignore value ({IGNORE})."
        )
    return values.astype(np.int64)


def _pixels(table: Table) -> Any:
    """Number of scored pixels, which must not be 0: an int, or ``(n,)`` of a stack."""
    total = table.sum(axis=(-2, -1))
    if not np.all(total):
        raise DataError(
            "The contingency table holds 0 scored pixels but a score needs at least 1;"
            " check that the labels are not all nodata or ignored."
        )
    return int(total) if table.ndim == 2 else total


def hungarian(table: Table) -> Table:
    """Match clusters one-to-one with classes for the highest accuracy (Kuhn 1955): a mapping.

    Clusters left over if K' > K get -1. Among matchings of equal accuracy the one with the highest
    sum of F1 wins, so the scores do not depend on the order of the clusters.
    """
    _pixels(table)
    sizes = table.sum(1, keepdims=True) + table.sum(0, keepdims=True)
    f1 = np.divide(2 * table, sizes, out=np.ones(table.shape), where=sizes > 0)
    # Counts are integers and the F1 terms sum to less than 1, so they can only decide ties.
    clusters, classes = linear_sum_assignment(table + f1 / (len(table) + 1), maximize=True)
    mapping = np.full(len(table), -1, dtype=np.int64)
    mapping[clusters] = classes
    return mapping


def many_to_one(table: Table) -> Table:
    """Map each cluster to its majority class; accuracy under this mapping (purity) grows with K'.

    A cluster without pixels gets -1.
    """
    _pixels(table)
    return np.where(table.any(1), table.argmax(1), -1)


def naming(table: Table) -> Table:
    """Give each cluster its most frequent class; one without pixels, the most frequent of all."""
    majority = many_to_one(table)
    return np.where(majority < 0, table.sum(0).argmax(), majority)


def apply_mapping(pred: Raster, mapping: Table) -> NDArray[np.uint8]:
    """Turn a map of clusters into a uint8 map of classes; pixels without a class are 255.

    These are the ones that are 255 (no data) in ``pred``, and those of clusters mapped to -1.
    """
    seen = pred != IGNORE
    classes = np.full(pred.shape, IGNORE, dtype=np.uint8)
    of_cluster = np.where(mapping < 0, IGNORE, mapping).astype(np.uint8)
    classes[seen] = of_cluster[_indices(pred[seen], len(mapping), "prediction")]
    return classes


def confusion(table: Table, mapping: Table) -> Table:
    """Sum the rows that are mapped to the same class: ``(..., K', K)`` -> ``(..., K+1, K)``."""
    if table.shape[-2] != len(mapping):
        raise DataError(
            f"The mapping names {len(mapping)} clusters but the table has {table.shape[-2]};"
            " apply a mapping only to the clustering it was fitted on."
        )
    num_classes = table.shape[-1]
    rows = np.where(mapping < 0, num_classes, mapping)
    joins = (rows == np.arange(num_classes + 1)[:, None]).astype(np.int64)  # (K+1, K') 0 or 1
    confused: Table = joins @ table
    return confused


def accuracy(confused: Table) -> Any:
    """Return the share of pixels whose mapped cluster is their class, from ``(K+1, K)``."""
    return np.trace(confused, axis1=-2, axis2=-1) / _pixels(confused)


def _f1(confused: Table) -> NDArray[np.float64]:
    """F1 ``(..., K)`` of each class, NaN where it is absent from truth and prediction."""
    _pixels(confused)
    right = np.diagonal(confused, axis1=-2, axis2=-1)  # TP
    both = confused[..., :-1, :].sum(-1) + confused.sum(-2)  # 2 TP + FP + FN
    return np.divide(2 * right, both, out=np.full(both.shape, np.nan), where=both > 0)


def f1_per_class(confused: Table) -> dict[int, float]:
    """Compute F1 by class id; a class absent from truth and prediction has no entry."""
    return {c: float(f1) for c, f1 in enumerate(_f1(confused)) if not np.isnan(f1)}


def recall_per_class(confused: Table) -> dict[int, float]:
    """Compute by class id the share of its pixels that are right; absent classes have no entry."""
    sizes, right = confused.sum(0), np.diag(confused)
    return {int(c): float(right[c] / sizes[c]) for c in sizes.nonzero()[0]}


def macro_f1(confused: Table) -> Any:
    """Average F1 over the classes present in truth or prediction."""
    return np.nanmean(_f1(confused), axis=-1)


def mean_iou(confused: Table) -> Any:
    """Average TP / (TP + FP + FN) over the classes present in truth or prediction."""
    f1 = _f1(confused)
    return np.nanmean(f1 / (2 - f1), axis=-1)  # the counts of F1, with TP once instead of twice


def kappa(confused: Table) -> float:
    """Compute Cohen's kappa: accuracy beyond chance; 0 if chance alone is already perfect."""
    total = _pixels(confused)
    chance = float((confused[:-1].sum(1) / total) @ (confused.sum(0) / total))
    return (accuracy(confused) - chance) / (1 - chance) if chance < 1 else 0.0


def _information(table: Table) -> tuple[Any, Any]:
    """Mutual information of clusters and classes, and the mean of their entropies, in nats."""
    total = np.reshape(_pixels(table), (*table.shape[:-2], 1))
    clusters, classes = table.sum(-1) / total, table.sum(-2) / total
    # sum_ij p ln(p / (a b)), which is exactly 0 for a single cluster or class
    apart = clusters[..., :, None] * classes[..., None, :]
    terms = rel_entr(table / total[..., None], apart)
    return terms.sum(axis=(-2, -1)), (entr(clusters).sum(-1) + entr(classes).sum(-1)) / 2


def nmi(table: Table) -> Any:
    """Divide the mutual information by the arithmetic mean of both entropies, in [0, 1].

    0 if the labels hold only one class, since they then carry no information (scikit-learn gives 1
    if there is also only one cluster). ``sklearn.metrics.mutual_info_score`` gives the same
    information from a table, in 40 times the time, and a bootstrap asks for it 4000 times.
    """
    information, entropy = _information(table)
    shares = np.divide(information, entropy, out=np.zeros_like(entropy), where=entropy > 0)
    return np.clip(shares, 0, 1)


def ami(table: Table) -> Any:
    """Adjust the mutual information for chance: 0 is what random clusters of these sizes share.

    ``(I - E[I]) / (mean entropy - E[I])`` (Vinh et al. 2010), at most 1; 0 if the labels hold only
    one class. The expectation is scikit-learn's for one table below ``MANY_PIXELS``. That takes
    seconds for millions of pixels; there, and for a stack, it is (clusters - 1) (classes - 1) /
    (2 (pixels - 1)), from the chi-squared distribution that ``2 n I`` tends to, and the score is
    off by at most .0005, or .002 for a stack of 5000 pixels (if many cells are nearly empty).
    """
    information, entropy = _information(table)
    chance = _chance_information(table)
    room = entropy - chance
    shares = np.divide(information - chance, room, out=np.zeros_like(room), where=room > 1e-12)
    return np.minimum(shares, 1)


def _chance_information(table: Table) -> Any:
    """Expected mutual information, in nats, of random clusters and classes of these sizes."""
    total, clusters, classes = _pixels(table), table.any(-1), table.any(-2)
    if table.ndim > 2 or total >= MANY_PIXELS:
        return (clusters.sum(-1) - 1) * (classes.sum(-1) - 1) / np.maximum(2 * (total - 1), 1)
    return expected_mutual_information(table[clusters][:, classes], total)


def ari(table: Table) -> Any:
    """Compute the adjusted Rand index (Hubert & Arabie 1985); 0 if the labels hold only one class.

    In integers up to the last division; scikit-learn counts from pixels only, not from a table.
    """
    if table.ndim > 2:
        return np.array([ari(one) for one in table])
    total = _pixels(table)
    if np.count_nonzero(table.sum(0)) < 2:
        return 0.0
    all_pairs = comb(total, 2)
    both, clusters, classes = (
        sum(comb(int(size), 2) for size in sizes.flat)
        for sizes in (table, table.sum(1), table.sum(0))
    )
    best = (clusters + classes) * all_pairs - 2 * clusters * classes
    return 2 * (both * all_pairs - clusters * classes) / best if best else 1.0


def scores(table: Table, mapping: Table) -> dict[str, Any]:
    """Score a pooled table under a mapping fitted on it or on another one.

    Returns:
        Floats ``acc, nmi, ami, ari, macro_f1, miou, kappa, many_to_one`` and ``classes_found``, the
        number of classes with a recall of at least ``FOUND``; ``f1`` and ``recall``, dicts by class
        id. If the labels hold only one class, ``nmi``, ``ami``, ``ari``, ``kappa`` and
        ``many_to_one`` are 0: any clusters would fit.

    Raises:
        DataError: If the table is empty or has another number of clusters than the mapping.
    """
    confused = confusion(table, mapping)
    one_class = np.count_nonzero(table.sum(0)) < 2
    recall = recall_per_class(confused)
    return {
        "acc": float(accuracy(confused)),
        "nmi": float(nmi(table)),
        "ami": float(ami(table)),
        "ari": float(ari(table)),
        "macro_f1": float(macro_f1(confused)),
        "miou": float(mean_iou(confused)),
        "kappa": float(kappa(confused)),
        "many_to_one": 0.0 if one_class else int(table.max(1).sum()) / _pixels(table),
        "classes_found": float(sum(share >= FOUND for share in recall.values())),
        "f1": f1_per_class(confused),
        "recall": recall,
    }


def constant_score(table: Table) -> float:
    """Return the accuracy of predicting the most frequent class everywhere, a lower limit."""
    return int(table.sum(0).max()) / _pixels(table)


def equal_size_ceiling(table: Table) -> float:
    """Return the highest accuracy that K' clusters of equal size can reach, matched one-to-one."""
    shares = np.sort(table.sum(0) / _pixels(table))[::-1]
    return float(np.minimum(shares, 1 / len(table))[: len(table)].sum())


def differences(
    runs_a: Sequence[Table], runs_b: Sequence[Table], statistic: Score
) -> NDArray[np.float64]:
    """Subtract the scores on the pooled scenes, run by run: ``(R,)``; see ``paired_bootstrap``."""
    pairs = zip(runs_a, runs_b, strict=True)
    return np.array([statistic(a.sum(0)) - statistic(b.sum(0)) for a, b in pairs])


def paired_bootstrap(
    runs_a: Sequence[Table],
    runs_b: Sequence[Table],
    statistic: Score,
    n: int = 2000,
    seed: int = 0,
    *,
    same_scenes: bool = False,
    block: int = 1,
) -> tuple[float, float, float]:
    """Compare two methods on resampled scenes, since neighbouring pixels are not independent.

    By hand, since ``scipy.stats.bootstrap`` refuses a single scene, and cannot average over runs
    that each draw their own scenes.

    Args:
        runs_a: Per run (seed) the tables of a method, one per scene: ``(S, K', K)`` for ``nmi``,
            ``ami`` or ``ari``; for the other scores mapped ones ``(S, K+1, K)``, from
            ``confusion(tables, mapping)`` with the method's fixed mapping.
        runs_b: The other method on the same scenes.
        statistic: A score of pooled tables, such as ``accuracy``, ``macro_f1``, ``nmi``.
        n: Number of resamples.
        seed: Seed of the resampling.
        same_scenes: True if all runs were scored on the same scenes, so that they share the draws.
        block: Number of scenes in a row that are drawn together, for tiles of one event or place.

    Returns:
        statistic(a) - statistic(b) on all scenes, and its 2.5 and 97.5 percentiles over the
        resamples, each averaged over the runs. The first is not the mean of the resamples, which
        is nearer to 0 where few scenes are drawn repeatedly (NMI).

    Raises:
        DataError: If the methods were not scored on the same number of scenes.
    """
    rng, gains = np.random.default_rng(seed), []
    for a, b in zip(runs_a, runs_b, strict=True):
        if len(a) != len(b) or len(a) == 0:
            raise DataError(
                f"The bootstrap got {len(a)} scenes for one method and {len(b)} for the other;"
                " score both on the same scenes, at least one."
            )
        if same_scenes:
            rng = np.random.default_rng(seed)
        starts = np.arange(0, len(a), block)
        blocks = len(starts)
        counts = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=n)  # (n, blocks)
        drawn = (np.tensordot(counts, np.add.reduceat(x, starts), axes=1) for x in (a, b))
        gains.append(np.subtract(*map(statistic, drawn)))  # (n,)
    low, high = np.percentile(np.mean(gains, axis=0), (2.5, 97.5))
    return float(differences(runs_a, runs_b, statistic).mean()), float(low), float(high)
