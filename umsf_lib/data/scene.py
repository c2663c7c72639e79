"""Scenes: co-registered optical, SAR, DEM and label files, read window by window."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ..config import IGNORE, DataError, composed
from .form import form_defects, is_grey
from .layout import LandClass, Layout, Sensor
from .pairing import SPOKEN, Pairing, pair_files
from .points import Point, Points, outside, painted, read_points
from .rasters import (
    Grid,
    Pixels,
    data_bands,
    grid_defect,
    grid_of,
    opened,
    read_window,
    scaling_of,
    strips,
)
from .split import split_names
from .stack import Raster, paths_of

LARGEST = 1e30  # in any unit; larger magnitudes are overflows or fill values such as -3.4e38
SAID_CODES = 12  # listed in a message; a label with lossy compression can have a hundred


def find_scenes(root: Path, layout: Layout) -> list[Scene]:
    """Find the scenes of a data folder, sorted by name.

    A label may be missing; such a scene is mapped but not scored.

    Raises:
        DataError: a folder is missing, no file matches, or pairing finds a defect, such as an
            optical, SAR or DEM file without a partner (see ``pair_files``), or the file of points
            is wrong (see ``read_points``).
    """
    pairing = pair_files(Path(root), layout)
    if pairing.defects:
        more = len(pairing.defects) - 1
        tail = f"; {more} more like this: `umsf data check` lists all." if more else "."
        raise DataError(pairing.defects[0].removesuffix(".") + tail)
    points = read_points(Path(root), layout, pairing.scenes)
    for doubt in points.doubts:
        warnings.warn(doubt, stacklevel=2)
    return scenes_of(pairing, layout, points)


def scenes_of(pairing: Pairing, layout: Layout, points: Points | None = None) -> list[Scene]:
    """Return the paired files as scenes, with their points if there are any."""
    labels = points.of_scene if points else {}
    return [
        Scene(name, layout, **files, points=labels.get(name, ()))
        for name, files in pairing.scenes.items()
    ]


def split_scenes(root: Path, layout: Layout, scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """Return the names of the scenes in ``train``, ``val`` and ``test``; see ``data.split``.

    Raises:
        DataError: the split list is malformed or leaves no training scenes.
    """
    files = files_of(scenes)
    return split_names(Path(root), layout.split, sorted(files), files)


def files_of(scenes: Sequence[Scene]) -> dict[str, list[Path]]:
    """Return name -> files of each scene, optical first."""
    return {s.name: [p for file, _ in s.files().values() for p in paths_of(file)] for s in scenes}


@dataclass(frozen=True)
class Scene:
    """One place: an optical file and, where they exist, its SAR, DEM and label files."""

    name: str
    layout: Layout
    optical: Raster
    sar: Raster | None = None
    dem: Raster | None = None
    label: Raster | None = None
    points: tuple[Point, ...] = ()  # sparse labels, instead of a label file

    def profile(self) -> Grid:
        """Return the grid of the optical file, which the other files share (see ``check``)."""
        with opened(self.optical) as source:
            return grid_of(source)

    def files(self) -> dict[str, tuple[Raster, Sensor | None]]:
        """Return role -> file and its sensor (None for a label), optical first."""
        paths = {"optical": self.optical, "sar": self.sar, "dem": self.dem, "label": self.label}
        return {role: (p, self.layout.in_file(role)) for role, p in paths.items() if p}

    @property
    def whole_tile_class(self) -> LandClass | None:
        """Class of every pixel where folders are the labels, else None."""
        return self.layout.class_folders.get(composed(paths_of(self.optical)[0].parent.name))

    def check(self) -> None:
        """Compare the files with the layout and with each other; see ``defects``.

        Raises:
            DataError: the first defect, with the expected and the found value.
        """
        if found := self.defects():
            raise DataError(found[0])

    def defects(self) -> list[str]:
        """List all defects, one sentence each: bands, dtype, nodata, grids, label codes.

        The last row of each file is read, because a truncated GeoTIFF can be opened without an
        error. All codes of the label are read as well.
        """
        found: list[str] = []
        grids: dict[str, Grid] = {}
        for role, (path, sensor) in self.files().items():
            try:
                found += form_defects(path, sensor, role)
                grids[role] = checked_grid(path, sensor)
                if role != "optical" and "optical" in grids:
                    found += grid_defect(self.optical, grids["optical"], path, grids[role])
                if role == "label":
                    found += nodata_classes(self.layout, path)
                    found += unknown_codes(self.label_codes, self.layout, path)
            except DataError as error:  # unreadable: nothing to compare
                found.append(str(error))
        if grid := grids.get("optical"):
            found += outside(self.points, self.name, grid.height, grid.width)
        return found

    @cached_property
    def label_codes(self) -> Counter[int]:
        """Number of pixels of each label code, without those that the file says are nodata.

        The file is read once, strip by strip. Of sparse labels it is the number of points.

        Raises:
            DataError: the file cannot be read.
        """
        if self.label:
            with opened(self.label) as source:
                windows = list(strips(grid_of(source)))
            parts = (read_window(self.label, window, 1) for window in windows)
            return sum((_counts(p.stored[0][p.declared[0]]) for p in parts), Counter[int]())
        if self.points:
            return Counter(point.code for point in self.points)
        land, grid = self.whole_tile_class, self.profile()
        return Counter({land.code: grid.height * grid.width} if land else {})

    def read(self, window: Window | None = None) -> dict[str, NDArray[Any]]:
        """Read a window, or the whole scene.

        Returns:
            ``optical (Co, h, w)``, with the bands of a DEM last (in a dtype that holds both);
            ``sar (Cs, h, w)``, if the layout has SAR, both as stored, or as floats where the file
            declares a scale or an offset, which are applied; ``label (h, w) int64`` class ids, 255
            where the label is ignored or missing; ``valid (h, w) bool``: no band is nodata, masked,
            NaN, infinite or a fill value.

        Raises:
            DataError: a file cannot be read or is truncated, the label has unknown codes, or a
                whole scene has no valid pixel.
        """
        parts, masks = {}, []
        for role, (path, sensor) in self.files().items():
            if sensor:
                pixels, mask = read_sensor(path, sensor, window)
                parts[role] = pixels.physical()
                masks.append(mask)
        if "dem" in parts:
            parts["optical"] = np.concatenate([parts["optical"], parts.pop("dem")])
        parts["valid"] = valid = np.logical_and.reduce(masks)
        if self.label:
            codes = read_window(self.label, window, 1)
            parts["label"] = class_ids(codes.stored[0], codes.declared[0], self.layout, self.label)
        elif self.points:
            top, known = window.row_off if window else 0, self.layout.ids_of_codes
            parts["label"] = painted(self.points, known, top, *valid.shape)
        else:
            land = self.whole_tile_class
            parts["label"] = np.full(valid.shape, land.id if land else IGNORE, np.int64)
        if window is None and not valid.any():
            raise DataError(self.all_nodata(valid.size))
        return parts

    def all_nodata(self, size: int) -> str:
        """Return the error message for a scene of ``size`` pixels, none of which is valid."""
        partner = "" if len(self.files()) == 1 else " or in a partner file"
        return (
            f"Scene {self.name} has 0 valid pixels of {size}: every pixel is nodata in "
            f"{self.optical}{partner}; remove the scene or correct 'nodata' in "
            f"{self.layout.source}."
        )


def unit_defects(scenes: Sequence[Scene]) -> list[str]:
    """Say per role if some files declare a scale and others hold plain integers: other units.

    Raises:
        DataError: a file cannot be opened.
    """
    kinds: dict[tuple[str, bool], Raster] = {}  # role, scaled? -> a file of this kind
    for scene in scenes:
        for role, (path, sensor) in scene.files().items():
            if sensor:
                with opened(path) as source:
                    scale, _ = scaling_of(source, data_bands(source, len(sensor.bands)))
                    integers = np.dtype(source.dtypes[0]).kind in "iu"
                if integers or (scale != 1).any():
                    kinds.setdefault((role, bool((scale != 1).any())), path)
    return [
        f"{SPOKEN[role]} file {kinds[role, True]} declares a scale, but {kinds[role, False]} holds "
        "plain integers, so their units differ; declare the scale and offset of both "
        "(gdal_translate -a_scale ... -a_offset ... IN OUT.tif), or of neither."
        for role in ("optical", "sar", "dem")
        if {(role, True), (role, False)} <= kinds.keys()
    ]


def checked_grid(path: Raster, sensor: Sensor | None) -> Grid:
    """Return the grid of a file after checking its last row; ``sensor`` is None for a label.

    Raises:
        DataError: the row cannot be read, most of it is negative although the layout says that
            values are linear power, or a band tagged alpha looks like data.
    """
    with opened(path) as source:
        grid = grid_of(source)
        last_row = Window(0, grid.height - 1, grid.width, 1)
        names = sensor.bands if sensor else ("class code",)
        for band in set(source.indexes) - set(data_bands(source, len(names))):
            alpha = source.read(band, window=last_row)
            if 2 * ((alpha != 0) & (alpha != alpha.max())).sum() > alpha.size:
                raise DataError(
                    f"{path} has a band {band} tagged alpha, but its values vary as data do, and "
                    f"the layout names only {', '.join(names)}; name it there (such as nir)."
                )
    if sensor is None:
        read_window(path, last_row)
        return grid
    pixels, valid = read_sensor(path, sensor, last_row)
    known = pixels.physical()[:, valid]
    # Noise subtraction leaves a few negative powers; most decibel values are negative.
    if sensor.scaling == "intensity" and 2 * (known < 0).sum() > known.size:
        raise DataError(
            f"SAR file {path} has values down to {known.min():.4g}, but scaling 'intensity' of "
            "the layout means power, never below 0; if these are decibels, use 'db'."
        )
    return grid


def read_sensor(
    path: Raster, sensor: Sensor, window: Window | None
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Read the bands of a sensor, and the mask ``(h, w) bool`` of valid pixels.

    Raises:
        DataError: the file cannot be read, or it has three different channels instead of one.
    """
    pixels = read_window(path, window, len(sensor.bands))
    bands = pixels.stored
    if is_grey(len(bands), sensor) and (bands != bands[:1]).any():
        raise DataError(
            f"SAR file {path} has 3 bands that differ, but the layout names one "
            f"({sensor.bands[0]}); choose another layout or correct its bands."
        )
    # Two more equal channels, or products derived from a DEM, may follow.
    pixels = pixels.first(len(sensor.bands))
    valid = np.logical_and.reduce(pixels.declared)
    for band in pixels.stored:  # one by one, because temporary arrays of a whole scene are large
        valid &= _has_data(band, sensor)
    return pixels, valid


