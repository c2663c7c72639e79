"""Write a copy of a data folder whose files share their scene's grid (``umsf data align``)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.warp import Resampling, reproject

from ..config import DataError
from ..run import write_atomically
from .layout import Layout, Sensor
from .rasters import grid_defect, grid_of, opened, write_raster
from .scene import Scene, find_scenes
from .stack import paths_of

RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")


def align(root: Path, layout: Layout, target: Path, resampling: str = "bilinear") -> list[Path]:
    """Copy a data folder so that every file is on the grid of its scene's optical file.

    SAR, DEM and label files on another grid are resampled. All other files of the scenes, and files
    beside the folders such as split lists, are copied unchanged. The source folder is not modified.

    Args:
        root: data folder.
        layout: where and how the data set stores its files.
        target: new data folder, outside ``root``.
        resampling: for SAR and DEM, one of ``RESAMPLINGS``; labels always use ``nearest``.

    Returns:
        Paths of the resampled files in ``target``.

    Raises:
        DataError: ``target`` and ``root`` overlap, a file cannot be read, a CRS is missing, or
            there is no nodata value to mark pixels that a file does not cover.
    """
    here, there = root.resolve(), target.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise DataError(f"Output {target} overlaps the data folder {root}; name another folder.")
    files = {path for path in root.iterdir() if path.is_file() and path.name[0] != "."}
    resampled = []
    for scene in find_scenes(root, layout):
        grid = scene.profile()
        for path, role, sensor in (
            (path, role, sensor)
            for role, (raster, sensor) in scene.files().items()
            for path in paths_of(raster)  # bands are resampled one by one
        ):
            files.add(path)
            with opened(path) as source:
                same = not grid_defect(scene.optical, grid, path, grid_of(source))
            if role != "optical" and not same:
                method = Resampling["nearest" if role == "label" else resampling]
                resampled.append(target / path.relative_to(root))
                _write_aligned(path, resampled[-1], scene, sensor, method)
    for path in sorted(files):
        copy = target / path.relative_to(root)
        if path.suffix.lower() == ".vrt" and copy not in resampled:
            # A plain copy would look for its sources relative to the new folder.
            write_atomically(copy, partial(rasterio.shutil.copy, path.resolve(), driver="VRT"))
        elif copy not in resampled:
            write_atomically(copy, partial(shutil.copyfile, path))
    return resampled


def _write_aligned(
    path: Path, target: Path, scene: Scene, sensor: Sensor | None, resampling: Resampling
) -> None:
    """Resample all bands of a file to the grid of its scene; nodata where it does not reach."""
    grid = scene.profile()
    place: dict[str, Any] = {"dst_transform": grid.transform, "dst_crs": grid.crs}
    with opened(path) as source:
        if source.crs is None or grid.crs is None:
            raise DataError(
                f"{path} is {grid_of(source)}, and {scene.optical} is {grid}: pixels cannot be "
                "located without a CRS in both files; give the files their CRS first."
            )
        nodata = _nodata(source, scene.layout, sensor)
        if nodata is None:
            covered = np.zeros((grid.height, grid.width), np.uint8)
            whole = np.ones((source.height, source.width), np.uint8)
            origin = {"src_transform": source.transform, "src_crs": source.crs}
            reproject(whole, covered, resampling=Resampling.nearest, **origin, **place)
            if bare := int((covered == 0).sum()):
                raise DataError(
                    f"{path} does not cover {bare} px of {scene.optical}, and there is no nodata "
                    "value to mark them; set 'nodata' (for a label 'label_nodata') in "
                    f"{scene.layout.source}."
                )
        # Not a WarpedVRT: cut into its blocks, a finer raster is averaged over too few pixels.
        bands = rasterio.band(source, source.indexes)
        fill = {"src_nodata": nodata, "dst_nodata": nodata}
        array = np.zeros((source.count, grid.height, grid.width), source.dtypes[0])
        reproject(bands, array, resampling=resampling, **fill, **place)
        names = source.descriptions if all(source.descriptions) else None
    place = {"crs": grid.crs, "transform": grid.transform}
    write_raster(target, array, nodata=nodata, descriptions=names, **place)


def _nodata(source: Any, layout: Layout, sensor: Sensor | None) -> float | None:
    """Return the value for uncovered pixels: the layout's, the file's, or NaN for floats."""
    if sensor is None:  # a label
        codes = layout.label_nodata
        return source.nodata if source.nodata in codes else next(iter(codes), None)
    if sensor.nodata is not None:
        return sensor.nodata
    floats = np.dtype(source.dtypes[0]).kind == "f"
    return float("nan") if source.nodata is None and floats else source.nodata
