"""Find which files of a data folder belong to one scene.

Each role has its own file name pattern, and files are partners if the wildcards of their patterns
match the same text. So ``a_s2_7.tif`` (``*_s2_*.tif``) and ``a_s1_7.tif`` (``*_s1_*.tif``) belong
to one scene. Text in paths is never replaced, so the names of folders do not matter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ..config import CONTROL, DataError, composed
from .layout import Layout

SPELLINGS = {"tif": "tiff?", "jpg": "jpe?g"}  # of extensions, in any case
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SPOKEN = {"optical": "optical", "sar": "SAR", "dem": "DEM", "label": "label"}
Key = tuple[str, ...]  # the texts that the wildcards of folder and file name match


@dataclass(frozen=True)
class Pairing:
    """The scenes of a data folder, and the defects found while pairing its files."""

    scenes: dict[str, dict[str, Path]]  # name -> role -> file, sorted by name
    defects: list[str]  # one sentence each


def pair_files(root: Path, layout: Layout) -> Pairing:
    """Pair the files of a data folder by the text that the layout's wildcards match.

    A label may be missing; such a scene is mapped but not scored. These are defects: an optical,
    SAR or DEM file without a partner, a label without images, two files of one scene and role, a
    folder in place of a file, a name with control characters, and a folder that is not a class
    where folders are the labels.

    Raises:
        DataError: a folder is missing, no file matches a pattern, or no files form a pair.
    """
    require_folder(root)
    defects: list[str] = []
    files = {role: _files(root, layout, role, defects) for role in layout.folders}
    whole = set.intersection(*(set(files[role]) for role in files if role != "label"))
    if not whole:
        there = {r: some([p.name for p in files[r].values()]) for r in files if r != "label"}
        others = " and ".join(f"a {SPOKEN[role]}" for role in there if role != "optical")
        listed = "; ".join(f"{SPOKEN[role]}: {names}" for role, names in there.items())
        raise DataError(
            f"No optical file under {root} has {others} file of the same name ({listed}); rename "
            "the files so that pairs match."
        )
    for role in files.keys() - {"optical"}:
        pairs = [(role, "optical")] if role == "label" else [(role, "optical"), ("optical", role)]
        for mine, other in pairs:
            switch = " or set 'use: false' under dem in the layout" if other == "dem" else ""
            defects += [
                f"{files[mine][key]} has no {SPOKEN[other]} partner of the same name; add the "
                f"missing file or move this one away{switch}."
                for key in files[mine].keys() - files[other].keys()
            ]
    scenes: dict[str, dict[str, Path]] = {}
    for key in sorted(whole):
        found = {role: files[role][key] for role in files if key in files[role]}
        wildcards = layout.pattern["optical"].count("*")
        name = _join(key[-wildcards:]) or composed(found["optical"].stem)
        if name in scenes:
            defects.append(_two_of(name, scenes[name]["optical"], found["optical"]))
        scenes.setdefault(name, found)
    return Pairing(dict(sorted(scenes.items())), sorted(set(defects)))


def _files(root: Path, layout: Layout, role: str, defects: list[str]) -> dict[Key, Path]:
    """Find the files of a role by the texts that the wildcards match."""
    names, classes = layout.folders[role], layout.class_folders
    candidates = (_folders(root, name) for name in names)
    folders = next(
        (c for c in candidates if any(not classes or composed(f.name) in classes for _, f in c)), []
    )
    if not folders and role == "label":
        return {}
    if not folders:
        raise DataError(
            f"Data folder {root} has no {role} folder ({' or '.join(names)}/"
            f"{' called ' + ', '.join(classes) if classes else ''}, layout '{layout.name}'): "
            f"it holds {some([p.name for p in listing(root)], 12)}; check the data path and the "
            "layout."
        )
    stem, _, extension = layout.pattern[role].rpartition(".")
    ending = "|".join(SPELLINGS.get(e, re.escape(e)) for e in extension.lower().split("|"))
    regex = re.compile(rf"(?s:{'(.*)'.join(map(re.escape, stem.split('*')))})\.(?i:{ending})")
    files, odd = dict[Key, Path](), list[str]()
    for where, folder in folders:
        matches = [(path, regex.fullmatch(composed(path.name))) for path in listing(folder)]
        found = [(path, match.groups()) for path, match in matches if match]
        if classes and composed(folder.name) not in classes and found:
            defects.append(
                f"Folder {folder} holds {len(found)} files, but it is not one of the classes "
                f"{', '.join(classes)} of {layout.source}; add it there or move it away."
            )
            continue
        for path, texts in found:
            if why := _oddity(path):
                odd.append(why)
                continue
            if (*where, *texts) in files:
                defects.append(_two_of(_join(texts), files[(*where, *texts)], path))
            files.setdefault((*where, *texts), path)
    defects += odd
    if not files and role != "label":
        none = f"No file in {folders[0][1]} matches '{layout.pattern[role]}' (layout "
        none += f"'{layout.name}'); check the data path and the layout's pattern."
        raise DataError(odd[0] if odd else none)
    return files


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
    if root.is_file():
        what = "an archive; unpack it and" if _is_archive(root) else "a file, not a folder;"
        raise DataError(f"{root} is {what} give the folder that holds the scenes.")
    if not os.path.lexists(root):
        raise DataError(
            f"Data folder {root} has no optical folder or any other: it does not exist; check the "
            "data path."
        )
    there = listing(root)
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
