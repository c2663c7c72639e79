"""Find all files that decide the pixels of a raster: sidecars, and what a VRT refers to."""

from __future__ import annotations

import os
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import rasterio

from ..config import DataError
from .faults import explained

# Formats that hold their pixels themselves; others may refer to more files.
PLAIN = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".jp2", ".npy"}
# Headers, world files and metadata that are named after the stem; .aux.xml and .msk are appended.
BY_STEM = re.compile(r"\.(\w+w|wld|hdr|prj|rpb|imd|aux|ige|rrd)", re.IGNORECASE)


def sidecars_of(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return raster -> files beside it from which GDAL takes georeference, nodata and masks."""
    paths = list(paths)
    folders = {path.parent for path in paths}
    there = {folder: sorted(os.listdir(folder), key=str.lower) for folder in folders}
    found = {}
    for path in paths:
        names, stem, own = there[path.parent], path.stem.lower(), f"{path.name.lower()}."
        # "/" follows "."; case does not count for GDAL
        first, last = (bisect_left(names, stem + mark, key=str.lower) for mark in "./")
        found[path] = [
            path.parent / name
            for name in names[first:last]
            if name.lower().startswith(own) or BY_STEM.fullmatch(name[len(stem) :])
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
    with suppress(DataError, ElementTree.ParseError), explained(path):
        if path.suffix.lower() in PLAIN and not _is_xml(path):
            return set()
        with rasterio.open(path) as source:
            names, driver = source.files, source.driver
        if driver == "VRT":  # GDAL does not list the sources of masks
            for mask in ElementTree.parse(path).iterfind(".//MaskBand//SourceFilename"):
                near = path.resolve().parent if mask.get("relativeToVRT") == "1" else Path()
                names.append(str(near / (mask.text or "")))
    files = {name: _on_disk(name) for name in names}
    for name in [name for name, file in files.items() if file is None]:
        warnings.warn(f"Scenes are not prepared again if {name} changes (in {path}).", stacklevel=2)
    return {file for file in files.values() if file}


def _is_xml(path: Path) -> bool:
    """Return whether a file is text such as a VRT, which GDAL knows by any name."""
    with path.open("rb") as file:
        return file.read(1) == b"<"


def _on_disk(name: str) -> Path | None:
    """Return the file in a name of GDAL's, such as ``/vsizip/a.zip/b.tif``; None: not local."""
    parts = re.split('[":]', re.sub(r"^(/?vsi\w+/)+", "", name))
    places = (place for part in (name, *parts) for place in (Path(part), *Path(part).parents))
    return next((place for place in places if place.is_file()), None)
