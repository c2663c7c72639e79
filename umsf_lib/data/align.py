"""Write a copy of a data folder whose files share their scene's grid (``umsf data align``)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.dtypes import in_dtype_range
from rasterio.errors import CRSError
from rasterio.warp import Resampling, reproject

from ..config import DataError, check_choice
from ..progress import Progress, each
from ..run import write_atomically
from .faults import explained
from .files import sidecars_of
from .form import check_placed
from .layout import Layout, Sensor
from .rasters import (
    Grid,
    apart_km,
    data_bands,
    declared_valid,
    grid_defect,
    grid_of,
    opened,
    scaling_of,
    write_raster,
)
from .scene import Scene, find_scenes
from .stack import paths_of

RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")


def align(
    root: Path,
    layout: Layout,
    target: Path,
    resampling: str = "bilinear",
    *,
    progress: Progress | None = None,
) -> dict[Path, float]:
    """Copy a data folder so that every file is on the grid of its scene's optical file.

    SAR, DEM and label files on another grid are resampled. All other files of the scenes with their
    sidecars, and files beside the folders such as split lists, are copied. ``root`` stays as it is.

    Args:
        root: data folder.
        layout: of the files in ``root``.
        target: new data folder, outside ``root``.
        resampling: for SAR and DEM, one of ``RESAMPLINGS``; labels always use ``nearest``.
        progress: told of each scene, then of each copied file.

    Returns:
        Resampled file in ``target`` -> share of its pixels that hold data in all bands.

    Raises:
        ConfigError: ``resampling`` is unknown.
        DataError: ``target`` and ``root`` overlap, or a file cannot be read, cannot be located on
            the optical file or does not overlap it, or lacks a nodata value where it needs one.
    """
    check_choice("resampling", resampling, RESAMPLINGS)
    here, there = root.resolve(), target.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise DataError(f"Output {target} overlaps the data folder {root}; name another folder.")
    moved, kept = {}, set()
    for scene in each(find_scenes(root, layout), progress, "resample"):
        grid = scene.profile()
        for role, (raster, sensor) in scene.files().items():
            for path in paths_of(raster):  # bands are resampled one by one
                with opened(path) as source:
                    same = not grid_defect(scene.optical, grid, path, grid_of(source))
                if same or role == "optical":
                    kept.add(path)
                else:
                    copy = target / path.relative_to(root)
                    moved[path] = _write_aligned(path, copy, scene, sensor, resampling)
    beside = {path for path in root.iterdir() if path.is_file() and path.name[0] != "."}
    beside -= {*moved, *(file for files in sidecars_of(moved).values() for file in files)}
    copied = sorted(beside.union(kept, *sidecars_of(kept).values()))
    for path in each(copied, progress, "copy"):
        write_atomically(target / path.relative_to(root), partial(_copy, path))
    return {target / path.relative_to(root): share for path, share in moved.items()}


def _copy(path: Path, target: Path) -> None:
    """Copy a file; a VRT goes on referring to the same files from its new place."""
    if path.suffix.lower() == ".vrt":
        with explained(path):
            rasterio.shutil.copy(path.absolute(), target, driver="VRT")
    else:
        shutil.copyfile(path, target)


def _write_aligned(
    path: Path, target: Path, scene: Scene, sensor: Sensor | None, resampling: str
) -> float:
    """Resample a file to the grid of its scene and return the share of pixels with data.

    Pixels are nodata where the file does not reach, and where it declares no data.
    """
    grid, named = scene.profile(), len(sensor.bands) if sensor else 1
    method = Resampling[resampling if sensor else "nearest"]
    with opened(path) as source:
        check_placed(str(path), source)
        bands, masks = data_bands(source, named), declared_valid(source, None, named)  # (C, h, w)
        covered = _coverage(path, source, np.logical_and.reduce(masks), scene)
        nodata = _nodata(source, dict(zip(bands, masks, strict=True)), scene.layout, sensor)
        if nodata is None and (bare := int((covered < 2).sum())):
            raise DataError(
                f"{path} does not cover {bare} px of {scene.optical} with data, and there is no "
                "nodata value to mark them; set 'nodata' (for a label 'label_nodata') in "
                f"{scene.layout.source}."
            )
        place = _place(source, grid) | {"src_nodata": nodata, "dst_nodata": nodata}
        array = np.zeros((len(bands), grid.height, grid.width), source.dtypes[0])
        # Not a WarpedVRT: cut into its blocks, a finer raster is averaged over too few pixels.
        for band, valid, aligned in zip(bands, masks, array, strict=True):
            values = source.read(band)
            if nodata is not None:
                values[~valid] = nodata
            reproject(values, aligned, resampling=method, **place)
        names, units = [source.descriptions[i - 1] for i in bands], scaling_of(source, bands)
    form: dict[str, Any] = {"descriptions": names if all(names) else None, "units": units}
    write_raster(target, array, crs=grid.crs, transform=grid.transform, nodata=nodata, **form)
    return float((~np.isnan(array) & (array != nodata)).all(axis=0).mean())


def _coverage(path: Path, source: Any, valid: NDArray[np.bool_], scene: Scene) -> NDArray[np.uint8]:
    """Return what a file covers of its scene's grid ``(H, W)``: 0 no, 1 without data, 2 with data.

    Raises:
        DataError: it has no place there, or covers nothing.
    """
    grid, own = scene.profile(), grid_of(source)
    covered = np.zeros((grid.height, grid.width), np.uint8)
    try:
        if own.crs is None or grid.crs is None:
            raise CRSError
        whole = valid.astype(np.uint8) + np.uint8(1)
        reproject(whole, covered, resampling=Resampling.nearest, **_place(source, grid))
    except (CRSError, CPLE_BaseError) as error:
        raise DataError(
            f"{path} is {own}, and {scene.optical} is {grid}: pixels cannot be located, because no "
            "transformation leads from one CRS to the other; give the files their CRS first."
        ) from error
    if not covered.any():
        apart = apart_km(grid, own)
        far = "" if apart is None else f", {apart:.1f} km from centre to centre"
        raise DataError(
            f"{path} does not overlap {scene.optical}{far}: it is {own}, and the other is {grid}; "
            "correct the CRS and the position of the wrong one, or remove the pair."
        )
    return covered


def _place(source: Any, grid: Grid) -> dict[str, Any]:
    """Return where pixels come from and where they go, as arguments of ``reproject``."""
    origin = {"src_transform": source.transform, "src_crs": source.crs}
    return origin | {"dst_transform": grid.transform, "dst_crs": grid.crs}


def _nodata(
    source: Any, valid: Mapping[int, NDArray[np.bool_]], layout: Layout, sensor: Sensor | None
) -> float | None:
    """Return the value for pixels without data: the layout's, the file's, or NaN for floats.

    ``valid`` is band -> its valid pixels ``(h, w)``. Where bands declare different values, it is
    one that no band has as data. None if there is no such value.
    """
    declared = [value for value in source.nodatavals if value is not None]
    if sensor is None:
        wanted = sorted(layout.label_nodata, key=lambda code: code not in declared) or declared
    else:
        wanted = [*declared, math.nan] if sensor.nodata is None else [sensor.nodata]
    wanted = [value for value in wanted if in_dtype_range(value, source.dtypes[0])]
    if sensor and sensor.nodata is None and len(set(source.nodatavals)) > 1:
        for band, known in valid.items():
            values = source.read(band)[known]
            wanted = [value for value in wanted if not (values == value).any()]
    return next(iter(wanted), None)
