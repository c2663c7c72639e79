"""Bands in files of their own, which GDAL reads as one raster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp, MaskFlags

from ..config import DataError

NEST_PX = 0.01  # corners of a coarser band may miss those of fine pixels by this much


@dataclass(frozen=True)
class BandFiles:
    """Files of one band each that ``rasters.opened`` opens as one raster."""

    paths: tuple[Path, ...]  # in the order of the bands

    def __str__(self) -> str:
        """Name the first file, for messages."""
        return f"{self.paths[0]} (with {len(self.paths) - 1} more band files)"

    def named_in(self, reason: str) -> Path:
        """Return the file that an error of GDAL names, else the first."""
        named = [path for path in self.paths if path.name in reason]
        return max(named, key=lambda path: len(path.name), default=self.paths[0])


Raster = Path | BandFiles


def paths_of(raster: Raster) -> tuple[Path, ...]:
    """Return the file of a raster, or the files of its bands."""
    return raster.paths if isinstance(raster, BandFiles) else (raster,)


def stacked(paths: Sequence[Path], sources: Sequence[Any]) -> str:
    """Describe opened files of one band each as one raster, on the grid of the finest.

    A pixel of a coarser band is repeated for each fine pixel in it. Nodata, masks, scale, offset
    and description of each file are kept.

    Returns:
        GDAL's VRT document, which can be opened like a file name.

    Raises:
        DataError: a file does not hold one band, or does not go with the finest.
    """
    fine = min(sources, key=lambda source: abs(source.transform.determinant))
    bands = ""
    for number, (path, source) in enumerate(zip(paths, sources, strict=True), start=1):
        if reason := _misfit(source, fine):
            raise DataError(f"{path} {reason}.")
        bands += _band(number, path, source, fine)
    srs = f"<SRS>{escape(fine.crs.to_wkt())}</SRS>" if fine.crs else ""
    place = ", ".join(map(repr, fine.transform.to_gdal()))
    return (
        f'<VRTDataset rasterXSize="{fine.width}" rasterYSize="{fine.height}">{srs}'
        f"<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"
    )


def _misfit(source: Any, fine: Any) -> str:
    """Say why a file cannot be one band beside the finest file; empty if it can."""
    bands = 1 + sum(meaning != ColorInterp.alpha for meaning in source.colorinterp[1:])
    if bands != 1:
        return (
            f"has {bands} bands, but the layout's pattern means a file of one band; give one "
            "pattern for all bands, or split the file with 'gdal_translate -b'"
        )
    if source.gcps[0] or source.rpcs:
        return (
            "is placed by ground control points or RPCs; warp each band with 'gdalwarp -t_srs "
            f"EPSG:... {source.name} OUTPUT' first"
        )
    for what, own, other in (
        ("dtype", source.dtypes[0], fine.dtypes[0]),
        ("coordinate system", source.crs, fine.crs),
    ):
        if own != other:
            own, other = own or "none", other or "none"
            return f"has {what} {own}, but {fine.name} has {other}; convert one of them"
    if not _nests(source, fine):
        own, other = (
            f"{s.width} x {s.height} px, origin ({s.transform.c:.10g}, {s.transform.f:.10g}), "
            f"step ({s.transform.a:.8g}, {s.transform.e:.8g})"
            for s in (source, fine)
        )
        return (
            f"is {own}, but {fine.name}, the finest band, is {other}: the bands must cover the "
            "same ground, a coarser pixel a whole number of fine ones; use 'rio warp FILE OUTPUT "
            f"--like {fine.name}'"
        )
    return ""


def _placed(source: Any, other: Any) -> NDArray[np.float64]:
    """Return the matrix ``(3, 3)`` from pixels of a raster to those of another."""
    own, its = (np.reshape(tuple(s.transform)[:9], (3, 3)) for s in (source, other))
    return np.linalg.solve(its, own)


def _nests(source: Any, fine: Any) -> bool:
    """Return whether each fine pixel lies in one pixel of a file without spare rows or columns."""
    own = _placed(source, fine)
    exact = own.round()
    ends = [(x, y, 1) for x in (0, source.width) for y in (0, source.height)]
    apart = np.hypot(*((own - exact) @ np.transpose(ends))[:2]).max()  # px
    return bool(apart <= NEST_PX) and all(
        -step < start <= 0 and size == math.ceil((whole - start) / step)
        for step, start, size, whole in (
            (exact[0, 0], exact[0, 2], source.width, fine.width),
            (exact[1, 1], exact[1, 2], source.height, fine.height),
        )
    )


def _band(number: int, path: Path, source: Any, fine: Any) -> str:
    """Describe the band of a file, stretched to the fine grid, in the words of GDAL's VRT."""
    (width, _, left), (_, height, top), _ = _placed(fine, source).tolist()
    part = (
        f'<SrcRect xOff="{left}" yOff="{top}" xSize="{fine.width * width}" '
        f'ySize="{fine.height * height}"/>'
        f'<DstRect xOff="0" yOff="0" xSize="{fine.width}" ySize="{fine.height}"/>'
    )
    file = f'<SourceFilename relativeToVRT="0">{escape(str(path.absolute()))}</SourceFilename>'

    def read(band: str) -> str:
        return f"<SimpleSource>{file}<SourceBand>{band}</SourceBand>{part}</SimpleSource>"

    nodata = "" if source.nodata is None else f"<NoDataValue>{source.nodata!r}</NoDataValue>"
    mask = ""
    if source.mask_flag_enums[0] not in ([MaskFlags.all_valid], [MaskFlags.nodata]):
        mask = (
            f'<MaskBand><VRTRasterBand dataType="Byte">{read("mask,1")}</VRTRasterBand></MaskBand>'
        )
    return (
        f'<VRTRasterBand dataType="{typename_fwd[dtype_rev[source.dtypes[0]]]}" band="{number}">'
        f"<Description>{escape(source.descriptions[0] or '')}</Description>{nodata}"
        f"<Scale>{source.scales[0]!r}</Scale><Offset>{source.offsets[0]!r}</Offset>"
        f"{read('1')}{mask}</VRTRasterBand>"
    )
