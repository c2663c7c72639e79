"""Read and write rasters, and locate their pixels.

Formats that GDAL opens (GeoTIFF, JPEG, PNG) and NumPy's ``.npy`` can be read; GeoTIFFs are written.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import xy
from rasterio.warp import transform as project
from rasterio.windows import Window

from ..config import DataError
from ..run import write_atomically
from .faults import explained, unreadable
from .stack import BandFiles, Raster, stacked

TOLERANCE_PX = 0.01
SAID_PARTS = 4  # listed in a message
STRIP_PX = 256  # rows read at a time, to limit memory use
# GDAL's own defaults. Another value in the environment would hide sidecars or damage in silence.
GDAL_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": False,  # reads .aux.xml, .msk and world files
    "GDAL_PAM_ENABLED": True,  # reads .aux.xml
    "GTIFF_IGNORE_READ_ERRORS": False,
}


@dataclass(frozen=True)
class Grid:
    """Size and position of a raster; without a CRS, coordinates are in pixels."""

    height: int
    width: int
    crs: CRS | None
    transform: Affine

    def __str__(self) -> str:
        """Describe the grid for messages: size, CRS, origin and step."""
        t, crs = self.transform, self.crs.to_string() if self.crs else "no CRS"
        size = f"{self.width} x {self.height} px"
        turned = f", shear ({t.b:.8g}, {t.d:.8g})" if t.b or t.d else ""
        step = f"step ({t.a:.8g}, {t.e:.8g}){turned}"
        return f"{size}, {crs}, origin ({t.c:.10g}, {t.f:.10g}), {step}"

    def apart_px(self, other: Grid) -> float:
        """Return the largest distance between corresponding corners, in pixels of this grid."""
        own, its = (np.reshape(tuple(g.transform)[:9], (3, 3)) for g in (self, other))
        corners = np.array([(c, r, 1) for c in (0, self.width) for r in (0, self.height)]).T
        gap = np.linalg.solve(own, its @ corners) - corners  # (3, 4) px
        return float(np.hypot(gap[0], gap[1]).max())


class NumpyRaster:
    """A memory-mapped ``.npy`` array with the parts of rasterio's dataset interface used here.

    Its coordinates are pixels. The array is ``(h, w)``, ``(h, w, C)`` or ``(C, h, w)``; the shorter
    of the first and last axes holds the bands.
    """

    crs, transform, nodata, descriptions = None, Affine.identity(), None, (None,)
    gcps, rpcs, subdatasets = ((), None), None, ()

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            DataError: the file is incomplete, not an array of numbers or not a raster.
        """
        try:
            array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        except (OSError, EOFError, ValueError, SyntaxError, TypeError) as error:
            if "Python objects" in str(error):
                raise DataError(
                    f"{path} holds Python objects, and reading them could run any code; save a "
                    "plain array instead (data/README.md, 'Sentinel-2 tiles')."
                ) from error
            raise DataError(unreadable(path, error)) from error
        if array.ndim == 2:
            array = array[None]
        elif array.ndim != 3 or array.shape[0] == array.shape[2]:
            what = f"its shape {array.shape} does not tell bands from rows and columns"
            raise DataError(unreadable(path, what))
        elif array.shape[2] < array.shape[0]:
            array = array.transpose(2, 0, 1)
        self.array = array  # (C, h, w)
        self.count, self.height, self.width = array.shape
        self.shape, self.indexes = array.shape[1:], range(1, self.count + 1)
        self.dtypes = (array.dtype.name,) * self.count
        self.nodatavals = (None,) * self.count
        self.scales, self.offsets = (1.0,) * self.count, (0.0,) * self.count
        self.mask_flag_enums = ([MaskFlags.all_valid],) * self.count
        self.colorinterp = (ColorInterp.undefined,) * self.count

    def read(
        self, band: int | list[int] | None = None, *, window: Window | None = None
    ) -> NDArray[Any]:
        """Return ``(C, h, w)``, or ``(h, w)`` of one band (from 1), in native byte order."""
        part: tuple[slice, ...] = window.toslices() if window else ()
        values = self.array[(slice(None) if band is None else np.array(band, int) - 1, *part)]
        return np.array(values, values.dtype.newbyteorder("="), order="C")

    def tags(self, band: int = 0, ns: str = "") -> dict[str, str]:
        """Return the metadata of the file or of a band: an array has none."""
        return {}


