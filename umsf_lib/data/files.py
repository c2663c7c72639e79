"""Find all files that decide the pixels of a raster: sidecars, and what a VRT refers to."""

from __future__ import annotations

import os
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import rasterio

from ..config import DataError
from .faults import explained

# Formats that hold their pixels themselves; others may refer to more files.
PLAIN = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".jp2", ".npy"}
# Headers, world files and metadata that are named after the stem; .aux.xml and .msk are appended.
BY_STEM = re.compile(r"\.(\w\w?w|\w+w|wld|hdr|prj|rpb|imd|aux|ige|rrd)", re.IGNORECASE)


def sidecars_of(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return raster -> files beside it from which GDAL takes georeference, nodata and masks."""
    paths = list(paths)
    there = {folder: sorted(os.listdir(folder)) for folder in {path.parent for path in paths}}
    found = {}
    for path in paths:
        names = there[path.parent]
        first, last = (bisect_left(names, path.stem + mark) for mark in "./")  # "/" follows "."
        found[path] = [
            path.parent / name
            for name in names[first:last]
            if name.startswith(f"{path.name}.") or BY_STEM.fullmatch(name[len(path.stem) :])
        ]
    return found


def deciding_files(paths: Iterable[Path]) -> list[Path]:
    """Return the rasters, their sidecars, and the sources of VRTs with theirs, sorted.

    Overviews are left out: they hold the same pixels once more.
    """
    found, new = set[Path](), set(paths)
    while new:
        found |= new
        found |= {file for files in sidecars_of(new).values() for file in files}
        new = {file for path in new for file in _named_in(path)} - found
    return sorted(path for path in found if path.suffix != ".ovr")


def _named_in(path: Path) -> set[Path]:
    """Return the files that a raster refers to, as a VRT does."""
    names: list[str] = []
    if path.suffix.lower() not in PLAIN:
        with suppress(DataError), explained(path), rasterio.open(path) as source:
            names = source.files
    files = {name: _on_disk(name) for name in names}
    for name in [name for name, file in files.items() if file is None]:
        warnings.warn(f"Scenes are not prepared again if {name} changes (in {path}).", stacklevel=2)
    return {file for file in files.values() if file}


def _on_disk(name: str) -> Path | None:
    """Return the file in a name of GDAL's, such as ``/vsizip/a.zip/b.tif``; None: not local."""
    parts = re.split('[":]', re.sub(r"^(/?vsi\w+/)+", "", name))
    places = (place for part in (name, *parts) for place in (Path(part), *Path(part).parents))
    return next((place for place in places if place.is_file()), None)
