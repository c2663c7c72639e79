"""Write maps of whole scenes as GeoTIFFs, with class names and colours, on the source grid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..config import IGNORE, MOST_CLASSES, ConfigError
from ..data.layout import LandClass
from ..data.rasters import opened, write_raster
from ..data.scene_set import SceneSet, valid_labels
from ..data.windows import PixelStore
from ..figures.imagery import cluster_classes, optical_composite, sar_image
from ..progress import Progress, each
from ..run import Run, write_json
from .colors import cluster_means, colored, judged

LEGEND = "maps/legend.json"
NODATA = 0  # code of pixels without data in class maps; class codes begin at 1 or above


def write_maps(
    run: Run,
    task: ClusteringTask,
    classifier: Classifier,
    mapping: np.ndarray | None,
    which: Sequence[int],
    *,
    progress: Progress | None = None,
) -> bool:
    """Run stage ``maps``: write prediction, confidence, label, error and quicklooks of scenes.

    The files ``maps/<scene>.<layer>.tif`` are cloud optimized GeoTIFFs with the CRS and transform
    of the source. Class maps have a colour table and class names, which QGIS shows. Clusters
    without names are numbered and coloured by their bands in all these scenes (see ``colors``).
    ``maps/legend.json`` holds the legend.

    A classifier counts as the same if its name, its number of clusters and the stages that trained
    it are. A digest of its posteriors would tell more, but would cost the prediction of a scene and
    differ between CPU and GPU. So other classifiers need other names, as in tables of scores.

    Args:
        run: an open run with a finished stage ``cluster``.
        task: holds the scenes and their pixel store.
        classifier: gives the posteriors of the clusters.
        mapping: see ``legend_of``.
        which: indices of the scenes.
        progress: told of each scene.

    Returns:
        True if the files were written, False if they were up to date.
    """
    own = [classifier.name] if run.is_done(classifier.name) else []  # of a learned baseline
    inputs = run.config.section("map", "cluster") | {
        "classifier": [classifier.name, classifier.num_clusters],
        "outputs": {stage: run.outputs_of(stage) for stage in ("pretrain", "cluster", *own)},
        "mapping": None if mapping is None else mapping.tolist(),
        "scenes": task.scenes.folder.name,  # corrected labels are mapped anew
        "which": list(which),
    }
    legend = legend_of(task.scenes, classifier.num_clusters, mapping)

    def make() -> list[str]:
        scenes = each(which, progress, "scenes")
        files = [f for scene in scenes for f in _write_scene(run, task, classifier, legend, scene)]
        found, table = (legend, None) if mapping is not None else _color(run, task, legend, which)
        _keep(run, found, table)
        return [*files, LEGEND]

    return run.stage("maps", make, inputs)


@dataclass(frozen=True)
class Legend:
    """The names and colours of the clusters of a map.

    Attributes:
        classes: rows of the class table, or one row per cluster if clusters have no class names.
        of_cluster: ``(K',)`` row of each cluster in ``classes``.
        said: what blue and green mean, and by which bands; empty where clusters have class names.
    """

    classes: tuple[LandClass, ...]
    of_cluster: np.ndarray
    said: str = ""


def legend_of(scenes: SceneSet, num_clusters: int, mapping: np.ndarray | None) -> Legend:
    """Make the legend: class names if there is a mapping, else cluster numbers in plain colours.

    Args:
        scenes: prepared scenes, whose layout has the class table.
        num_clusters: number of clusters K'.
        mapping: ``(K',)`` cluster -> class id, fitted on labels, -1 for none; None without labels.

    Raises:
        ConfigError: classes and clusters without a class are too many for codes of one byte.
    """
    numbered = cluster_classes(num_clusters)
    if mapping is None:
        return Legend(numbered, np.arange(num_clusters))
    table, rows = list(scenes.layout.classes), np.array(mapping)
    further = np.flatnonzero(rows < 0)  # more clusters than classes: keep them apart
    if len(table) + len(further) > MOST_CLASSES:
        raise ConfigError(
            f"{len(table)} classes and {len(further)} clusters without a class are too many for a "
            f"map, which holds {MOST_CLASSES}; lower cluster.num_clusters."
        )
    codes = [c.code for c in table]
    if min(codes) <= NODATA or max(codes) + len(further) > 255:  # 0 may be a class of a data set
        table = [replace(c, code=c.id + 1) for c in table]
    for cluster in further:
        code = max(c.code for c in table) + 1
        rows[cluster] = len(table)
        table.append(replace(numbered[cluster], id=len(table), code=code))
    return Legend(tuple(table), rows)


def load_legend(run: Run) -> Legend:
    """Read the legend of the maps that a run has written.

    Raises:
        MissingStageError: the maps are not there.
    """
    run.outputs_of("maps")
    found = json.loads(run.path(LEGEND).read_text(encoding="utf-8"))
    classes = tuple(LandClass(**row) for row in found["classes"])
    return Legend(classes, np.array(found["of_cluster"]), found["said"])


def _keep(run: Run, legend: Legend, table: pd.DataFrame | None) -> None:
    """Write the legend, and for clusters without names what decided their colours."""
    names = ("id", "name", "code", "rgb")
    rows = [{name: getattr(c, name) for name in names} for c in legend.classes]
    found = {"said": legend.said, "classes": rows, "of_cluster": legend.of_cluster.tolist()}
    if table is not None:
        found["clusters"] = json.loads(table.round(4).to_json(orient="records"))
    write_json(run.path(LEGEND), found)


def _color(
    run: Run, task: ClusteringTask, plain: Legend, which: Sequence[int]
) -> tuple[Legend, pd.DataFrame]:
    """Number and colour the clusters of maps that are written; write the maps again with these."""

    def clusters() -> Iterator[tuple[int, np.ndarray]]:
        for scene in which:
            with opened(run.path(_file(task, scene, "prediction"))) as source:
                yield scene, source.read(1) - 1  # nodata becomes 255

    table, said = judged(
        cluster_means(task.scenes, clusters(), len(plain.classes)), task.scenes.layout
    )
    legend = Legend(*colored(table), said)
    codes = np.full(256, NODATA, np.uint8)
    codes[: len(legend.of_cluster)] = legend.of_cluster + 1
    for scene, ids in clusters():
        _write_layer(run, task, legend, scene, "prediction", codes[ids])
    return legend, table


def _write_scene(
    run: Run, task: ClusteringTask, classifier: Classifier, legend: Legend, scene: int
) -> list[str]:
    """Map one scene; return the names of its files."""
    smoothing = run.config.cluster.smoothing_px
    predicted, confidence = predict_scene(classifier, task.store, scene, smoothing, legend)
    layers = scene_layers(task.scenes, scene, predicted, confidence, legend)
    return [_write_layer(run, task, legend, scene, layer, array) for layer, array in layers.items()]


def _file(task: ClusteringTask, scene: int, layer: str) -> str:
    return f"maps/{task.scenes.records[scene].name}.{layer}.tif"


def _write_layer(
    run: Run, task: ClusteringTask, legend: Legend, scene: int, layer: str, array: np.ndarray
) -> str:
    """Write one layer of a scene; return the name of its file."""
    grid = task.scenes.sources[task.scenes.records[scene].name].profile()
    coded: dict[str, Any] = {
        "nodata": NODATA,
        "colors": {c.code: c.rgb for c in legend.classes},
        "class_names": {c.code: c.name for c in legend.classes},
    }
    write_raster(
        run.path(_file(task, scene, layer)),
        array,
        crs=grid.crs,
        transform=grid.transform,
        overviews="mode" if layer in ("prediction", "label", "error") else "average",
        **(coded if layer in ("prediction", "label") else {}),
    )
    return _file(task, scene, layer)


def predict_scene(
    classifier: Classifier, store: PixelStore, scene: int, smoothing_px: float, legend: Legend
) -> tuple[np.ndarray, np.ndarray]:
    """Classify one scene, with posteriors smoothed by a guided filter (sigma in px; 0: not at all).

    Returns:
        Row of ``legend.classes`` per pixel ``(H, W) uint8``, and the posterior of the pixel's
        cluster ``(H, W) float32``.
    """
    posteriors = classifier.pixels(store, scene, smoothing_px)
    confidence, cluster = posteriors.max(dim=0)
    rows = torch.as_tensor(legend.of_cluster, dtype=torch.uint8, device=cluster.device)
    return rows[cluster].cpu().numpy(), confidence.cpu().numpy()


def scene_layers(
    scenes: SceneSet, scene: int, predicted: np.ndarray, confidence: np.ndarray, legend: Legend
) -> dict[str, np.ndarray]:
    """Return layer -> array of one scene: class codes, confidence, quicklooks and error."""
    valid = np.asarray(scenes.plane("valid", scene))
    codes = np.full(256, NODATA, np.uint8)
    codes[: len(legend.classes)] = [c.code for c in legend.classes]
    layers: dict[str, np.ndarray] = {
        "prediction": np.where(valid, codes[predicted], np.uint8(NODATA)),
        "confidence": np.where(valid, confidence, np.float32(np.nan)),
    }
    layers |= quicklooks(scenes, scene, valid)
    labels = valid_labels(scenes, scene)
    if (labels != IGNORE).any():
        layers["label"] = codes[labels]  # the table has no class 255 (ignore): no data
        wrong = (predicted != labels).astype(np.uint8)
        layers["error"] = np.where(labels == IGNORE, np.uint8(IGNORE), wrong)
    return layers


def quicklooks(scenes: SceneSet, scene: int, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Return 8-bit pictures: optical ``(3, H, W)`` and SAR ``(H, W)`` on a log scale."""
    rgb, log_sar = scenes.layout.optical.rgb, scenes.log_sar(scene)
    assert rgb is not None
    picture = optical_composite(scenes.plane("optical", scene), rgb, valid)  # (H, W, 3) in [0, 1]
    looks = {"optical": (255 * picture).astype(np.uint8).transpose(2, 0, 1)}
    if log_sar is not None:
        looks["sar"] = (255 * sar_image(log_sar, valid)[..., 0]).astype(np.uint8)
    return looks
