"""Grid repair: a copy of a data folder in which the files of a scene share one grid."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject

from .config import DataError
from .layouts import Layout, Sensor
from .rasters import Grid, grid_defect, grid_of, opened, write_raster
from .runs import write_atomically
from .scenes import Scene, find_scenes

RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")


def align(root: Path, layout: Layout, target: Path, resampling: str = "bilinear") -> list[Path]:
    """Copy a data folder, with every file on the grid of its scene's optical one.

    SAR, DEM and label files that lie elsewhere are resampled; all other files of the scenes and
    what lies beside the folders (split lists) are copied byte by byte. The source is only read.

    Args:
        root: data folder.
        layout: where and how the data set keeps its files.
        target: new data folder, outside ``root``.
        resampling: of SAR and DEM, one of ``RESAMPLINGS``; class codes always take the nearest.

    Returns:
        The files that were resampled, as written.

    Raises:
        DataError: ``target`` lies in ``root``, a file cannot be read, has no CRS to be placed by,
            or no value to mark what it does not cover with.
    """
    here, there = root.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise DataError(f"Output {target} overlaps the data folder {root}; name another folder.")
    scenes = find_scenes(root, layout)
    resampled = []
    for scene in scenes:
        grid = scene.profile()
        for role, path, sensor in _elsewhere(scene, grid):
            written = target / path.relative_to(root)
            method = "nearest" if role == "label" else resampling
            _write_aligned(path, written, scene, sensor, Resampling[method])
            resampled.append(written)
    for path in _all_files(root, scenes):
        copy = target / path.relative_to(root)
        if copy not in resampled:
            write_atomically(copy, partial(shutil.copyfile, path))
    return resampled


def _elsewhere(scene: Scene, grid: Grid) -> Iterator[tuple[str, Path, Sensor | None]]:
    for role, (path, sensor) in scene.files().items():
        with opened(path) as source:
            other = grid_of(source)
        if grid_defect(scene.optical, grid, path, other):
            yield role, path, sensor


def _all_files(root: Path, scenes: list[Scene]) -> list[Path]:
    found = {path for scene in scenes for path, _ in scene.files().values()}
    return sorted(found | {p for p in root.iterdir() if p.is_file() and p.name[0] != "."})


def _write_aligned(
    path: Path, target: Path, scene: Scene, sensor: Sensor | None, resampling: Resampling
) -> None:
    grid = scene.profile()
    with opened(path) as source:
        nodata = _nodata(source, scene.layout, sensor)
        if source.crs is None or grid.crs is None:
            raise DataError(
                f"{path} is {grid_of(source)}, and {scene.optical} is {grid}: without a CRS on "
                "both sides nothing says where the pixels lie; give the files their CRS first."
            )
        if nodata is None and (bare := _uncovered_px(source, grid)):
            raise DataError(
                f"{path} does not cover {bare} px of {scene.optical}, and no nodata value is there "
                f"to mark them with; set it in {scene.layout.source}."
            )
        array = _warp(source, grid, nodata, resampling)
        names = source.descriptions if all(source.descriptions) else None
    place: dict[str, Any] = {"crs": grid.crs, "transform": grid.transform}
    write_raster(target, array, nodata=nodata, descriptions=names, **place)


def _nodata(source: Any, layout: Layout, sensor: Sensor | None) -> float | None:
    """What to mark uncovered pixels with: the layout's value, the file's, or NaN."""
    if sensor is None:  # a label
        declared = [source.nodata] if source.nodata in layout.label_nodata else []
        return float([*declared, *layout.label_nodata][0]) if layout.label_nodata else None
    if sensor.nodata is not None:
        return sensor.nodata
    if source.nodata is None and np.dtype(source.dtypes[0]).kind == "f":
        return float("nan")
    return None if source.nodata is None else float(source.nodata)


def _warp(source: Any, grid: Grid, nodata: float | None, resampling: Resampling) -> NDArray[Any]:
    """All bands on a grid, ``(C, h, w)`` in the file's dtype, ``nodata`` where it has none."""
    array = np.zeros((source.count, grid.height, grid.width), source.dtypes[0])
    reproject(
        rasterio.band(source, source.indexes),
        array,
        src_nodata=nodata,
        dst_nodata=nodata,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        resampling=resampling,
    )
    return array


def _uncovered_px(source: Any, grid: Grid) -> int:
    covered = np.zeros((grid.height, grid.width), np.uint8)
    reproject(
        np.ones((source.height, source.width), np.uint8),
        covered,
        src_transform=source.transform,
        src_crs=source.crs,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        resampling=Resampling.nearest,
    )
    return int((covered == 0).sum())
