"""Scores of runs as tidy records, and tables built from records only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..config import IGNORE, Config
from ..data.layout import LandClass
from ..data.scene_set import valid_labels
from ..run import Run, write_arrays, write_json
from .metrics import (
    ari,
    confusion,
    constant_score,
    contingency,
    equal_size_ceiling,
    hungarian,
    nmi,
    paired_bootstrap,
    scores,
)

OVERALL = ("acc", "nmi", "ari", "macro_f1", "miou", "kappa", "many_to_one")
LIMITS = ("constant", "equal_size_ceiling")
RECORDS = ("metrics.json", "probe.json")  # files of a run
COLUMNS = ["run", "method", "variant", "profile", "dataset", "protocol", "split", "seed"]
COLUMNS += ["matching", "metric", "class", "value"]
Tables = dict[str, np.ndarray]  # protocol -> (S, K', K) int64, one table per scene


def score_scenes(
    classifiers: Sequence[Classifier], task: ClusteringTask, which: Sequence[int]
) -> dict[str, Tables]:
    """Compute contingency tables of classifiers on scenes, per method and protocol.

    ``dense`` counts pixels. ``patch`` counts patches of ``map.patch_px``: the most frequent label
    against the strongest mean posterior, where at least half of the patch is labelled.
    """
    classes = len(task.scenes.layout.classes)
    found: dict[str, Tables] = {}
    for classifier in classifiers:
        empty = np.zeros((len(which), classifier.num_clusters, classes), np.int64)
        found[classifier.name] = {"dense": empty, "patch": empty.copy()}
    for row, scene in enumerate(which):
        for classifier in classifiers:  # inside, so that methods with equal tokens share them
            for protocol, (predicted, true) in _pairs(classifier, task, scene).items():
                table = contingency(predicted, true, classifier.num_clusters, classes)
                found[classifier.name][protocol][row] = table
    return found


def _pairs(
    classifier: Classifier, task: ClusteringTask, scene: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return protocol -> cluster and class of each pixel or patch of a scene."""
    config, classes = task.config, len(task.scenes.layout.classes)
    # (K', H, W)
    posteriors = classifier.pixels(task.store, scene, config.cluster.smoothing_px)
    labels = valid_labels(task.scenes, scene)
    dense = posteriors.argmax(0).cpu().numpy(), labels
    return {
        "dense": dense,
        "patch": patch_majority(posteriors, labels, config.map.patch_px, classes),
    }