def pixel_size_m(grid: Grid) -> tuple[float, float] | None:
    """Return height and width on the ground, in metres, of the pixel at the centre of a raster.

    They are lengths on the ellipsoid WGS 84. A "10 m" Mercator grid, for example, has pixels of
    about 8 m at 34 degrees north. The result is None without a geographic or projected CRS, or if
    the centre has no place on Earth.
    """
    row, col = grid.height / 2, grid.width / 2
    ends = _on_earth(grid, [row - 0.5, row + 0.5, row, row], [col, col, col - 0.5, col + 0.5])
    return None if ends is None else (_apart_m(*ends[:2]), _apart_m(*ends[2:]))


def apart_km(grid: Grid, other: Grid) -> float | None:
    """Return the distance of the centres of two grids in km; None if one has no place on Earth."""
    a, b = (_on_earth(each, [each.height / 2], [each.width / 2]) for each in (grid, other))
    return None if a is None or b is None else _apart_m(a[0], b[0]) / 1000


def _on_earth(grid: Grid, rows: list[float], cols: list[float]) -> NDArray[np.float64] | None:
    """Return geocentric coordinates ``(N, 3)`` in metres of places on the ellipsoid WGS 84.

    Unlike degrees, they have no jump at the antimeridian and no pole.
    """
    if grid.crs is None or not (grid.crs.is_geographic or grid.crs.is_projected):
        return None
    x, y = xy(grid.transform, rows, cols, offset="ul")
    try:
        found = np.array(project(grid.crs, "EPSG:4978", x, y, [0.0] * len(rows))).T
    except (RasterioError, CPLE_BaseError):  # on the Moon, or outside of the projection
        return None
    return found if np.isfinite(found).all() else None


