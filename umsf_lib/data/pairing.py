"""Find which files of a data folder belong to one scene.

Each role has its own file name pattern, and files are partners if the wildcards of their patterns
match the same text. So ``a_s2_7.tif`` (``*_s2_*.tif``) and ``a_s1_7.tif`` (``*_s1_*.tif``) belong
to one scene. Text in paths is never replaced, so the names of folders do not matter. A role has one
file per scene, or one per band.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ..config import CONTROL, DataError, composed
from .layout import Layout
from .stack import BandFiles, Raster, paths_of

SPELLINGS = {"tif": "tiff?", "jpg": "jpe?g"}  # of extensions, in any case
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SPOKEN = {"optical": "optical", "sar": "SAR", "dem": "DEM", "label": "label"}
Key = tuple[str, ...]  # the texts that the wildcards of folder and file name match


Match = tuple[Key, Key, Path]  # what the wildcards of folder and file name match, and the file


@dataclass(frozen=True)
class Pairing:
    """The scenes of a data folder, and the defects found while pairing its files."""

    scenes: dict[str, dict[str, Raster]]  # name -> role -> file or files of bands, sorted by name
    defects: list[str]  # one sentence each


def pair_files(root: Path, layout: Layout) -> Pairing:
    """Pair the files of a data folder by the text that the layout's wildcards match.

    Where no texts agree (such as the dates of Sentinel-1 and Sentinel-2) and there is one file of a
    kind in each folder, the texts that the wildcards of the folders match are enough.

    A label may be missing; such a scene is mapped but not scored. These are defects: an optical,
    SAR or DEM file without a partner, a label without images, a band without a file, two files of
    one scene and role, a folder in place of a file, a name with control characters, and a folder
    that is not a class where folders are the labels.

    Raises:
        DataError: a folder is missing, no file matches a pattern, or no files form a pair.
    """
    require_folder(root)
    defects: list[str] = []
    matches = {role: _matches(root, layout, role, defects) for role in layout.folders}
    length = _key_length(matches, layout)
    files = {
        role: _by_key(matches[role], layout.patterns(role), length, defects) for role in matches
    }
    whole = set.intersection(*(set(files[role]) for role in files if role != "label"))
    if not whole:
        images = {role: found for role, found in files.items() if role != "label"}
        there = {r: some([paths_of(f)[0].name for f in images[r].values()]) for r in images}
        others = " and ".join(f"a {SPOKEN[role]}" for role in there if role != "optical")
        listed = "; ".join(f"{SPOKEN[role]}: {names}" for role, names in there.items())
        raise DataError(
            f"No optical file under {root} has {others} file of the same name ({listed}); rename "
            "the files so that pairs match."
        )
    defects += _without_partner(files)
    scenes: dict[str, dict[str, Raster]] = {}
    for key in sorted(whole):
        found = {role: files[role][key] for role in files if key in files[role]}
        wildcards = 0 if length else next(iter(layout.patterns("optical").values())).count("*")
        name = _join(key[-wildcards:]) or _join(key) or composed(paths_of(found["optical"])[0].stem)
        if name in scenes:
            first, second = (paths_of(f["optical"])[0] for f in (scenes[name], found))
            defects.append(_two_of(name, first, second))
        if all(len(paths_of(found[role])) == len(layout.patterns(role)) for role in found):
            scenes.setdefault(name, found)
    return Pairing(dict(sorted(scenes.items())), sorted(set(defects)))


def _matches(root: Path, layout: Layout, role: str, defects: list[str]) -> dict[str, list[Match]]:
    """Find the files of each band of a role, of all bands ("") if they are in one file."""
    folders, classes = _folders_of(root, layout, role), layout.class_folders
    found, odd = dict[str, list[Match]](), dict[Path, str]()
    for band, pattern in layout.patterns(role).items():
        inner, _, name = pattern.rpartition("/")
        stem, _, extension = name.rpartition(".")
        ending = "|".join(SPELLINGS.get(e, re.escape(e)) for e in extension.lower().split("|"))
        text = "(.*)".join(map(re.escape, stem.split("*")))
        regex = re.compile(rf"(?s:{text})\.(?i:{ending})")
        found[band] = []
        for where, folder in folders:
            paths = [path for _, place in _folders(folder, inner) for path in listing(place)]
            named = [(path, regex.fullmatch(composed(path.name))) for path in paths]
            odd |= {path: text for path, match in named if match and (text := _oddity(path))}
            files = [(where, m.groups(), path) for path, m in named if m and path not in odd]
            if classes and composed(folder.name) not in classes and files:
                defects.append(
                    f"Folder {folder} holds {len(files)} files, but it is not one of the classes "
                    f"{', '.join(classes)} of {layout.source}; add it there or move it away."
                )
            else:
                found[band] += files
    defects += odd.values()
    if folders and role != "label" and not any(found.values()):
        wanted = "' or '".join(layout.patterns(role).values())
        none = f"No file in {folders[0][1]} matches '{wanted}' (layout '{layout.name}'); check the "
        none += "data path and the layout's pattern."
        raise DataError(next(iter(odd.values()), none))
    return found


def _folders_of(root: Path, layout: Layout, role: str) -> list[tuple[Key, Path]]:
    """List the folders of a role, each with the texts that the wildcards of its name match."""
    names, classes = layout.folders[role], layout.class_folders
    candidates = (_folders(root, name) for name in names)
    folders = next(
        (c for c in candidates if any(not classes or composed(f.name) in classes for _, f in c)), []
    )
    if folders or role == "label":
        return folders
    raise DataError(
        f"Data folder {root} has no {role} folder ({' or '.join(names)}/"
        f"{' called ' + ', '.join(classes) if classes else ''}, layout '{layout.name}'): "
        f"it holds {some([p.name for p in listing(root)], 12)}; check the data path and the "
        "layout."
    )


def _key_length(matches: dict[str, dict[str, list[Match]]], layout: Layout) -> int | None:
    """Return how many of the texts tell a scene: None for all, else those of the folders."""
    images = {role: list(bands.values()) for role, bands in matches.items() if role != "label"}
    every = [band for bands in images.values() for band in bands]
    agree = set.intersection(*({(*where, *texts) for where, texts, _ in band} for band in every))
    if agree or layout.split.rule == "folders":  # there, a folder is a part
        return None
    length = min(len(where) or len(texts) for band in every for where, texts, _ in band)
    alone = []
    for bands in images.values():
        counts = [Counter((*where, *texts)[:length] for where, texts, _ in b) for b in bands]
        alone.append({key for count in counts for key in count if max(c[key] for c in counts) < 2})
    return length if set.intersection(*alone) else None


def _by_key(
    matches: dict[str, list[Match]],
    patterns: dict[str, str],
    length: int | None,
    defects: list[str],
) -> dict[Key, Raster]:
    """Return the files of a role, with those bands that are there, by what tells a scene."""
    found: dict[Key, dict[str, Path]] = {}
    for band, files in matches.items():
        for where, texts, path in files:
            bands = found.setdefault((*where, *texts)[:length], {})
            if band in bands:
                name = _join(where) if length else _join(texts)
                defects.append(_two_of(name or path.stem, bands[band], path))
            bands.setdefault(band, path)
    for bands in found.values():
        lacking = [f"{band} ('{patterns[band]}')" for band in patterns if band not in bands]
        if lacking:
            defects.append(
                f"{next(iter(bands.values()))} has no file of band {' or '.join(lacking)} beside "
                "it; add the missing file or move this one away."
            )
    return {
        key: BandFiles(tuple(bands.values())) if len(patterns) > 1 else bands[next(iter(patterns))]
        for key, bands in found.items()
    }


def _without_partner(files: dict[str, dict[Key, Raster]]) -> list[str]:
    defects = []
    for role in files.keys() - {"optical"}:
        pairs = [(role, "optical")] if role == "label" else [(role, "optical"), ("optical", role)]
        for mine, other in pairs:
            switch = " or set 'use: false' under dem in the layout" if other == "dem" else ""
            defects += [
                f"{files[mine][key]} has no {SPOKEN[other]} partner of the same name; add the "
                f"missing file or move this one away{switch}."
                for key in files[mine].keys() - files[other].keys()
            ]
    return defects


def _folders(root: Path, name: str) -> list[tuple[Key, Path]]:
    """List the folders that match a name with wildcards, each with the texts that these match."""
    name = PurePosixPath(name).as_posix()  # without ./ and / at its ends
    if name == ".":  # files of all roles side by side
        return [((), root)]
    regex = re.compile("([^/]*)".join(map(re.escape, name.split("*"))))
    literal = re.sub(r"([?[])", r"[\1]", name)
    paths = {path for form in ("NFC", "NFD") for path in root.glob(normalize(form, literal))}
    matches = (
        (regex.fullmatch(composed(p.relative_to(root).as_posix())), p) for p in sorted(paths)
    )
    return [
        (match.groups(), path)
        for match, path in matches
        if match and path.is_dir() and not path.name.startswith(".")
    ]


def listing(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name, without hidden files.

    Raises:
        DataError: the folder cannot be opened.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"Folder {folder} cannot be opened ({error.strerror}); check its permissions and links."
        ) from error


def require_folder(root: Path) -> None:
    """Refuse a data folder that is missing, a file, an archive or empty.

    Raises:
        DataError: it is one of these, or it cannot be opened.
    """
    if os.path.isfile(root):  # unlike the method, it bears any name
        what = "an archive; unpack it and" if _is_archive(root) else "a file, not a folder;"
        raise DataError(f"{root} is {what} give the folder that holds the scenes.")
    try:
        there = listing(root)
    except DataError as error:
        if os.path.islink(root) or not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DataError(
            f"Data folder {root} has no optical folder or any other: it does not exist; check the "
            "data path."
        ) from error
    if not there:
        raise DataError(f"Data folder {root} is empty; check the data path.")
    if all(map(_is_archive, there)):
        names = some([path.name for path in there])
        raise DataError(f"Data folder {root} holds only archives ({names}); unpack them first.")


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVES and path.is_file()


def _oddity(path: Path) -> str:
    """Say in one sentence why a path of the right name is no file to read; empty if it is one."""
    if CONTROL.search(path.name):
        return (
            f"The name of {str(path)!r} holds a line break or something else that is not text; "
            "rename the file (or set PYTHONUTF8=1 if it is right)."
        )
    if path.exists() and not path.is_file():
        what = "folder" if path.is_dir() else "device"
        return f"{path} is a {what}, not a file; move it away."
    return ""  # reading says it if a link is broken


def _join(texts: Key) -> str:
    return "_".join(part for text in texts if (part := text.strip("_-. ")))


def _two_of(name: str, first: Path, second: Path) -> str:
    return f"Two files are called {name}: {first} and {second}; rename or move one of them away."


def some(names: Sequence[str], limit: int = 3) -> str:
    """List the first names, and show whether there are more."""
    return ", ".join(sorted(names)[:limit]) + (", ..." if len(names) > limit else "")
