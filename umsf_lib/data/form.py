"""Compare the header of a file with the layout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from ..config import DataError
from .layout import DTYPES, Sar, Sensor
from .pairing import SPOKEN
from .rasters import data_bands, opened, scaled_dtype, scaling_of
from .stack import Raster


def form_defects(path: Raster, sensor: Sensor | None, role: str) -> list[str]:
    """List the defects in a file's header compared with the layout: bands, dtype, nodata, scale.

    ``role`` is ``optical``, ``sar``, ``dem`` or ``label``, which has no ``sensor``.

    Raises:
        DataError: the file cannot be opened, or no geotransform places it.
    """
    names = sensor.bands if sensor else ("class code",)
    file = f"{SPOKEN[role]} file {path}"
    with opened(path) as source:
        bands = data_bands(source, len(names))
        check_placed(file, source)
        stored, (scale, offset) = np.dtype(source.dtypes[0]), scaling_of(source, bands)
        declared = [source.nodatavals[i - 1] for i in bands]
        palette = ColorInterp.palette in source.colorinterp
    found, tags = [], tags_of(scale, offset)
    more = is_grey(len(bands), sensor) or (role == "dem" and len(bands) > len(names))
    if len(bands) != len(names) and not more:
        advice = "choose another layout or correct its bands"
        if palette:
            advice = "its values are numbers of colours: gdal_translate -expand rgb IN OUT.tif"
        found.append(
            f"{file} has {len(bands)} bands, but the layout names {len(names)} "
            f"({', '.join(names)}); {advice}."
        )
    if not (np.isfinite(scale) & np.isfinite(offset) & (scale != 0)).all():
        found.append(f"{file} declares {tags}, of which no value can be made; correct them.")
    found += _dtype_defects(file, sensor, stored, tags)
    wanted = sensor.nodata if sensor else None
    nodata = np.unique([v for v in declared if v is not None])  # a set would keep each NaN
    others = [v for v in nodata if wanted is not None and not np.isclose(v, wanted, equal_nan=True)]
    if others:
        found.append(
            f"{file} declares nodata {' and '.join(f'{v:g}' for v in others)}, but the layout says "
            f"{wanted:g}; make the two agree."
        )
    return found


def tags_of(scale: NDArray[np.float64], offset: NDArray[np.float64]) -> str:
    """Describe the scales and offsets ``(C,)`` of a file in a few words; empty if it has none."""
    if (scale == 1).all() and (offset == 0).all():
        return ""
    said = (" to ".join(f"{v:g}" for v in np.unique([x.min(), x.max()])) for x in (scale, offset))
    return "scale {}, offset {}".format(*said)


def _dtype_defects(file: str, sensor: Sensor | None, stored: np.dtype[Any], tags: str) -> list[str]:
    """Say in one sentence if the dtype, after scale and offset (``tags``), is a wrong one."""
    if not sensor and (stored.kind not in "iu" or tags):
        what = f"{stored} with {tags}" if tags else f"{stored}"
        return [f"{file} is {what}, but class codes must be plain integers; convert the file."]
    dtype = scaled_dtype(stored) if tags else stored
    if sensor and dtype.name not in DTYPES[sensor.scaling]:
        what = f"{stored} with {tags}, which means {dtype}" if tags else f"{stored}"
        return [
            f"{file} is {what}, but scaling '{sensor.scaling}' of the layout means "
            f"{' or '.join(DTYPES[sensor.scaling])}; choose another layout or correct its scaling."
        ]
    return []


def check_placed(file: str, source: Any) -> None:
    """Refuse a file without a geotransform but with GCPs or their like; say what warps it."""
    (points, crs), rpcs = source.gcps, source.rpcs
    arrays = source.tags(ns="GEOLOCATION")
    if not source.transform.is_identity or not (points or rpcs or arrays):
        return
    target = crs.to_string() if crs else "EPSG:..."
    if points:
        what = f"{len(points)} ground control points (GCPs)"
        option = "-tps" if crs else "-tps -s_srs EPSG:..."
        middle = points[len(points) // 2]  # a mean would be wrong across 180 degrees
        place = (middle.x, middle.y) if crs and crs.is_geographic else None
    elif rpcs:
        what, option, place = "RPCs", "-rpc", (rpcs.long_off, rpcs.lat_off)
    else:
        what, option, place = "arrays of coordinates (geolocation)", "-geoloc", None
    if place:  # the UTM zone
        x, y = place
        target = f"EPSG:{(32600 if y >= 0 else 32700) + int((x + 180) // 6) % 60 + 1}"
    raise DataError(
        f"{file} is placed by {what} instead of a geotransform, so its pixels cannot be compared "
        f"with others; warp it: gdalwarp {option} -t_srs {target} IN OUT.tif."
    )


def is_grey(bands: int, sensor: Sensor | None) -> bool:
    """Return whether a single SAR band may be stored as three equal channels of a grey image."""
    return isinstance(sensor, Sar) and bands == 3 and len(sensor.bands) == 1