def patch_majority(
    posteriors: torch.Tensor, labels: np.ndarray, size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted cluster and most frequent label of each whole patch (``majority_label``)."""
    predicted = block_means(posteriors, size).argmax(0).cpu().numpy()
    return predicted, majority_label(labels, size, classes)


def block_means(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Average each whole block: ``maps (C, h, w)`` -> ``(C, h // size, w // size)``."""
    rows, cols = (side // size for side in maps.shape[1:])
    inside = maps[:, : rows * size, : cols * size]
    return inside.reshape(len(inside), rows, size, cols, size).mean(dim=(2, 4))


def majority_label(labels: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Return the label ``(rows, cols)`` of each whole patch; IGNORE if less than half labelled."""
    rows, cols = (side // size for side in labels.shape)
    blocks = labels[: rows * size, : cols * size].reshape(rows, size, cols, size)
    counts = np.stack([(blocks == c).sum(axis=(1, 3)) for c in range(classes)])  # (K, rows, cols)
    enough = counts.sum(axis=0) >= size * size / 2
    majority: np.ndarray = np.where(enough, counts.argmax(axis=0), IGNORE)
    return majority


def evaluate(
    run: Run, task: ClusteringTask, methods: Mapping[str, Callable[[], Classifier]]
) -> bool:
    """Run the stage ``evaluate``: score all methods, write ``confusions.npz``, ``metrics.json``.

    The matching of clusters to classes is fitted on the pooled validation scenes and applied to the
    test scenes. A data set without validation scenes (a transductive one) has only the matching
    fitted on the test scenes, and the records say so. A protocol is left out if no test pixel or
    patch is labelled well enough, and all of them if the data has no classes.

    Args:
        run: its finished stages are read by the methods.
        task: scenes and settings.
        methods: name -> function that makes its classifier, called only if scores are possible.

    Returns:
        True if it was computed.
    """
    inputs: dict[str, Any] = run.config.section("map", "cluster", "seed")
    stages = ("pretrain", "cluster", *methods)
    inputs["outputs"] = {name: run.outputs_of(name) for name in stages if run.is_done(name)}
    inputs["methods"] = list(methods)
    scenes = task.scenes
    inputs["scenes"] = [scenes.folder.name, scenes.split]  # corrected labels are scored anew

    def score() -> list[str]:
        arrays, rows = {}, []
        every = [make() for make in methods.values()] if scenes.labelled else []
        val_tables = score_scenes(every, task, scenes.indices("val"))
        test_tables = score_scenes(every, task, scenes.indices("test"))
        for method in every:
            val, test = val_tables[method.name], test_tables[method.name]
            for protocol in test:
                if not test[protocol].any():
                    continue  # no labels there; or scenes smaller than a patch, thinly labelled
                mappings = matchings(val[protocol], test[protocol])
                base = identity(run.folder.name, run.config, method.name, protocol)
                rows += records(base, scenes.layout.classes, test[protocol], mappings)
                arrays[f"{method.name}/{protocol}/test"] = test[protocol]
                arrays[f"{method.name}/{protocol}/mapping"] = next(iter(mappings.values()))
        write_arrays(run.path("confusions.npz"), **arrays)
        write_json(run.path("metrics.json"), rows)
        return ["confusions.npz", "metrics.json"]

    return run.stage("evaluate", score, inputs)


def matchings(val: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Fit the matchings: name -> class of each cluster ``(K',)``; the one that counts is first."""
    fitted = {"validation": hungarian(val.sum(axis=0))} if val.any() else {}
    return fitted | {"test": hungarian(test.sum(axis=0))}


def identity(run: str, config: Config, method: str, protocol: str) -> dict[str, Any]:
    """Return the columns that say where the value of a record comes from."""
    return {
        "run": run,
        "method": method,
        "variant": f"{config.model.sensors}-{config.model.fusion}-{config.cluster.initial}",
        "profile": config.profile,
        "dataset": Path(config.data).name if config.data else config.synthetic.difficulty,
        "protocol": protocol,
        "split": "test",
        "seed": config.seed,
    }


def records(
    base: Mapping[str, Any],
    classes: Sequence[LandClass],
    tables: np.ndarray,
    mappings: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Make tidy records of one method and protocol, one value each.

    Args:
        base: columns that all of them share (see ``identity``).
        classes: classes of the layout.
        tables: counts ``(S, K', K)``, one per scene.
        mappings: see ``matchings``.
    """
    table, rows = tables.sum(axis=0), []

    def add(matching: str, metric: str, value: float, name: str | None = None) -> None:
        found = {"matching": matching, "metric": metric, "class": name, "value": value}
        rows.append({**base, **found})

    for matching, mapping in mappings.items():
        scored = scores(table, mapping)
        for metric in OVERALL:
            add(matching, metric, float(scored[metric]))
        for land in classes:
            if land.id in scored["f1"]:
                add(matching, "f1", float(scored["f1"][land.id]), land.name)
    add("none", "constant", constant_score(table))
    add("none", "equal_size_ceiling", equal_size_ceiling(table))
    return rows


def dense_tables(run: Run, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Load what ``evaluate`` kept of a method's test scenes in the dense protocol.

    Returns:
        Tables ``(S, K', K)`` int64 and the matching ``(K',)`` cluster -> class; both empty if the
        data has no classes.
    """
    with np.load(run.path("confusions.npz")) as saved:
        if not saved.files:
            return np.zeros((0, 0, 0), np.int64), np.zeros(0, np.int64)
        return saved[f"{method}/dense/test"], saved[f"{method}/dense/mapping"]


def fitted_matching(run: Run, method: str) -> np.ndarray | None:
    """Load a method's matching ``(K',)`` cluster -> class that ``evaluate`` fitted on dense pixels.

    None if the data has no classes.

    Raises:
        MissingStageError: if the run has not been evaluated.
    """
    run.outputs_of("evaluate")
    mapping = dense_tables(run, method)[1]
    return mapping if mapping.size else None


def gains(
    run: Run, ours: str, others: Iterable[str], statistic: Callable[[np.ndarray], float]
) -> pd.DataFrame:
    """Subtract the scores of other methods from ours, with 95 % intervals over the test scenes.

    Args:
        run: an evaluated run.
        ours: name of the method.
        others: methods to compare with, one row each.
        statistic: score of a table, for example ``metrics.accuracy``.

    Returns:
        Columns ``gain``, ``low``, ``high``; no row if the data has no classes.
    """
    mine, rows = dense_tables(run, ours), {}
    for other in others if mine[1].size else ():
        rows[other] = paired_gain([mine], [dense_tables(run, other)], statistic)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "low", "high"])


def tables_to_score(
    runs: Iterable[tuple[np.ndarray, np.ndarray]], statistic: Callable[[np.ndarray], float]
) -> list[np.ndarray]:
    """Return the tables that a score reads, one per pair of ``dense_tables``.

    NMI and ARI read the clusters themselves, the other scores their matched classes.
    """
    return [t if statistic in (nmi, ari) else confusion(t, mapping) for t, mapping in runs]


def paired_gain(
    ours: Sequence[tuple[np.ndarray, np.ndarray]],
    theirs: Sequence[tuple[np.ndarray, np.ndarray]],
    statistic: Callable[[np.ndarray], float],
    *,
    same_scenes: bool = False,
) -> tuple[float, float, float]:
    """Run ``metrics.paired_bootstrap`` on the results of ``dense_tables``, one pair per run."""
    pair = (tables_to_score(ours, statistic), tables_to_score(theirs, statistic))
    return paired_bootstrap(*pair, statistic, same_scenes=same_scenes)


def load_records(folders: Iterable[Path]) -> pd.DataFrame:
    """Load the records of runs, scores of maps and of frozen features, as one table."""
    rows: list[dict[str, Any]] = []
    for path in (folder / name for folder in folders for name in RECORDS):
        if path.is_file():
            rows += json.loads(path.read_text())
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def headline(records: pd.DataFrame) -> pd.DataFrame:
    """Select the matching that counts: fitted on validation scenes, else on test scenes."""
    first = "validation" if "validation" in set(records.matching) else "test"
    return records[records.matching == first]


def score_table(records: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Tabulate overall scores under the matching that counts: a row per method."""
    chosen = headline(records).query("protocol == @protocol")
    return chosen.pivot_table("value", "method", "metric", sort=False).reindex(columns=OVERALL)


def class_f1(records: pd.DataFrame, classes: Sequence[LandClass]) -> dict[str, np.ndarray]:
    """Return method -> F1 ``(K,)`` of each class in the dense protocol, NaN if it is absent."""
    chosen = headline(records).query("protocol == 'dense' and metric == 'f1'")
    table = chosen.pivot_table("value", "method", "class", sort=False)
    table = table.reindex(columns=[land.name for land in classes])
    return {str(method): row.to_numpy() for method, row in table.iterrows()}


def limits(records: pd.DataFrame, protocol: str) -> dict[str, float]:
    """Return what labels alone decide: constant predictor, equal-size ceiling; NaN if missing."""
    chosen = records.query("protocol == @protocol")
    return {name: float(chosen[chosen.metric == name].value.max()) for name in LIMITS}
