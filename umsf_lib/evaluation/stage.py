"""Scores of runs as tidy records, and tables built from records only."""

from __future__ import annotations

import json
import math
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
from ..progress import Progress, each
from ..run import Run, write_arrays, write_json
from .metrics import (
    Score,
    ami,
    ari,
    confusion,
    constant_score,
    contingency,
    equal_size_ceiling,
    hungarian,
    naming,
    nmi,
    paired_bootstrap,
    scores,
)

OVERALL = ("acc", "nmi", "ami", "ari", "macro_f1", "miou", "kappa", "many_to_one", "classes_found")
RECORDS = ("metrics.json", "probe.json")  # files of a run
VALUE = ["matching", "metric", "class", "value"]
COLUMNS = ["run", "method", "variant", "profile", "dataset", "protocol", "split", "seed", *VALUE]
Counts = tuple[np.ndarray, np.ndarray]  # what dense_tables returns


def evaluate(
    run: Run,
    task: ClusteringTask,
    methods: Mapping[str, Callable[[], Classifier]],
    *,
    progress: Progress | None = None,
) -> bool:
    """Run the stage ``evaluate``: score all methods, write ``confusions.npz``, ``metrics.json``.

    The matching of clusters to classes is fitted on the pooled validation scenes and applied to the
    test scenes: one to one (``validation``), and each cluster by itself (``named``, see
    ``metrics.naming``). A data set without validation scenes (a transductive one) has only the
    matching fitted on the test scenes, and the records say so. A method that has learnt the classes
    from labels is not matched. A protocol is left out if no test pixel or patch is labelled well
    enough, and all of them if the data has no classes.

    Args:
        run: its finished stages are read by the methods.
        task: scenes and settings.
        methods: name -> function that makes its classifier, called only if scores are possible.
        progress: told of each method that is fitted and each scene that is scored.

    Returns:
        True if it was computed.
    """
    scenes, stages = task.scenes, ("pretrain", "cluster", *methods)
    inputs = run.config.section("map", "cluster", "seed") | {
        "outputs": {name: run.outputs_of(name) for name in stages if run.is_done(name)},
        "methods": list(methods),
        "scenes": [scenes.folder.name, scenes.split],  # corrected labels are scored anew
    }

    # A method is a function of a module above this one, or a partial of such a function.
    modules = {getattr(make, "func", make).__module__ for make in methods.values()}
    return run.stage(
        "evaluate",
        lambda: _write_scores(run, task, methods, progress),
        inputs,
        modules=sorted(modules),
    )


def _write_scores(
    run: Run,
    task: ClusteringTask,
    methods: Mapping[str, Callable[[], Classifier]],
    progress: Progress | None,
) -> list[str]:
    """Fit and score the methods; return the names of the files written."""
    scenes = task.scenes
    arrays, rows = {}, []
    makers = list(methods.values()) if scenes.labelled else []
    every = [make() for make in each(makers, progress, "fit methods")]
    val, test = scenes.indices("val"), scenes.indices("test")
    matched = [one for one in every if not one.predicts_classes]
    counted = score_scenes(matched, task, [*val, *test], progress=progress)
    learnt = [one for one in every if one.predicts_classes]
    known = score_scenes(learnt, task, test, progress=progress)
    truths = [true_classes(task, scene) for scene in val]
    itself = np.arange(len(scenes.layout.classes))
    for name, protocols in (counted | known).items():
        for protocol, both in protocols.items():
            before, tables = np.split(both, [len(both) - len(test)])
            if not tables.any():
                continue  # no labels there; or scenes smaller than a patch, thinly labelled
            if name not in known:
                mappings = matchings(before, tables)
            else:
                fitted = any((true[protocol] != IGNORE).any() for true in truths)
                names = ("validation", "named", "test") if fitted else ("test",)
                mappings = dict.fromkeys(names, itself)
            base = identity(run.folder.name, run.config, name, protocol)
            rows += records(base, scenes.layout.classes, tables, mappings)
            arrays[f"{name}/{protocol}/test"] = tables
            arrays[f"{name}/{protocol}/mapping"] = next(iter(mappings.values()))
            if "named" in mappings:
                arrays[f"{name}/{protocol}/named"] = mappings["named"]
    write_arrays(run.path("confusions.npz"), **arrays)
    write_json(run.path("metrics.json"), rows)
    return ["confusions.npz", "metrics.json"]


