"""Scenes: co-registered optical, SAR and label files, opened lazily, checked, read by window."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor, log

from .config import IGNORE, DataError
from .layouts import DTYPES, LandClass, Layout, Sensor, load_layout
from .layouts.pairing import SPOKEN, Pairing, pair_files
from .layouts.splits import split_names
from .rasters import Grid, count_values, grid_defect, grid_of, opened, read_window, write_raster

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

SAID_CODES = 12  # a lossy label has a hundred unknown ones

Values = TypeVar("Values", NDArray[Any], Tensor)


@dataclass(frozen=True)
class Scene:
    """One place: an optical file, its SAR partner, its label where there is one."""

    name: str
    optical: Path
    sar: Path | None
    label: Path | None
    layout: Layout

    def profile(self) -> Grid:
        """Size, CRS and transform of the optical file, which the others share (see ``check``)."""
        with opened(self.optical) as source:
            return grid_of(source)

    def files(self) -> dict[str, tuple[Path, Sensor | None]]:
        """Role -> file and its sensor (None: a label), optical first."""
        found: dict[str, tuple[Path, Sensor | None]] = {
            "optical": (self.optical, self.layout.optical)
        }
        if self.sar:
            found["sar"] = (self.sar, self.layout.sar)
        if self.label:
            found["label"] = (self.label, None)
        return found

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
                grids[role] = _checked_grid(path, sensor)
            except DataError as error:  # unreadable: nothing to compare
                found.append(str(error))
                continue
            if role != "optical" and "optical" in grids:
                found += grid_defect(self.optical, grids["optical"], path, grids[role])
        if "label" in grids:
            try:
                found += self._unknown_codes()
            except DataError as error:
                found.append(str(error))
        return found

    def label_codes(self) -> Counter[int]:
        """Codes of the label file with their pixel counts, read strip by strip.

        Raises:
            DataError: the file cannot be read.
        """
        return count_values(self.label) if self.label else Counter()

    def _unknown_codes(self) -> list[str]:
        assert self.label is not None
        known = {code for c in self.layout.classes for code in c.codes}
        known |= set(self.layout.label_nodata)
        unknown = {code: n for code, n in self.label_codes().items() if code not in known}
        return [_unknown_codes(unknown, self.layout, self.label)] if unknown else []

    def read(self, window: Window | None = None) -> dict[str, NDArray[Any]]:
        """Read a window, or the whole scene.

        Returns:
            ``optical (Co, h, w)`` and ``sar (Cs, h, w)`` as stored (no ``sar`` where the layout
            has none), ``label (h, w)`` int64 class ids with 255 = ignore (everywhere where there
            is no label file), ``valid (h, w)`` bool: no band is nodata, NaN or Inf.

        Raises:
            DataError: unreadable or truncated file, unknown label codes, not one valid pixel in
                a whole scene.
        """
        optical, valid = _read_sensor(self.optical, self.layout.optical, window)
        parts = {"optical": optical, "valid": valid}
        if self.sar and self.layout.sar:
            parts["sar"], sar_valid = _read_sensor(self.sar, self.layout.sar, window)
            valid &= sar_valid
        parts["label"] = np.full(valid.shape, IGNORE, np.int64)
        if self.label:
            codes = read_window(self.label, window)[0][0]
            parts["label"] = _class_ids(codes, self.layout, self.label)
        if window is None and not valid.any():
            raise DataError(self.all_nodata(valid.size))
        return parts

    def all_nodata(self, size: int) -> str:
        """The sentence on a scene without one valid pixel of ``size``."""
        return (
            f"Scene {self.name} has 0 valid pixels of {size}: every pixel is nodata in "
            f"{self.optical} or in its SAR partner; remove the scene or correct 'nodata' in "
            f"{self.layout.source}."
        )


def form_defects(path: Path, sensor: Sensor | None, role: str) -> list[str]:
    """What a file's header has against the layout: bands, dtype, nodata.

    Args:
        path: of the file.
        sensor: its sensor in the layout; None: a label.
        role: ``optical``, ``sar`` or ``label``.

    Raises:
        DataError: the file cannot be opened.
    """
    with opened(path) as source:
        bands, dtype, nodata = source.count, source.dtypes[0], source.nodata
    names, dtypes = (sensor.bands, DTYPES[sensor.scaling]) if sensor else (("class code",), ())
    file = f"{SPOKEN[role]} file {path}"
    found = []
    if bands != len(names) and not (role == "sar" and _is_grey(bands, names)):
        found.append(
            f"{file} has {bands} bands, but the layout names {len(names)} "
            f"({', '.join(names)}); choose another layout or mend its bands."
        )
    if sensor and dtype not in dtypes:
        found.append(
            f"{file} is {dtype}, but scaling '{sensor.scaling}' of the layout means "
            f"{' or '.join(dtypes)}; choose another layout or mend its scaling."
        )
    if not sensor and np.dtype(dtype).kind not in "iu":
        found.append(f"{file} is {dtype}, but class codes are integers; convert it.")
    if sensor and None not in (sensor.nodata, nodata) and nodata != sensor.nodata:
        found.append(
            f"{file} declares nodata {nodata:g}, but the layout says "
            f"{sensor.nodata:g}; make the two agree."
        )
    return found


def _is_grey(bands: int, names: Sequence[str]) -> bool:
    """Whether one band was stored as the three equal channels of a grey picture."""
    return bands == 3 and len(names) == 1


def _checked_grid(path: Path, sensor: Sensor | None) -> Grid:
    with opened(path) as source:
        grid = grid_of(source)
        last_row = source.read(window=Window(0, grid.height - 1, grid.width, 1))
    if sensor and sensor.scaling == "intensity" and (last_row < 0).any():
        raise DataError(
            f"SAR file {path} has values down to {np.nanmin(last_row):.4g}, but scaling "
            "'intensity' of the layout means power, never below 0; if these are decibels, use 'db'."
        )
    return grid


def _read_sensor(
    path: Path, sensor: Sensor, window: Window | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values, declared = read_window(path, window)  # (C, h, w)
    if _is_grey(len(values), sensor.bands):
        if (values != values[:1]).any():
            raise DataError(
                f"SAR file {path} has 3 bands that differ, but the layout names one "
                f"({sensor.bands[0]}); choose another layout or mend its bands."
            )
        values = values[:1]
    nodata = declared if sensor.nodata is None else sensor.nodata
    valid = np.ones(values.shape[1:], bool)
    for band in values:  # band by band: a whole scene's temporary arrays would be large
        if band.dtype.kind == "f":
            valid &= np.isfinite(band)
        if nodata is not None:
            valid &= band != nodata
    return values, valid


def _class_ids(codes: NDArray[Any], layout: Layout, path: Path) -> NDArray[np.int64]:
    """Label codes as class ids; codes that the layout does not know raise."""
    ids = np.full(codes.shape, -1, np.int64)
    table = {code: land.id for land in layout.classes for code in land.codes}
    for code, id_ in (table | dict.fromkeys(layout.label_nodata, IGNORE)).items():
        ids[codes == code] = id_
    unknown, counts = np.unique(codes[ids < 0], return_counts=True)
    if unknown.size:
        found = dict(zip(unknown.tolist(), counts.tolist(), strict=True))
        raise DataError(_unknown_codes(found, layout, path))
    return ids


def _unknown_codes(counts: Mapping[int, int], layout: Layout, path: Path) -> str:
    listed = ", ".join(f"{code} ({counts[code]} px)" for code in sorted(counts)[:SAID_CODES])
    if len(counts) > SAID_CODES:
        listed += f" and {len(counts) - SAID_CODES} more"
    known = [f"{code} {c.name}" for c in layout.classes for code in c.codes] or ["no classes"]
    return (
        f"Label file {path} has unknown codes {listed}; layout {layout.source} knows "
        f"{', '.join(known)} "
        f"and label_nodata {list(layout.label_nodata)}; add them there or mend the label."
    )


def find_scenes(root: Path, layout: Layout) -> list[Scene]:
    """Pair the files of a data folder by name, sorted.

    A label may lack (such a scene is mapped, not scored); an optical or SAR file without its
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
        Scene(name, files["optical"], files.get("sar"), files.get("label"), layout)
        for name, files in pairing.scenes.items()
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
