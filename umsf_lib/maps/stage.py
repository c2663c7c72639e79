"""Write maps of whole scenes as GeoTIFFs, with class names and colours, on the source grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..clustering.inference import Classifier
from ..clustering.task import ClusteringTask
from ..config import IGNORE, MOST_CLASSES, ConfigError
from ..data.layout import LandClass
from ..data.rasters import write_raster
from ..data.scene_set import SceneSet, valid_labels
from ..data.windows import PixelStore
from ..figures.imagery import cluster_classes, optical_composite, sar_image
from ..progress import Progress, each
from ..run import Run

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
    of the source. Class maps have a colour table and class names, which QGIS shows.

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
        return [f for scene in scenes for f in _write_scene(run, task, classifier, legend, scene)]

    return run.stage("maps", make, inputs)


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


def _write_scene(
    run: Run, task: ClusteringTask, classifier: Classifier, legend: Legend, scene: int
) -> list[str]:
    """Map one scene; return the names of its files."""
    name, smoothing = task.scenes.records[scene].name, run.config.cluster.smoothing_px
    predicted, confidence = predict_scene(classifier, task.store, scene, smoothing, legend)
    layers = scene_layers(task.scenes, scene, predicted, confidence, legend)
    grid = task.scenes.sources[name].profile()
    coded: dict[str, Any] = {
        "nodata": NODATA,
        "colors": {c.code: c.rgb for c in legend.classes},
        "class_names": {c.code: c.name for c in legend.classes},
    }
    files = []
    for layer, array in layers.items():
        files.append(f"maps/{name}.{layer}.tif")
        write_raster(
            run.path(files[-1]),
            array,
            crs=grid.crs,
            transform=grid.transform,
            overviews="mode" if layer in ("prediction", "label", "error") else "average",
            **(coded if layer in ("prediction", "label") else {}),
        )
    return files


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