def _has_data(values: NDArray[Any], sensor: Sensor) -> NDArray[np.bool_]:
    """Return which values are neither the layout's nodata value nor junk that no file declares."""
    known = np.ones(values.shape, bool) if sensor.nodata is None else values != sensor.nodata
    if values.dtype.kind == "f":
        known &= np.abs(values) < LARGEST  # False for NaN, too
    return known


def class_ids(
    codes: NDArray[Any], known: NDArray[np.bool_], layout: Layout, path: Raster
) -> NDArray[np.int64]:
    """Convert label codes to class ids, ``IGNORE`` for nodata codes and where not ``known``.

    Raises:
        DataError: the layout does not know a code.
    """
    ids = np.where(known, -1, IGNORE)
    for code, id_ in layout.ids_of_codes.items():
        ids[known & (codes == code)] = id_
    if unknown := unknown_codes(_counts(codes[ids < 0]), layout, path):
        raise DataError(unknown[0])
    return ids


def nodata_classes(layout: Layout, path: Raster) -> list[str]:
    """Say in one sentence which class of the layout a label file declares to be nodata, if any."""
    with opened(path) as source:
        nodata = source.nodatavals[0]
    return [
        f"Label file {path} declares nodata {nodata:g}, but layout {layout.source} gives this code "
        f"to class {land.name}; remove it from the file (gdal_translate -a_nodata none IN OUT.tif) "
        "or from the layout."
        for land in layout.classes
        if nodata in land.codes
    ]


def unknown_codes(counts: Mapping[int, int], layout: Layout, path: Raster) -> list[str]:
    """Say in one sentence which codes of a label (code -> pixels) its layout lacks, if any."""
    unknown = sorted(counts.keys() - layout.ids_of_codes.keys())
    if not unknown:
        return []
    listed = ", ".join(f"{code} ({counts[code]} px)" for code in unknown[:SAID_CODES])
    more = f" and {len(unknown) - SAID_CODES} more" if len(unknown) > SAID_CODES else ""
    return [f"Label file {path} has unknown codes {listed}{more}; {layout.known_codes()}."]


def _counts(codes: NDArray[Any]) -> Counter[int]:
    """Return label code -> number of pixels."""
    values, counts = np.unique(codes, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