def _apart_m(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the length of the arc between two places ``(3,)``, from that of its chord."""
    diameter = float(np.linalg.norm(a) + np.linalg.norm(b))
    return diameter * math.asin(min(float(np.linalg.norm(a - b)) / diameter, 1.0))


@contextmanager
def opened(path: Raster) -> Iterator[Any]:
    """Open a raster as a rasterio dataset or a ``NumpyRaster``.

    Raises:
        DataError: the file cannot be opened or used, or rasterio fails in the ``with`` block.
    """
    with explained(path), rasterio.Env(**GDAL_SETTINGS), _open(path) as source:
        if unfit := _unfit(source) or _unfit_mask(Path(f"{path}.msk"), source):
            raise DataError(f"{path} {unfit}.")
        yield source


def _open(path: Raster) -> Any:
    if isinstance(path, BandFiles):
        with ExitStack() as files:
            name = stacked(path.paths, [files.enter_context(opened(file)) for file in path.paths])
    elif path.suffix.lower() == ".npy":
        return nullcontext(NumpyRaster(path))
    else:
        name = str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates are fine
        return rasterio.open(name)


def _unfit(source: Any) -> str:
    """Say why an opened dataset can be no file of a scene, and what to do; empty if it can."""
    if parts := source.subdatasets:
        more = ", ..." if parts[SAID_PARTS:] else ""
        return (
            f"holds {len(parts)} rasters, and only one could be read: "
            f"{', '.join(parts[:SAID_PARTS])}{more}; write each one you need to a file: "
            f"gdal_translate '{parts[0]}' OUT.tif"
        )
    if 0 in (source.count, source.height, source.width):
        size = f"{source.count} bands of {source.width} x {source.height} px"
        return f"is empty ({size}); write the part that you need as a GeoTIFF"
    bands = zip(source.dtypes, source.colorinterp, strict=True)
    types = sorted({dtype for dtype, meaning in bands if meaning is not ColorInterp.alpha})
    if any(dtype.startswith("complex") for dtype in types):
        return (
            f"is complex ({', '.join(types)}), as single-look SAR with its phase is; compute the "
            "intensity first (calibrate, multilook), for example with SNAP"
        )
    if len(types) > 1:
        listed = ", ".join(types)
        return f"has bands of several types ({listed}); write them in one (`gdal_translate -ot`)"
    t = source.transform
    turned = t.a * t.e - t.b * t.d  # 0 if columns or rows have no length, or all one direction
    if not math.isfinite(turned + t.c + t.f) or not turned:
        return f"has no usable place: its transform is {tuple(t)[:6]}; correct it or leave it out"
    return ""


def _unfit_mask(path: Path, source: Any) -> str:
    """Say why the mask file beside a dataset is none that GDAL reads rightly; empty if it is."""
    if not os.path.lexists(path):
        return ""
    with opened(path) as mask:
        size = f"{mask.width} x {mask.height} px"
    if mask.shape == source.shape and MaskFlags.per_dataset in source.mask_flag_enums[0]:
        return ""
    why = "lacks the tag INTERNAL_MASK_FLAGS_1, so GDAL leaves it out"
    if mask.shape != source.shape:
        why = f"is {size}, and the file {source.width} x {source.height} px"
    return f"has a mask {path} that {why}; write the mask anew (rasterio: write_mask) or remove it"


def grid_of(source: Any) -> Grid:
    """Return the grid of an opened dataset; a CRS without a transform places nothing."""
    crs = None if source.transform.is_identity else source.crs
    return Grid(source.height, source.width, crs, source.transform)


class Pixels(NamedTuple):
    """The bands of a window that hold data, and what their file says of them."""

    stored: NDArray[Any]  # (C, h, w) in the file's dtype
    declared: NDArray[np.bool_]  # (C, h, w), see declared_valid
    scale: NDArray[np.float64]  # (C, 1, 1)
    offset: NDArray[np.float64]  # (C, 1, 1)

    def first(self, count: int) -> Pixels:
        """Return the first bands only."""
        return Pixels(*(part[:count] for part in self))  # type: ignore[arg-type]

    def physical(self) -> NDArray[Any]:
        """Return ``stored * scale + offset`` ``(C, h, w)`` as floats; as stored without these."""
        if (self.scale == 1).all() and (self.offset == 0).all():
            return self.stored
        values = self.stored * self.scale + self.offset
        return values.astype(scaled_dtype(self.stored.dtype))


def read_window(path: Raster, window: Window | None, named: int | None = None) -> Pixels:
    """Read the data bands of a file, of which a layout names this many (default: all).

    Raises:
        DataError: the file cannot be read, or the window extends beyond it.
    """
    with opened(path) as source:
        bands = data_bands(source, named)
        values = source.read(bands, window=window)
        if window and values.shape[1:] != (window.height, window.width):
            raise DataError(f"{path} is {grid_of(source)}, but {window} reaches beyond it.")
        scale, offset = scaling_of(source, bands)[:, :, None, None]
        return Pixels(values, declared_valid(source, window, named), scale, offset)


def scaled_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of values that have been scaled: float32 where it holds the stored ones."""
    return np.result_type(dtype, np.float32)


def scaling_of(source: Any, bands: Sequence[int]) -> NDArray[np.float64]:
    """Return the scale and the offset ``(2, C)`` that a dataset declares for bands (from 1)."""
    return np.array([[tags[i - 1] for i in bands] for tags in (source.scales, source.offsets)])


def data_bands(source: Any, named: int | None = None) -> list[int]:
    """Return the indexes (from 1) of the bands that hold data, if a layout names this many.

    A band tagged alpha is data where it is named (near infrared often has this tag, and None names
    all), and transparency where the file has more bands than are named.
    """
    if named is None or source.count <= named:
        return list(source.indexes)
    return [i for i in source.indexes if source.colorinterp[i - 1] is not ColorInterp.alpha]


def declared_valid(
    source: Any, window: Window | None = None, named: int | None = None
) -> NDArray[np.bool_]:
    """Return which pixels of its data bands an opened dataset declares to be valid.

    Not valid are the nodata value of each band, what an internal or external mask hides, and where
    a band of transparency (see ``data_bands``) is 0.

    Returns:
        ``(C, h, w) bool`` of the C bands of ``data_bands(source, named)``.
    """
    bands = data_bands(source, named)
    shape = (window.height, window.width) if window else source.shape
    valid = np.ones((len(bands), *shape), bool)
    for band, known in zip(bands, valid, strict=True):
        flags, nodata = source.mask_flag_enums[band - 1], source.nodatavals[band - 1]
        if MaskFlags.all_valid not in flags and MaskFlags.alpha not in flags:
            known &= source.read_masks(band, window=window) != 0
        if nodata is not None and flags != [MaskFlags.nodata]:  # GDAL reads one of the two
            values = source.read(band, window=window)
            known &= ~np.isnan(values) if np.isnan(nodata) else values != nodata
    for band in set(source.indexes) - set(bands):
        valid &= source.read(band, window=window) != 0
    return valid


def strips(grid: Grid) -> Iterator[Window]:
    """Yield windows of full width from top to bottom, to limit the memory for reading a file."""
    for top in range(0, grid.height, STRIP_PX):
        yield Window(0, top, grid.width, min(STRIP_PX, grid.height - top))


def grid_defect(path: Raster, grid: Grid, other_path: Raster, other: Grid) -> list[str]:
    """Say in one sentence how two files' grids differ by more than 1/100 pixel, if they do."""
    if (grid.height, grid.width) != (other.height, other.width):
        what = "sizes"
    elif grid.crs != other.crs:
        what = "coordinate systems"
    elif (apart := grid.apart_px(other)) > TOLERANCE_PX:
        what = f"grids (up to {apart:.2f} px apart, {TOLERANCE_PX} allowed)"
    else:
        return []
    return [
        f"The {what} differ: {path} is {grid}, but {other_path} is {other}; use `umsf data align` "
        "to write a copy with the second file on the grid of the first."
    ]


def write_raster(
    path: Path,
    array: NDArray[Any],
    *,
    crs: CRS | None,
    transform: Affine,
    nodata: float | None = None,
    descriptions: Sequence[str] | None = None,
    units: NDArray[np.float64] | None = None,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    class_names: Mapping[int, str] | None = None,
    overviews: str | None = None,
) -> None:
    """Write ``(C, h, w)``, or ``(h, w)`` for one band, as a tiled, deflated GeoTIFF, atomically.

    Without a CRS, coordinates are in pixels. ``descriptions`` are the names of the bands, ``units``
    ``(2, C)`` their scales and offsets, which are declared, not applied. A single uint8 band may
    have ``colors`` (value -> red, green, blue) and ``class_names`` (value -> name), which go to
    ``<path>.aux.xml``, where GDAL and QGIS read them. With ``overviews`` ("mode" or "average", of
    the pixels below), it is a cloud optimized GeoTIFF, fast at any zoom of a GIS.

    Raises:
        DataError: rasterio cannot write this, the disk is full, or nothing may be written there.
    """
    bands = array if array.ndim == 3 else array[None]  # (C, h, w)
    form: dict[str, Any] = {"compress": "deflate", "bigtiff": "if_safer"}
    if overviews:  # GDAL writes it in one go, so rasterio gathers the bands in memory
        form |= {"driver": "COG", "overview_resampling": overviews}
    else:  # unspecified: else GDAL reads a fourth 8-bit band (NIR) as transparency
        form |= {"driver": "GTiff", "tiled": True, "alpha": "unspecified"}
    form |= dict(zip(("count", "height", "width"), bands.shape, strict=True))
    form |= {"crs": crs, "transform": transform, "nodata": nodata, "dtype": bands.dtype.name}

    # In memory: on a disk that fills up with the last block, GDAL would report success.
    with explained(path), MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates are fine
        with memory.open(**form) as target:
            target.write(bands)
            if overviews and len(bands) == 3:  # a plain GeoTIFF says so by itself
                target.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            if colors:
                target.write_colormap(1, {code: (*rgb, 255) for code, rgb in colors.items()})
            if descriptions:
                target.descriptions = descriptions
            if units is not None:
                target.scales, target.offsets = units
        write_atomically(path, lambda temporary: temporary.write_bytes(memory.getbuffer()))
    for ending in (".msk", ".ovr"):  # of an older raster
        Path(f"{path}{ending}").unlink(missing_ok=True)
    _write_names(Path(f"{path}.aux.xml"), class_names)


def _write_names(path: Path, class_names: Mapping[int, str] | None) -> None:
    """Write GDAL's auxiliary XML, a list from value 0 on; remove that of an older raster."""
    if not class_names:
        path.unlink(missing_ok=True)
        return
    listed = (escape(class_names.get(v, "")) for v in range(max(class_names) + 1))
    rows = "".join(f"      <Category>{name}</Category>\n" for name in listed)
    text = (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{rows}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))
