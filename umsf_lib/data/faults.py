"""Say errors of rasterio, GDAL and PROJ in one sentence that helps the user."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError, CPLE_NotSupportedError, CPLE_OutOfMemoryError
from rasterio.crs import CRS
from rasterio.env import PROJDataFinder, set_proj_data_search_path
from rasterio.errors import CRSError, RasterioError

from ..config import DataError, UmsfError
from .stack import BandFiles, Raster

# What rasterio raises about files; CRSError and UnicodeError are kinds of ValueError.
FAILURES = (RasterioError, CPLE_BaseError, OSError, ValueError, TypeError, MemoryError)

PROJ_VARIABLES = ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA")


@contextmanager
def explained(path: Raster) -> Iterator[None]:
    """Turn what rasterio, GDAL or PROJ raise about a file into a ``DataError``.

    Raises:
        DataError: one sentence: the file, what is wrong with it, and what to do.
    """
    try:
        yield
    except UmsfError:  # some are an OSError, too
        raise
    except FAILURES as error:
        raise DataError(_sentence(path, error)) from error


def _sentence(path: Raster, error: Exception) -> str:
    cause = error.__cause__ or error  # GDAL's own words
    reason = " ".join(str(cause).split()).rstrip(".")
    path = path.named_in(reason) if isinstance(path, BandFiles) else path
    reason = reason if len(reason) < 300 else f"{reason[:300]} ..."
    file = str(path).encode(errors="backslashreplace").decode()  # names may be no Unicode
    if isinstance(error, UnicodeError):
        return f"{file} has a name or holds text that is no UTF-8 ({reason}); rename or rewrite it."
    if isinstance(error, MemoryError | CPLE_OutOfMemoryError):
        return f"{file} needs more memory than there is ({reason}); cut it into smaller scenes."
    if "proj.db" in reason:
        return f"{file}: PROJ cannot use its database ({reason}); unset {_proj_variables()}."
    if isinstance(error, CRSError) or "coordinate operation" in reason:
        return (
            f"{file}: its coordinate system is unknown or leads nowhere ({reason}); give the file "
            "the CRS that it really has, as with `gdal_edit.py -a_srs EPSG:32650 FILE`."
        )
    if path.is_dir():
        return f"{file} is a folder, but a file is needed there; move or rename it."
    if "CURL error" in reason or "HTTP response" in reason:
        return f"{file} cannot be fetched ({reason}); check the address and the network."
    if "Permission denied" in reason:
        return f"{file} cannot be read ({reason}); ask for the right to read it (chmod +r)."
    if path.is_file() and "No such file" in reason:
        return f"{file} needs another file that is missing ({reason}); restore that one."
    known = isinstance(error, RasterioError | CPLE_BaseError | OSError)
    if not known or isinstance(cause, CPLE_NotSupportedError) or "codec" in reason:
        return f"{file} is in a form that rasterio cannot handle ({reason}); convert it."
    return unreadable(path, reason)


def unreadable(path: Path, reason: object) -> str:
    """Say in one sentence that the content of a file cannot be read."""
    size = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
    return (
        f"{path} ({size}) cannot be read: it is truncated, damaged or not a raster "
        f"({' '.join(str(reason).split()).rstrip('.')}); copy or download it again."
    )


def use_own_proj() -> None:
    """Use rasterio's own PROJ database if PROJ_DATA or PROJ_LIB names one that does not fit.

    PostGIS, conda and QGIS set these variables, for their own versions of PROJ. A rasterio that pip
    installed brings a database; with another one, the warning says what to unset.
    """
    try:
        with rasterio.Env():  # outside of it, GDAL prints errors
            CRS.from_epsg(4326)
    except CRSError as error:
        wrong, own = _proj_variables(), PROJDataFinder().search_wheel()
        if own:
            set_proj_data_search_path(own)
            for name in PROJ_VARIABLES[:2]:  # processes that this one starts find their own, too
                os.environ.pop(name, None)
        so = "rasterio's own is used" if own else "no coordinate system can be read"
        warnings.warn(
            f"{wrong} leads to files of another PROJ than rasterio's, so {so}; unset it "
            f"({str(error).rstrip('.')}).",
            stacklevel=2,
        )


def _proj_variables() -> str:
    """List the environment variables that can lead PROJ and GDAL to files of other versions."""
    found = (f"{name}={os.environ[name]}" for name in PROJ_VARIABLES if name in os.environ)
    return ", ".join(found) or "PROJ_DATA"


use_own_proj()
