"""Whole-scene maps as GeoTIFF, coloured and named, on the grid of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..config import IGNORE
from ..data.layout import LandClass
from ..data.rasters import write_raster
from ..data.scene_set import SceneSet, physical, valid_labels
from ..data.windows import PixelStore
from ..figures.imagery import cluster_classes, optical_composite, sar_image
from ..run import Run

NODATA = 0  # code of pixels without data in class maps; class codes begin at 1 or above


@dataclass(frozen=True)
class Legend:
    """What the clusters of a map are called, and how they are coloured.

    Attributes:
        classes: rows of the class table, or one per cluster where nothing names them.
        of_cluster: ``(K',)`` row of each cluster.
    """

    classes: tuple[LandClass, ...]
    of_cluster: np.ndarray


def legend_of(scenes: SceneSet, num_clusters: int, mapping: np.ndarray | None) -> Legend:
    """Class names through a mapping fitted on labels, or plain cluster numbers without one.

    Args:
        scenes: their layout has the class table.
        num_clusters: K'.
        mapping: ``(K',)`` cluster -> class id, -1 for none; None where there are no labels.
    """
    if mapping is None:
        return Legend(tuple(cluster_classes(num_clusters)), np.arange(num_clusters))
    spare = cluster_classes(num_clusters)
    table = list(scenes.layout.classes)
    if any(not NODATA < c.code <= 255 for c in table):  # a data set may count its classes from 0
        table = [replace(c, code=c.id + 1) for c in table]
    rows = np.array(mapping)
    for cluster in np.flatnonzero(rows < 0):  # more clusters than classes: keep them apart
        code = max(c.code for c in table) + 1
        rows[cluster] = len(table)
        table.append(LandClass(len(table), spare[cluster].name, code, spare[cluster].rgb))
    return Legend(tuple(table), rows)


def predict_scene(
    classifier: Classifier, store: PixelStore, scene: int, smoothing_px: float, legend: Legend
) -> tuple[np.ndarray, np.ndarray]:
    """Class row per pixel ``(H, W)`` uint8 and its posterior ``(H, W)`` float32."""
    posteriors = classifier.pixels(store, scene, smoothing_px)
    confidence, cluster = posteriors.max(dim=0)
    table = torch.from_numpy(legend.of_cluster.astype(np.uint8)).to(cluster.device)
    return table[cluster].cpu().numpy(), confidence.cpu().numpy()


def write_maps(
    run: Run,
    task: ClusteringTask,
    classifier: Classifier,
    mapping: np.ndarray | None,
    which: Sequence[int],
) -> bool:
    """Stage ``maps``: prediction, confidence, label, error and quicklooks of scenes.

    Files ``maps/<scene>.<layer>.tif`` carry the source's CRS and transform; class maps a colour
    table and class names, so that QGIS opens them coloured.

    Returns:
        True if they were written.
    """
    inputs = run.config.section("map", "cluster") | {"cluster_outputs": run.outputs_of("cluster")}
    inputs |= {"which": list(which), "mapping": None if mapping is None else mapping.tolist()}
    legend = legend_of(task.scenes, classifier.num_clusters, mapping)

    def make() -> list[str]:
        files = []
        for scene in which:
            files += _write_scene(run, task, classifier, legend, scene)
        return files

    return run.stage("maps", make, inputs)


def _write_scene(
    run: Run, task: ClusteringTask, classifier: Classifier, legend: Legend, scene: int
) -> list[str]:
    scenes = task.scenes
    name = scenes.records[scene].name
    smoothing = run.config.cluster.smoothing_px
    predicted, confidence = predict_scene(classifier, task.store, scene, smoothing, legend)
    layers = scene_layers(scenes, scene, predicted, confidence, legend)
    grid = scenes.sources[name].profile()
    colors = {c.code: c.rgb for c in legend.classes}
    names = {c.code: c.name for c in legend.classes}
    written = []
    for layer, array in layers.items():
        file = f"maps/{name}.{layer}.tif"
        coded = layer in ("prediction", "label")
        write_raster(
            run.path(file),
            array,
            crs=grid.crs,
            transform=grid.transform,
            nodata=NODATA if coded else None,
            colors=colors if coded else None,
            class_names=names if coded else None,
        )
        written.append(file)
    return written


def scene_layers(
    scenes: SceneSet, scene: int, predicted: np.ndarray, confidence: np.ndarray, legend: Legend
) -> dict[str, np.ndarray]:
    """Arrays of the map files of one scene: class codes, confidence, quicklooks, error."""
    valid = np.asarray(scenes.plane("valid", scene))
    codes = np.array([c.code for c in legend.classes], np.uint8)
    layers: dict[str, np.ndarray] = {
        "prediction": np.where(valid, codes[predicted], NODATA).astype(np.uint8),
        "confidence": np.where(valid, confidence, np.nan).astype(np.float32),
    }
    layers |= quicklooks(scenes, scene, valid)
    labels = valid_labels(scenes, scene)
    if (labels != IGNORE).any():
        known = labels != IGNORE
        coded = codes[np.where(known, labels, 0)]
        layers["label"] = np.where(known, coded, NODATA).astype(np.uint8)
        wrong = (predicted != labels).astype(np.uint8)
        layers["error"] = np.where(known, wrong, IGNORE).astype(np.uint8)
    return layers


def quicklooks(scenes: SceneSet, scene: int, valid: np.ndarray) -> dict[str, np.ndarray]:
    """8-bit pictures for the browser: optical ``(3, H, W)``, SAR ``(H, W)`` on a log scale."""
    layout = scenes.layout
    optical = np.asarray(scenes.plane("optical", scene))
    assert layout.optical.rgb is not None
    picture = optical_composite(optical, layout.optical.rgb, valid)  # (H, W, 3) in [0, 1]
    looks = {"optical": (255 * picture).astype(np.uint8).transpose(2, 0, 1)}
    if layout.sar is not None:
        intensity = physical(np.asarray(scenes.plane("sar", scene))[0], "sar", layout)
        looks["sar"] = (255 * sar_image(intensity, valid)[..., 0]).astype(np.uint8)
    return looks
