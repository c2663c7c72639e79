"""One file of a scene against its layout: header, values and nodata, label codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from .config import IGNORE, DataError
from .layouts import DTYPES, Layout, Sensor
from .layouts.pairing import SPOKEN
from .rasters import Grid, grid_of, opened, read_window

LARGEST = 1e30  # in any unit; beyond are fill values such as -3.4e38, and overflows
SAID_CODES = 12  # a lossy label has a hundred unknown ones


def form_defects(path: Path, sensor: Sensor | None, role: str) -> list[str]:
    """What a file's header has against the layout: bands, dtype, nodata.

    Args:
        path: of the file.
        sensor: its sensor in the layout; None: a label.
        role: ``optical``, ``sar``, ``dem`` or ``label``.

    Raises:
        DataError: the file cannot be opened.
    """
    with opened(path) as source:
        bands, dtype, nodata = source.count, source.dtypes[0], source.nodata
    names, dtypes = (sensor.bands, DTYPES[sensor.scaling]) if sensor else (("class code",), ())
    file = f"{SPOKEN[role]} file {path}"
    found = []
    more = (role == "sar" and _is_grey(bands, names)) or (role == "dem" and bands > len(names))
    if bands != len(names) and not more:
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


def checked_grid(path: Path, sensor: Sensor | None) -> Grid:
    """Grid of a file whose last row can be read; ``sensor`` None: a label.

    Raises:
        DataError: it cannot, or most of it is negative though the layout says power.
    """
    with opened(path) as source:
        grid = grid_of(source)
        last_row = source.read(window=Window(0, grid.height - 1, grid.width, 1))
    if sensor and sensor.scaling == "intensity":
        known = last_row[_has_data(last_row, sensor, source.nodata)]
        # Where noise was subtracted a few powers are negative; of decibels most are.
        if 2 * (known < 0).sum() > known.size:
            raise DataError(
                f"SAR file {path} has values down to {known.min():.4g}, but scaling 'intensity' of "
                "the layout means power, never below 0; if these are decibels, use 'db'."
            )
    return grid


def _has_data(values: NDArray[Any], sensor: Sensor, declared: float | None) -> NDArray[np.bool_]:
    nodata = declared if sensor.nodata is None else sensor.nodata
    if values.dtype.kind != "f":
        return np.ones(values.shape, bool) if nodata is None else values != nodata
    known = np.abs(values) < LARGEST  # nor is NaN
    return known if nodata is None else known & (values != nodata)


def read_sensor(
    path: Path, sensor: Sensor, window: Window | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values ``(C, h, w)`` as stored, and ``(h, w)`` where no band is nodata, NaN or infinite.

    Raises:
        DataError: the file cannot be read, or a grey picture's three channels differ.
    """
    values, declared = read_window(path, window)  # (C, h, w)
    if sensor.scaling == "elevation":
        values = values[: len(sensor.bands)]  # what was derived from it may follow
    elif _is_grey(len(values), sensor.bands):
        if (values != values[:1]).any():
            raise DataError(
                f"SAR file {path} has 3 bands that differ, but the layout names one "
                f"({sensor.bands[0]}); choose another layout or mend its bands."
            )
        values = values[:1]
    valid = np.ones(values.shape[1:], bool)
    for band in values:  # band by band: a whole scene's temporary arrays would be large
        valid &= _has_data(band, sensor, declared)
    return values, valid


def class_ids(codes: NDArray[Any], layout: Layout, path: Path) -> NDArray[np.int64]:
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


def code_defects(counts: Mapping[int, int], layout: Layout, path: Path) -> list[str]:
    """Nothing if the layout knows all codes of a label, else a sentence; codes -> pixels."""
    known = {code for land in layout.classes for code in land.codes} | set(layout.label_nodata)
    unknown = {code: count for code, count in counts.items() if code not in known}
    return [_unknown_codes(unknown, layout, path)] if unknown else []


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
