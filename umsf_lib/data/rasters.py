"""Read and write rasters, and locate their pixels.

Formats that GDAL opens (GeoTIFF, JPEG, PNG) and NumPy's ``.npy`` can be read; GeoTIFFs are written.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform as project
from rasterio.windows import Window

from ..config import DataError
from ..run import write_atomically
from .stack import BandFiles, Raster, stacked

TOLERANCE_PX = 0.01
DEGREE_M = 111_195.0  # one degree on a sphere of radius 6371 km
STRIP_PX = 256  # rows read at a time, to limit memory use


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
            raise _unreadable(path, error) from error
        if array.ndim == 2:
            array = array[None]
        elif array.ndim != 3 or array.shape[0] == array.shape[2]:
            what = f"its shape {array.shape} does not tell bands from rows and columns"
            raise _unreadable(path, what)
        elif array.shape[2] < array.shape[0]:
            array = array.transpose(2, 0, 1)
        self.array = array  # (C, h, w)
        self.count, self.height, self.width = array.shape
        self.dtypes = (array.dtype.name,)

    def read(self, band: int | None = None, *, window: Window | None = None) -> NDArray[Any]:
        """Return ``(C, h, w)``, or ``(h, w)`` of one band (from 1), in native byte order."""
        part: tuple[slice, ...] = window.toslices() if window else ()
        values = self.array[(slice(None) if band is None else band - 1, *part)]
        return np.array(values, values.dtype.newbyteorder("="), order="C")


def pixel_size_m(grid: Grid) -> tuple[float, float] | None:
    """Return height and width on the ground, in metres, of the pixel at the centre of a raster.

    They are computed on a sphere. A "10 m" Mercator grid, for example, has pixels of about 8 m at
    34 degrees north. The result is None without a geographic or projected CRS.
    """
    if grid.crs is None or not (grid.crs.is_geographic or grid.crs.is_projected):
        return None
    t, column, row = grid.transform, grid.width / 2, grid.height / 2
    x, y = t.c + column * t.a + row * t.b, t.f + column * t.d + row * t.e
    ends = project(grid.crs, "EPSG:4326", [x, x + t.b, x + t.a], [y, y + t.e, y + t.d])
    longitudes, latitudes = ends[:2]  # of the pixel, the one below, the one to the right
    shrink = math.cos(math.radians(latitudes[0]))
    down, right = (
        DEGREE_M * math.hypot(shrink * (longitudes[i] - longitudes[0]), latitudes[i] - latitudes[0])
        for i in (1, 2)
    )
    return down, right


@contextmanager
def opened(path: Raster) -> Iterator[Any]:
    """Open a raster as a rasterio dataset or a ``NumpyRaster``.

    Raises:
        DataError: the file cannot be opened, or rasterio fails to read it in the ``with`` block.
    """
    if isinstance(path, Path) and path.suffix.lower() == ".npy":
        yield NumpyRaster(path)
        return
    try:
        with _open(path) as source:
            yield source
    except RasterioError as error:
        reason = error.__cause__ or error
        file = path.named_in(str(reason)) if isinstance(path, BandFiles) else path
        raise _unreadable(file, reason) from error


def _open(path: Raster, mode: str = "r", **form: Any) -> Any:
    name: Path | str
    if isinstance(path, BandFiles):
        with ExitStack() as files:
            name = stacked(path.paths, [files.enter_context(opened(file)) for file in path.paths])
    else:
        name = path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates are fine
        return rasterio.open(name, mode, **form)


def _unreadable(path: Path, reason: BaseException | str) -> DataError:
    size = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
    return DataError(
        f"{path} ({size}) cannot be read: it is truncated, damaged or not a raster "
        f"({' '.join(str(reason).split()).rstrip('.')}); copy or download it again."
    )


def grid_of(source: Any) -> Grid:
    """Return the grid of an opened dataset."""
    return Grid(source.height, source.width, source.crs, source.transform)


def read_window(path: Raster, window: Window | None) -> tuple[NDArray[Any], float | None]:
    """Return values ``(C, h, w)`` in the file's dtype, and the nodata value that it declares.

    Raises:
        DataError: the file cannot be read, or the window extends beyond it.
    """
    with opened(path) as source:
        values = source.read(window=window)
        if window and values.shape[1:] != (window.height, window.width):
            raise DataError(f"{path} is {grid_of(source)}, but {window} reaches beyond it.")
        return values, source.nodata


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
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    class_names: Mapping[int, str] | None = None,
    overviews: str | None = None,
) -> None:
    """Write ``(C, h, w)``, or ``(h, w)`` for one band, as a tiled, deflated GeoTIFF, atomically.

    Without a CRS, coordinates are in pixels. ``descriptions`` are the names of the bands. A single
    uint8 band may have ``colors`` (value -> red, green, blue) and ``class_names`` (value -> name),
    which go to ``<path>.aux.xml``, where GDAL and QGIS read them. With ``overviews`` ("mode" or
    "average", of the pixels below), it is a cloud optimized GeoTIFF, fast at any zoom of a GIS.
    """
    bands = array if array.ndim == 3 else array[None]  # (C, h, w)
    form: dict[str, Any] = {"compress": "deflate", "bigtiff": "if_safer"}
    if overviews:  # GDAL writes it in one go, so rasterio gathers the bands in memory
        form |= {"driver": "COG", "overview_resampling": overviews}
    else:  # unspecified: else GDAL reads a fourth 8-bit band (NIR) as transparency
        form |= {"driver": "GTiff", "tiled": True, "alpha": "unspecified"}
    form |= dict(zip(("count", "height", "width"), bands.shape, strict=True))
    form |= {"crs": crs, "transform": transform, "nodata": nodata, "dtype": bands.dtype.name}

    def write(temporary: Path) -> None:
        with _open(temporary, "w", **form) as target:
            target.write(bands)
            if overviews and len(bands) == 3:  # a plain GeoTIFF says so by itself
                target.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            if colors:
                target.write_colormap(1, {code: (*rgb, 255) for code, rgb in colors.items()})
            if descriptions:
                target.descriptions = descriptions

    write_atomically(path, write)
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
