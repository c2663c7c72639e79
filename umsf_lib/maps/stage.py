"""Write maps of whole scenes as GeoTIFFs, with class names and colours, on the source grid."""

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
    """The names and colours of the clusters of a map.

    Attributes:
        classes: rows of the class table, or one row per cluster if clusters have no class names.
        of_cluster: ``(K',)`` row of each cluster in ``classes``.
    """

    classes: tuple[LandClass, ...]
    of_cluster: np.ndarray


def legend_of(scenes: SceneSet, num_clusters: int, mapping: np.ndarray | None) -> Legend:
    """Make the legend: class names if there is a mapping, else cluster numbers.

    Args:
        scenes: prepared scenes, whose layout has the class table.
        num_clusters: number of clusters K'.
        mapping: ``(K',)`` cluster -> class id, fitted on labels, -1 for none; None without labels.
    """
    if mapping is None:
        return Legend(tuple(cluster_classes(num_clusters)), np.arange(num_clusters))
    spare = cluster_classes(num_clusters)
    table = list(scenes.layout.classes)
    if any(not NODATA < c.code <= 255 for c in table):  # a data set may use code 0 for a class
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
    """Classify one scene.

    Args:
        classifier: gives the posteriors of the clusters.
        store: pixel store of the scenes.
        scene: index of the scene.
        smoothing_px: sigma of the guided filter on posteriors, px; 0: none.
        legend: maps clusters to rows of its classes.

    Returns:
        Row of ``legend.classes`` per pixel ``(H, W) uint8``, and the posterior of the pixel's
        cluster ``(H, W) float32``.
    """
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
    """Run stage ``maps``: write prediction, confidence, label, error and quicklooks of scenes.

    The files ``maps/<scene>.<layer>.tif`` have the CRS and transform of the source. Class maps have
    a colour table and class names, which QGIS shows.

    Args:
        run: an open run with a finished stage ``cluster``.
        task: holds the scenes and their pixel store.
        classifier: gives the posteriors of the clusters.
        mapping: see ``legend_of``.
        which: indices of the scenes.

    Returns:
        True if the files were written, False if they were up to date.
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
    """Return layer -> array of one scene: class codes, confidence, quicklooks and error."""
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
    """Return 8-bit pictures: optical ``(3, H, W)`` and SAR ``(H, W)`` on a log scale."""
    layout = scenes.layout
    optical = np.asarray(scenes.plane("optical", scene))
    assert layout.optical.rgb is not None
    picture = optical_composite(optical, layout.optical.rgb, valid)  # (H, W, 3) in [0, 1]
    looks = {"optical": (255 * picture).astype(np.uint8).transpose(2, 0, 1)}
    if layout.sar is not None:
        intensity = physical(np.asarray(scenes.plane("sar", scene))[0], "sar", layout)
        looks["sar"] = (255 * sar_image(intensity, valid)[..., 0]).astype(np.uint8)
    return looks