def score_scenes(
    classifiers: Sequence[Classifier],
    task: ClusteringTask,
    which: Sequence[int],
    *,
    progress: Progress | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Count clusters and classes in scenes: method -> protocol -> ``(S, K', K)``, S scenes.

    ``dense`` counts pixels. ``patch`` counts patches of ``map.patch_px``: the most frequent label
    against the strongest mean posterior, where at least half of the patch is labelled.
    """
    config, classes = task.config, len(task.scenes.layout.classes)
    found: dict[str, dict[str, np.ndarray]] = {}
    for one in classifiers:
        empty = np.zeros((len(which), one.num_clusters, classes), np.int64)
        found[one.name] = {"dense": empty, "patch": empty.copy()}
    scored = list(enumerate(which)) if classifiers else []
    for row, scene in each(scored, progress, "score scenes"):
        true = true_classes(task, scene)
        for one in classifiers:  # inside, so that methods with equal tokens share them
            posteriors = one.pixels(task.store, scene, config.cluster.smoothing_px)  # (K', H, W)
            means = block_means(posteriors, config.map.patch_px)
            for name, maps in ("dense", posteriors), ("patch", means):
                clusters = maps.argmax(0).cpu().numpy()
                table = contingency(clusters, true[name], one.num_clusters, classes)
                found[one.name][name][row] = table
    return found


def true_classes(task: ClusteringTask, scene: int) -> dict[str, np.ndarray]:
    """Return the labels of a scene by protocol: pixels ``(H, W)``, patches ``(rows, cols)``."""
    labels, patch_px = valid_labels(task.scenes, scene), task.config.map.patch_px
    patches = majority_label(labels, patch_px, len(task.scenes.layout.classes))
    return {"dense": labels, "patch": patches}


def majority_label(labels: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Return the label ``(rows, cols)`` of each whole patch; IGNORE if less than half labelled."""
    rows, cols = (side // size for side in labels.shape)
    blocks = labels[: rows * size, : cols * size].reshape(rows, size, cols, size)
    counts = np.stack([(blocks == c).sum(axis=(1, 3)) for c in range(classes)])  # (K, rows, cols)
    enough = counts.sum(axis=0) >= size * size / 2
    majority: np.ndarray = np.where(enough, counts.argmax(axis=0), IGNORE)
    return majority


def block_means(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Average each whole block: ``maps (C, h, w)`` -> ``(C, h // size, w // size)``."""
    rows, cols = (side // size for side in maps.shape[1:])
    inside = maps[:, : rows * size, : cols * size]
    return inside.reshape(len(inside), rows, size, cols, size).mean(dim=(2, 4))


def matchings(val: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Fit the matchings: name -> class of each cluster ``(K',)``; the one that counts is first."""
    pooled, fitted = val.sum(axis=0), {}
    if pooled.any():
        fitted = {"validation": hungarian(pooled), "named": naming(pooled)}
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
    table = tables.sum(axis=0)
    rows: list[tuple[str, str, str | None, float]] = []
    for matching, mapping in mappings.items():
        scored = scores(table, mapping)
        rows += [(matching, metric, None, scored[metric]) for metric in OVERALL]
        for metric in ("f1", "recall"):
            found = ((land.name, scored[metric].get(land.id)) for land in classes)
            rows += [(matching, metric, name, value) for name, value in found if value is not None]
    rows.append(("none", "constant", None, constant_score(table)))
    rows.append(("none", "equal_size_ceiling", None, equal_size_ceiling(table)))
    return [{**base, **dict(zip(VALUE, row, strict=True))} for row in rows]


def load_records(folders: Iterable[Path]) -> pd.DataFrame:
    """Load the records of runs, scores of maps and of frozen features, as one table."""
    paths = (folder / name for folder in folders for name in RECORDS)
    rows = [
        row
        for path in paths
        if path.is_file()
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


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


def headline(records: pd.DataFrame) -> pd.DataFrame:
    """Select the matching that counts: fitted on validation scenes, else on test scenes."""
    first = "validation" if "validation" in set(records.matching) else "test"
    return records[records.matching == first]


def limits(records: pd.DataFrame, protocol: str) -> dict[str, float]:
    """Return what labels alone decide: constant predictor, equal-size ceiling; NaN if missing."""
    found = records.query("protocol == @protocol").groupby("metric").value.max()
    return {name: float(found.get(name, math.nan)) for name in ("constant", "equal_size_ceiling")}


def fitted_matching(run: Run, method: str) -> np.ndarray | None:
    """Load a method's matching ``(K',)`` cluster -> class that ``evaluate`` fitted on dense pixels.

    None if the data has no classes.

    Raises:
        MissingStageError: if the run has not been evaluated.
    """
    run.outputs_of("evaluate")
    mapping = dense_tables(run, method)[1]
    return mapping if mapping.size else None


def gains(run: Run, ours: str, others: Iterable[str], statistic: Score) -> pd.DataFrame:
    """Subtract the scores of other methods from ours, with 95 % intervals over the test scenes.

    Returns:
        A row per other method, with columns ``gain``, ``low``, ``high``; no row if the data has no
        classes.
    """
    mine, rows = dense_tables(run, ours), {}
    for other in others if mine[1].size else ():
        rows[other] = paired_gain([mine], [dense_tables(run, other)], statistic)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "low", "high"])


def dense_tables(run: Run, method: str, mapping: str = "mapping") -> Counts:
    """Load what ``evaluate`` kept of a method's test scenes in the dense protocol.

    Args:
        run: an evaluated run.
        method: its name.
        mapping: "mapping" for the matching that counts, or "named", if there are validation scenes.

    Returns:
        Tables ``(S, K', K)`` int64 and the matching ``(K',)`` cluster -> class; both empty if the
        data has no classes.
    """
    with np.load(run.path("confusions.npz")) as saved:
        if not saved.files:
            return np.zeros((0, 0, 0), np.int64), np.zeros(0, np.int64)
        return saved[f"{method}/dense/test"], saved[f"{method}/dense/{mapping}"]


def paired_gain(
    ours: Iterable[Counts], theirs: Iterable[Counts], statistic: Score, **options: Any
) -> tuple[float, float, float]:
    """Run ``metrics.paired_bootstrap`` on the results of ``dense_tables``, one pair per run."""
    pair = (tables_to_score(ours, statistic), tables_to_score(theirs, statistic))
    return paired_bootstrap(*pair, statistic, **options)


def tables_to_score(runs: Iterable[Counts], statistic: Score) -> list[np.ndarray]:
    """Return the tables that a score reads, one per result of ``dense_tables``.

    NMI, AMI and ARI read the clusters themselves, the other scores their matched classes.
    """
    of_clusters = statistic in (nmi, ami, ari)
    return [t if of_clusters else confusion(t, mapping) for t, mapping in runs]
