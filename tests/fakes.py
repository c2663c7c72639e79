"""Tiny georeferenced fakes with the true folders, band counts, dtypes and label codes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.rasters import write_raster
from umsf_lib.data.scene_set import SceneSet

SIZE = 48  # rows; columns are 8 more, so that a transposition cannot hide
SET = [f"NH49E0010{number}" for number in range(13, 18)]
WGS84 = CRS.from_epsg(4326)
UTM = CRS.from_epsg(32650)
# 0.16199 arc seconds, the step of the WHU sheets
DEGREES = Affine(4.5e-5, 0, 111.0, 0, -4.5e-5, 31.0)
METRES = Affine(10, 0, 500000, 0, -10, 3400000)


def bands(layout: Layout, role: str, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Random but valid values of a sensor, ``(C, size, size + 8)`` in the dtype it is stored in."""
    rng = np.random.default_rng(seed)
    sensor = layout.in_file(role)
    assert sensor is not None
    shape = (len(sensor.bands), size, size + 8)
    if sensor.scaling == "db":
        decibels = rng.normal(-12, 4, shape)
        return decibels if layout.name == "terramesh" else decibels.astype(np.float32)
    if sensor.scaling == "reflectance":
        unsigned = layout.name in ("dfc2020", "eurosat", "sentinel2-tiles")
        return rng.integers(100, 4000, shape).astype(np.uint16 if unsigned else np.int16)
    if sensor.scaling == "elevation":
        return rng.integers(18, 1892, shape).astype(np.int16)
    return rng.integers(1, 255, shape).astype(np.uint8)


def codes(layout: Layout, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Label codes of the layout, ignored ones included, ``(size, size + 8)``, uint8 if they fit."""
    known = [code for c in layout.classes for code in c.codes] + list(layout.label_nodata)
    dtype = np.uint8 if min(known) >= 0 else np.int16
    return np.random.default_rng(seed).choice(known, (size, size + 8)).astype(dtype)


def file_of(root: Path, layout: Layout, role: str, name: str, part: str = "") -> Path:
    """Where a layout keeps a file.

    ``a|b`` fills a pattern of two wildcards, ``part`` that of a folder.
    """
    pattern = layout.pattern[role].split("|")[0]
    for text in name.split("|"):
        pattern = pattern.replace("*", text, 1)
    return root / layout.folders[role][0].replace("*", part) / pattern


def write_picture(path: Path, array: np.ndarray) -> None:
    """Write ``(C, h, w)`` or ``(h, w)`` uint8 as the JPEG or PNG that its name says."""
    array = array if array.ndim == 3 else array[None]
    shape = dict(zip(("count", "height", "width"), array.shape, strict=True))
    driver = {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, dtype="uint8", **shape) as target:
            target.write(array)


def write_set(root: Path, layout_name: str = "whu-opt-sar") -> Layout:
    """Write five scenes of five sizes: two to train, one to validate, two to test.

    Each has nodata, in one sensor at its top left and in the other at its bottom.
    """
    for number, name in enumerate(SET):
        layout = load_layout(layout_name)
        size = SIZE + (8, -6, 0, -12, 4)[number]
        optical, sar = (bands(layout, role, number, size) for role in ("optical", "sar"))
        optical[:, : 5 + number, :9] = 0
        sar[0, -3:, number:] = 0 if sar.dtype == np.uint8 else np.nan
        label = codes(layout, number, size) if layout.classes else None
        write_fake(root, layout_name, name, optical=optical, sar=sar, label=label)
    parts = ["train:", *SET[:2], "val:", SET[2], "test:", *SET[3:]]
    (root / "split.txt").write_text("\n".join(parts) + "\n")
    return layout


def write_fake(
    root: Path, layout_name: str, name: str = "NH49E001013", seed: int = 0, **change: Any
) -> Layout:
    """Write one scene of a layout; see ``file_of`` for ``name`` and ``change["part"]``.

    ``change`` replaces what would be written: ``optical``, ``sar``, ``dem``, ``label`` (arrays,
    None to leave the file out), and ``sar_crs``, ``label_transform``, ``optical_nodata``, ...
    """
    layout = load_layout(layout_name)
    metric = layout_name not in ("whu-opt-sar", "whu-readme", "sen1floods11")
    for role in layout.folders:
        make = codes if role == "label" else bands
        array = change.get(role, make(layout, *([] if role == "label" else [role]), seed=seed))
        if array is None:
            continue
        path = file_of(root, layout, role, name, change.get("part", ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":  # bands last, as imagery libraries keep pictures
            np.save(path, np.moveaxis(array, 0, -1))
            continue
        if path.suffix != ".tif":
            write_picture(path, array)
            continue
        write_raster(
            path,
            array,
            crs=change.get(f"{role}_crs", UTM if metric else WGS84),
            transform=change.get(f"{role}_transform", METRES if metric else DEGREES),
            nodata=change.get(f"{role}_nodata"),
        )
    return layout


def truth(scenes: SceneSet, index: int) -> dict[str, np.ndarray]:
    """A prepared scene from its files, by rasterio and formulas written out here.

    ``optical`` and ``sar`` as stored, ``valid (H, W)``, ``ln_sar`` ln intensity, NaN where invalid.
    """
    source, found = scenes.sources[scenes.records[index].name], {}
    for role in ("optical", "sar"):
        with rasterio.open(getattr(source, role)) as file:
            found[role] = file.read()
    optical, sar = found["optical"], found["sar"]
    decibels = sar.dtype.kind == "f"
    valid = (optical != 0).all(axis=0) & (np.isfinite(sar) if decibels else sar != 0).all(axis=0)
    sar = np.where(valid, sar.astype(np.float64), np.nan)
    ln_sar = np.log(10 ** (sar / 10)) if decibels else np.log(sar**2)
    return found | {"valid": valid, "ln_sar": ln_sar}


# Red, green, blue and SAR amplitude of ground without labels
STRIPES = {
    "homes": (121, 139, 157, 130),
    "roofs": (215, 222, 228, 170),
    "water": (44, 84, 121, 40),
    "wood": (46, 84, 100, 140),
}


def write_striped(root: Path) -> tuple[Path, Layout]:
    """Write two scenes without labels: homes, roofs, and water or wood; two rows are nodata."""
    for name, right in (("coast", "water"), ("park", "wood")):
        values = np.zeros((4, SIZE, 3 * SIZE), np.uint8)
        for third, ground in enumerate(("homes", "roofs", right)):
            here = slice(third * SIZE, (third + 1) * SIZE)
            values[:, 2:, here] = np.reshape(STRIPES[ground], (4, 1, 1))
        write_fake(root, "pairs", name, optical=values[:3], sar=values[3:])
    return root, load_layout("pairs")


def striped_classifier(task: ClusteringTask) -> Classifier:
    """Classify ``write_striped`` by red; the clusters are those of ``STRIPES`` and an empty one."""
    levels = [ground[0] for ground in STRIPES.values()] + [255]

    def posteriors(scene: int) -> Tensor:
        red = task.scenes.plane("optical", scene)[0][:: task.stride, :: task.stride]
        return torch.tensor(np.stack([red == level for level in levels])).float()

    return Classifier("striped", len(levels), task.stride, posteriors)
