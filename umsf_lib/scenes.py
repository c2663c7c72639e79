"""Scenes: co-registered optical, SAR and label files, opened lazily, checked, read by window."""

from __future__ import annotations

import math
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
from .layouts.splits import split_names
from .rasters import Grid, grid_of, opened, read_window, require_same_grid, write_raster

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

    def check(self) -> None:
        """Compare the files with the layout and with each other: bands, dtype, nodata, grid.

        The last row of each file is read, since a truncated GeoTIFF opens without complaint, and
        all codes of the label.

        Raises:
            DataError: the first thing that does not fit, with both sides.
        """
        grid = _check_file(self.optical, self.layout.optical, "optical")
        if self.sar:
            other = _check_file(self.sar, self.layout.sar, "SAR")
            require_same_grid(self.optical, grid, self.sar, other)
        if self.label:
            other = _check_file(self.label, None, "label")
            require_same_grid(self.optical, grid, self.label, other)
            _class_ids(read_window(self.label, None)[0][0], self.layout, self.label)

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
            raise DataError(
                f"Scene {self.name} has 0 valid pixels of {valid.size}: every pixel is nodata in "
                f"{self.optical} or in its SAR partner; remove the scene or correct 'nodata' in "
                f"{self.layout.source}."
            )
        return parts


def _check_file(path: Path, sensor: Sensor | None, role: str) -> Grid:
    """Compare a file's bands, dtype and nodata with the layout; ``sensor`` None: a label."""
    with opened(path) as source:
        last_row = source.read(window=Window(0, source.height - 1, source.width, 1))
        bands, dtype, nodata, grid = source.count, source.dtypes[0], source.nodata, grid_of(source)
    names, dtypes = (sensor.bands, DTYPES[sensor.scaling]) if sensor else (("class code",), ())
    if bands != len(names):
        raise DataError(
            f"{role} file {path} has {bands} bands, but the layout names {len(names)} "
            f"({', '.join(names)}); choose another layout or mend its bands."
        )
    if sensor and dtype not in dtypes:
        raise DataError(
            f"{role} file {path} is {dtype}, but scaling '{sensor.scaling}' of the layout means "
            f"{' or '.join(dtypes)}; choose another layout or mend its scaling."
        )
    if sensor and sensor.scaling == "intensity" and (last_row < 0).any():
        raise DataError(
            f"{role} file {path} has values down to {np.nanmin(last_row):.4g}, but scaling "
            "'intensity' of the layout means power, never below 0; if these are decibels, use 'db'."
        )
    if not sensor and np.dtype(dtype).kind not in "iu":
        raise DataError(f"label file {path} is {dtype}, but class codes are integers; convert it.")
    declared = sensor and sensor.nodata is not None and nodata is not None
    if sensor and declared and nodata != sensor.nodata:
        raise DataError(
            f"{role} file {path} declares nodata {nodata:g}, but the layout says "
            f"{sensor.nodata:g}; make the two agree."
        )
    return grid


def _read_sensor(
    path: Path, sensor: Sensor, window: Window | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values, declared = read_window(path, window)  # (C, h, w)
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
    for code, id_ in [(c.code, c.id) for c in layout.classes] + [
        (code, IGNORE) for code in layout.label_nodata
    ]:
        ids[codes == code] = id_
    unknown, counts = np.unique(codes[ids < 0], return_counts=True)
    if unknown.size:
        listed = ", ".join(f"{u} ({n} px)" for u, n in zip(unknown, counts, strict=True))
        known = ", ".join(f"{c.code} {c.name}" for c in layout.classes) or "no classes"
        raise DataError(
            f"Label file {path} has unknown codes {listed}; layout {layout.source} knows {known} "
            f"and label_nodata {list(layout.label_nodata)}; add them there or mend the label."
        )
    return ids


def find_scenes(root: Path, layout: Layout) -> list[Scene]:
    """Pair the files of a data folder by name, sorted.

    A label may lack (such a scene is mapped, not scored); an optical or SAR file without its
    partner and a label without its images may not.

    Raises:
        DataError: a folder is missing, nothing matches, or a file has no partner.
    """
    root = Path(root)
    files = {role: _files(root, layout, role) for role in layout.folders}
    optical, sar, label = (files.get(role, {}) for role in ("optical", "sar", "label"))
    if "sar" in files:
        if not optical.keys() & sar.keys():
            raise DataError(
                f"No optical file under {root} has a SAR file of the same name (optical: "
                f"{_some(optical)}; SAR: {_some(sar)}); rename the files so that pairs match."
            )
        _refuse_orphans(optical, sar, "SAR")
        _refuse_orphans(sar, optical, "optical")
    _refuse_orphans(label, optical, "optical")
    return [
        Scene(Path(name).stem, path, sar.get(name), label.get(name), layout)
        for name, path in sorted(optical.items())
    ]


def _files(root: Path, layout: Layout, role: str) -> dict[str, Path]:
    names = layout.folders[role]
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        if role == "label" and root.is_dir():
            return {}
        there = sorted(p.name for p in root.iterdir()) if root.is_dir() else None
        raise DataError(
            f"Data folder {root} has no {role} folder ({' or '.join(names)}/, layout "
            f"'{layout.name}'): "
            + (
                "it does not exist"
                if there is None
                else f"it holds {', '.join(there) or 'nothing'}"
            )
            + "; check the data path and the layout."
        )
    found = {p.name: p for p in folder.glob(layout.pattern) if not p.name.startswith(".")}
    if not found and role != "label":
        raise DataError(
            f"No file in {folder} matches '{layout.pattern}' (layout '{layout.name}'); "
            "check the data path and the layout's pattern."
        )
    return found


def _refuse_orphans(files: Mapping[str, Path], partners: Mapping[str, Path], role: str) -> None:
    alone = sorted(files.keys() - partners.keys())
    if alone:
        more = f" (and {len(alone) - 1} more: {_some(alone[1:])})" if alone[1:] else ""
        raise DataError(
            f"{files[alone[0]]} has no {role} partner of the same name{more}; add the missing "
            "file or move this one away."
        )


def _some(names: Sequence[str] | Mapping[str, Path], limit: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")


def split_scenes(root: Path, layout: Layout, scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """Scene names of the parts ``train``, ``val`` and ``test``; see ``layouts.splits``.

    Raises:
        DataError: the split list is malformed or leaves nothing to train on.
    """
    return split_names(Path(root), layout.split, sorted(scene.name for scene in scenes))


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
