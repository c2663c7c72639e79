"""Sort the rasters of an unknown data folder by what they are.

Files are of one kind if their folders and names have the same telling words (``s2``, ``vv``,
``B04``, ``label``) at the same places, and equal bands and dtype. A kind gets its role by these
words, or else by its bands and values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ..config import DataError
from .layout import DTYPES
from .rasters import grid_of, opened

ENDINGS = {e: e for e in ("tif", "jp2", "vrt", "png", "jpg", "npy", "img")}
ENDINGS |= {"tiff": "tif", "jpeg": "jpg"}  # as in a pattern
WORDS = {  # role -> words in names of folders and files; those of the first role count most
    "label": "labels?|lbls?|masks?|lulc|lc|(land|world)cover|dfc|classes|gt|ann(otation)?s?|truth",
    "dem": "dem|dsm|dtm|elevation|srtm",
    "sar": "s1[abc]?|sentinel1[abc]?|sar|radar|gf3|grd|rtc|palsar|vv|vh|hh|hv",
    "optical": "s2[abc]?|sentinel2[abc]?|optical|opt|rgb|msi|images?|gf[12]|hls|landsat|naip",
}
PRODUCT = "sr|fre|sre|pixel|r?[0-9]+m"  # further words that tell files apart
# Layers of products that are neither reflectance nor labels: temperature, quality, angles, clouds.
LAYER = "st|b?qa[0-9]*|scl|tci|aot|wvp|udm2?|[sv][az]a|c?fmask|msk|cld\\w*|clm|cloud\\w*"
RGB = ["red", "green", "blue"]
L2A = ["coastal", *RGB[::-1], "rededge1", "rededge2", "rededge3", "nir", "nir08", "watervapour"]
L2A += ["swir16", "swir22"]
SENTINEL2 = dict(zip([*range(1, 9), "8A", 9, 11, 12], L2A, strict=True)) | {10: "cirrus"}
LANDSAT = ["coastal", *RGB[::-1], "nir", "swir16", "swir22", "pan", "cirrus", "lwir11", "lwir12"]
LANDSAT_TM = [*RGB[::-1], "nir", "swir16", "lwir", "swir22", "pan"]  # Landsat 4, 5 and 7
PLAIN = {*SENTINEL2.values(), "vv", "vh", "hh", "hv"}
SAR_DTYPES = {dtype for scaling in ("amplitude8", "db") for dtype in DTYPES[scaling]}
FEW = 64  # codes of a label, at most
SAMPLED, GLANCE_PX = 5, 256  # files whose values are looked at; rows and columns of their centre


@dataclass(frozen=True)
class Kind:
    """Files that are alike, one for each scene."""

    parts: tuple[str, ...]  # of the path without the ending, * for words that tell nothing
    ending: str
    paths: tuple[Path, ...]  # below the data folder
    count: int
    dtype: str

    @property
    def band(self) -> str:
        """The band that the name of a file tells, if it has only one."""
        stem = self.paths[0].stem
        names = [band_name(word, stem) for word in _words(stem)]
        return next((name for name in reversed(names) if name), "") if self.count == 1 else ""

    @property
    def role(self) -> str:
        """The role that the path tells, file name first."""
        for part in reversed(self.parts):
            found = {role for word in _words(part) for role in _roles(word)}
            if self.band and not found:
                return "optical"
            for role in WORDS:
                if role in found and not (role == "label" and self.count > 1):
                    return role
        return ""

    def where(self, fixed: bool, depth: int | None) -> tuple[list[str], str]:
        """Return the folder, in parts, and the pattern of the file names.

        The folder at this depth is a wildcard, even if there is only one, unless its name tells
        something. If ``fixed``, words that all file names share are kept, and the name begins with
        a wildcard if there is no other, because one is needed.
        """
        columns = list(zip(*(path.parts[:-1] for path in self.paths), strict=True))
        folder = [
            part if len(set(names)) > 1 or (level == depth and part == "*") else names[0]
            for level, (names, part) in enumerate(zip(columns, self.parts, strict=False))
        ]
        name = self.parts[-1]
        words = [re.split(r"([_\-. ]+)", path.stem) for path in self.paths]
        if fixed and len({len(w) for w in words}) == 1 < len(words):
            name = _joined([w[0] if len({*w}) == 1 else "*" for w in zip(*words, strict=True)])
        if fixed and "*" not in "/".join([*folder, name]):
            name = f"*{name}"
        return folder, f"{name}.{self.ending}"


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[_\-. ]+", text) if word]


def _roles(word: str) -> list[str]:
    """Return the roles that a word tells, or a part of it as in ``S1Hand`` or ``OmbriaS1``."""
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", word)
    return [r for r, known in WORDS.items() if any(_is(known, part) for part in (word, *parts))]


def _is(known: str, word: str) -> bool:
    return bool(re.fullmatch(known, word, re.IGNORECASE))


def band_name(word: str, stem: str) -> str:
    """Return the usual name of the band that a word of a file name means, such as ``B04``."""
    band = re.fullmatch(r"B0*(\d+)(A?)", word, re.IGNORECASE)
    if band and re.search(r"(?i)L[COTEM]0[45789]|(?<![a-z])L30(?![0-9])|(?<![a-z])SR_B", stem):
        table = LANDSAT_TM if re.search(r"(?i)L[TEM]0[457]", stem) else LANDSAT
        return dict(enumerate(table, start=1)).get(int(band[1]), "")
    if band:
        return SENTINEL2.get("8A" if band[2] else int(band[1]), "")
    return word.lower() if word.lower() in PLAIN else ""


def _shape(text: str) -> str:
    """Return a name with * for the words that tell nothing, and S1* for S1A and S1B."""
    words = re.split(r"([_\-. ]+)", text)
    for i, word in enumerate(words[::2]):
        told = band_name(word, text) or _is(f"{PRODUCT}|{LAYER}", word) or _roles(word)
        words[2 * i] = re.sub(r"(?i)^(s[12])[abc]$", r"\1*", word) if told else "*"
    return _joined(words)


def _joined(words: Sequence[str]) -> str:
    return re.sub(r"\*(?:[_\-. ]+\*)+", "*", "".join(words))


def kinds_of(root: Path) -> tuple[list[Kind], dict[Path, str]]:
    """Sort the rasters below a folder by kind; say which cannot be read, and why.

    Of files in one folder, with names of one kind, the first that can be opened is looked at.
    """
    alike: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[Path]] = {}
    for path in sorted(root.rglob("*")):
        file, ending = path.relative_to(root), path.suffix.lower()[1:]
        if ending in ENDINGS and path.is_file() and all(part[0] != "." for part in file.parts):
            parts = tuple(map(_shape, (*file.parts[:-1], file.stem)))
            alike.setdefault((file.parts[:-1], parts, ENDINGS[ending]), []).append(file)
    kinds: dict[tuple[tuple[str, ...], str, int, str], list[Path]] = {}
    damage: dict[Path, str] = {}
    for (_, parts, ending), files in alike.items():
        for number, file in enumerate(files):
            try:
                with opened(root / file) as source:
                    form = (parts, ending, source.count, source.dtypes[0])
            except DataError as error:
                damage[file] = str(error)
            else:
                kinds.setdefault(form, []).extend(files[number:])
                break
    found = [
        Kind(parts, ending, tuple(files), count, dtype)
        for (parts, ending, count, dtype), files in kinds.items()
    ]
    return found, damage


def by_role(root: Path, kinds: list[Kind]) -> dict[str, list[Kind]]:
    """Choose the kinds of each role: one with all bands, or one for each band."""
    told: dict[str, list[Kind]] = {role: [] for role in ("optical", "sar", "dem", "label")}
    kinds = [k for k in kinds if not any(_is(LAYER, word) for word in _words(k.parts[-1]))]
    for kind in kinds:
        if kind.role:
            told[kind.role].append(kind)
    for kind in sorted((k for k in kinds if not k.role), key=lambda k: -k.count):
        codes = np.unique(values_of(root, kind)) if kind.count == 1 else np.zeros(0)
        if 0 < len(codes) <= FEW and codes.dtype.kind in "iu":
            role = "label"
        elif kind.count > 2 or not (told["optical"] or codes.dtype.kind == "f"):
            role = "optical"
        else:
            role = "sar" if kind.dtype in SAR_DTYPES else ""
        if role and not told[role]:
            told[role].append(kind)
    return {role: _chosen(root, found) for role, found in told.items() if found}


def _chosen(root: Path, kinds: list[Kind]) -> list[Kind]:
    """Choose the kind with most bands and files, or the finest kind of each band."""
    largest = max(kinds, key=lambda kind: (kind.count, len(kind.paths)))
    bands: dict[str, Kind] = {}
    for kind in sorted(kinds, key=lambda kind: (-len(kind.paths), _pixel(root, kind))):
        if kind.band:
            bands.setdefault(kind.band, kind)
    if len(bands) <= largest.count:
        return [largest]
    order = [*SENTINEL2.values(), *LANDSAT, *LANDSAT_TM, "vv", "vh", "hh", "hv"]
    return [bands[name] for name in dict.fromkeys(order) if name in bands]


def _pixel(root: Path, kind: Kind) -> float:
    with opened(root / kind.paths[0]) as source:
        return abs(float(grid_of(source).transform.a))


def values_of(root: Path, kind: Kind) -> NDArray[np.generic]:
    """Read the centre of a few files ``(N,)``, without what a file declares as nodata."""
    parts = []
    for path in kind.paths[:: max(1, len(kind.paths) // SAMPLED)][:SAMPLED]:
        with suppress(DataError), opened(root / path) as source:
            left, top = (max(0, size - GLANCE_PX) // 2 for size in (source.width, source.height))
            size = min(source.width, GLANCE_PX), min(source.height, GLANCE_PX)
            values = source.read(window=Window(left, top, *size)).ravel()
            parts.append(values[np.isfinite(values) & (values != source.nodata)])
    return np.concatenate(parts) if parts else np.zeros(0, kind.dtype)
