"""Scenes: co-registered optical, SAR, DEM and label files, opened lazily, read by window."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor, log

from .config import IGNORE, DataError
from .layouts import LandClass, Layout, Sensor, load_layout
from .layouts.pairing import Pairing, pair_files
from .layouts.splits import split_names
from .rasters import Grid, count_values, grid_defect, grid_of, opened, read_window, write_raster
from .scene_files import checked_grid, class_ids, code_defects, form_defects, read_sensor

__all__ = [
    "Grid",
    "LandClass",
    "Layout",
    "Scene",
    "Sensor",
    "find_scenes",
    "load_layout",
    "split_scenes",
    "to_log_intensity",
    "write_raster",
]

Values = TypeVar("Values", NDArray[Any], Tensor)


@dataclass(frozen=True)
class Scene:
    """One place: an optical file, its SAR and DEM partners, its label, where there are any."""

    name: str
    optical: Path
    sar: Path | None
    dem: Path | None
    label: Path | None
    layout: Layout

    def profile(self) -> Grid:
        """Size, CRS and transform of the optical file, which the others share (see ``check``)."""
        with opened(self.optical) as source:
            return grid_of(source)

    def files(self) -> dict[str, tuple[Path, Sensor | None]]:
        """Role -> file and what it holds (None: a label), optical first."""
        paths = {"optical": self.optical, "sar": self.sar, "dem": self.dem, "label": self.label}
        return {role: (p, self.layout.in_file(role)) for role, p in paths.items() if p}

    @property
    def whole_tile_class(self) -> LandClass | None:
        """Class of every pixel, where folders are the labels."""
        return self.layout.class_folders.get(self.optical.parent.name)

    def check(self) -> None:
        """Compare the files with the layout and with each other; see ``defects``.

        Raises:
            DataError: the first thing that does not fit, with both sides.
        """
        if found := self.defects():
            raise DataError(found[0])

    def defects(self) -> list[str]:
        """All that does not fit, one sentence each: bands, dtype, nodata, grids, label codes.

        The last row of each file is read, since a truncated GeoTIFF opens without complaint, and
        all codes of the label.
        """
        found: list[str] = []
        grids: dict[str, Grid] = {}
        for role, (path, sensor) in self.files().items():
            try:
                found += form_defects(path, sensor, role)
                grids[role] = checked_grid(path, sensor)
            except DataError as error:  # unreadable: nothing to compare
                found.append(str(error))
                continue
            if role != "optical" and "optical" in grids:
                found += grid_defect(self.optical, grids["optical"], path, grids[role])
        if self.label and "label" in grids:
            try:
                found += code_defects(self.label_codes(), self.layout, self.label)
            except DataError as error:
                found.append(str(error))
        return found

    def label_codes(self) -> Counter[int]:
        """Codes of the label with their pixel counts, read strip by strip.

        Raises:
            DataError: the file cannot be read.
        """
        if self.label:
            return count_values(self.label)
        land, grid = self.whole_tile_class, self.profile()
        return Counter({land.code: grid.height * grid.width} if land else {})

    def read(self, window: Window | None = None) -> dict[str, NDArray[Any]]:
        """Read a window, or the whole scene.

        Returns:
            ``optical (Co, h, w)`` as stored, the DEM's bands last where one is read (in a dtype
            that holds both); ``sar (Cs, h, w)`` (not where the layout has none); ``label (h, w)``
            int64 class ids with 255 = ignore (everywhere where there is no label); ``valid
            (h, w)`` bool: no band is nodata, NaN or Inf.

        Raises:
            DataError: unreadable or truncated file, unknown label codes, not one valid pixel in
                a whole scene.
        """
        sensors = [(role, p, sensor) for role, (p, sensor) in self.files().items() if sensor]
        parts, masks = {}, []
        for role, path, sensor in sensors:
            parts[role], mask = read_sensor(path, sensor, window)
            masks.append(mask)
        if "dem" in parts:
            parts["optical"] = np.concatenate([parts["optical"], parts.pop("dem")])
        parts["valid"] = valid = np.logical_and.reduce(masks)
        if self.label:
            codes = read_window(self.label, window)[0][0]
            parts["label"] = class_ids(codes, self.layout, self.label)
        else:
            land = self.whole_tile_class
            parts["label"] = np.full(valid.shape, land.id if land else IGNORE, np.int64)
        if window is None and not valid.any():
            raise DataError(self.all_nodata(valid.size))
        return parts

    def all_nodata(self, size: int) -> str:
        """The sentence on a scene without one valid pixel of ``size``."""
        partner = "" if len(self.files()) == 1 else " or in a partner of it"
        return (
            f"Scene {self.name} has 0 valid pixels of {size}: every pixel is nodata in "
            f"{self.optical}{partner}; remove the scene or correct 'nodata' in "
            f"{self.layout.source}."
        )


def find_scenes(root: Path, layout: Layout) -> list[Scene]:
    """Pair the files of a data folder by name, sorted.

    A label may lack (such a scene is mapped, not scored); an optical, SAR or DEM file without its
    partner and a label without its images may not.

    Raises:
        DataError: a folder is missing, nothing matches, or a file has no partner.
    """
    pairing = pair_files(Path(root), layout)
    if pairing.defects:
        more = len(pairing.defects) - 1
        tail = f"; {more} more like this: `umsf data check` lists all." if more else "."
        raise DataError(pairing.defects[0].removesuffix(".") + tail)
    return scenes_of(pairing, layout)


def scenes_of(pairing: Pairing, layout: Layout) -> list[Scene]:
    """The paired files as scenes."""
    return [
        Scene(n, files["optical"], files.get("sar"), files.get("dem"), files.get("label"), layout)
        for n, files in pairing.scenes.items()
    ]


def split_scenes(root: Path, layout: Layout, scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """Names of the scenes in the parts ``train``, ``val`` and ``test``; see ``layouts.splits``.

    Raises:
        DataError: the split list is malformed or leaves nothing to train on.
    """
    files = {scene.name: [path for path, _ in scene.files().values()] for scene in scenes}
    return split_names(Path(root), layout.split, sorted(files), files)


def to_log_intensity(values: Values, scaling: str) -> Values:
    """Natural log of SAR intensity, where speckle is additive: any shape, array or tensor.

    Args:
        values: as stored. Zeros are lifted (amplitude to .5, intensity to 1e-6) to stay finite.
        scaling: ``amplitude8`` (intensity is its square), ``intensity`` (linear power) or ``db``.
    """
    logarithm = log if isinstance(values, Tensor) else np.log
    if scaling == "amplitude8":
        return 2 * logarithm(values.clip(min=0.5))
    if scaling == "intensity":
        return logarithm(values.clip(min=1e-6))
    if scaling == "db":
        return values * (math.log(10) / 10)
    raise ValueError(f"scaling '{scaling}' is not one of a SAR sensor")
