"""Find which files of a data folder belong to one scene.

Each role has its own file name pattern, and files are partners if the wildcards of their patterns
match the same text. So ``a_s2_7.tif`` (``*_s2_*.tif``) and ``a_s1_7.tif`` (``*_s1_*.tif``) belong
to one scene. Text in paths is never replaced, so the names of folders do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import DataError
from .layout import Layout

SPELLINGS = {"tif": "tiff?", "jpg": "jpe?g"}  # of extensions, in any case
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
    SAR or DEM file without a partner, a label without images, two files of one scene and role, and
    a folder that is not a class where folders are the labels.

    Raises:
        DataError: a folder is missing, no file matches a pattern, or no files form a pair.
    """
    defects: list[str] = []
    files = {role: _files(root, layout, role, defects) for role in layout.folders}
    whole = set.intersection(*(set(files[role]) for role in files if role != "label"))
    if not whole:
        there = {r: _some([p.name for p in files[r].values()]) for r in files if r != "label"}
        others = " and ".join(f"a {SPOKEN[role]}" for role in there if role != "optical")
        listed = "; ".join(f"{SPOKEN[role]}: {names}" for role, names in there.items())
        raise DataError(
            f"No optical file under {root} has {others} file of the same name ({listed}); rename "
            "the files so that pairs match."
        )
    for role in files.keys() - {"optical"}:
        defects += _alone(files[role], files["optical"], "optical")
        if role != "label":
            defects += _alone(files["optical"], files[role], role)
    scenes: dict[str, dict[str, Path]] = {}
    for key in sorted(whole):
        found = {role: files[role][key] for role in files if key in files[role]}
        name = _scene_name(found["optical"], layout.pattern["optical"])
        if name in scenes:
            defects.append(_two_of(name, scenes[name]["optical"], found["optical"]))
        scenes.setdefault(name, found)
    return Pairing(dict(sorted(scenes.items())), sorted(set(defects)))


def _files(root: Path, layout: Layout, role: str, defects: list[str]) -> dict[Key, Path]:
    names, regex = layout.folders[role], _regex(layout.pattern[role])
    classes = layout.class_folders
    candidates = (list(_folders(root, name)) for name in names)
    folders = next(
        (c for c in candidates if c and (not classes or any(f.name in classes for _, f in c))), []
    )
    if not folders and role == "label" and root.is_dir():
        return {}
    if not folders:
        raise DataError(
            f"Data folder {root} has no {role} folder ({' or '.join(names)}/"
            f"{' called ' + ', '.join(classes) if classes else ''}, layout '{layout.name}'): "
            f"{_contents(root)}; check the data path and the layout."
        )
    files: dict[Key, Path] = {}
    for where, folder in folders:
        matches = [(path, regex.fullmatch(path.name)) for path in sorted(folder.iterdir())]
        found = [(path, m) for path, m in matches if m and not path.name.startswith(".")]
        if classes and folder.name not in classes and found:
            defects.append(_no_class(folder, len(found), layout))
            continue
        for path, match in found:
            key = (*where, *match.groups())
            if key in files:
                defects.append(_two_of(_join(match), files[key], path))
            files.setdefault(key, path)
    if not files and role != "label":
        raise DataError(
            f"No file in {folders[0][1]} matches '{layout.pattern[role]}' (layout "
            f"'{layout.name}'); check the data path and the layout's pattern."
        )
    return files


def _folders(root: Path, name: str) -> Iterator[tuple[Key, Path]]:
    """Yield folders that match a name with wildcards, each with the text that these match."""
    if name == ".":  # files of all roles side by side
        if root.is_dir():
            yield (), root
        return
    regex = re.compile("([^/]*)".join(map(re.escape, name.split("*"))))
    for path in sorted(root.glob(name)):
        hidden = path.name.startswith(".")
        if (
            path.is_dir()
            and not hidden
            and (match := regex.fullmatch(path.relative_to(root).as_posix()))
        ):
            yield match.groups(), path


def _regex(pattern: str) -> re.Pattern[str]:
    stem, _, extension = pattern.rpartition(".")
    ending = "|".join(SPELLINGS.get(e, re.escape(e)) for e in extension.lower().split("|"))
    return re.compile(rf"{'(.*)'.join(map(re.escape, stem.split('*')))}\.(?i:{ending})")


def _scene_name(path: Path, pattern: str) -> str:
    match = _regex(pattern).fullmatch(path.name)
    assert match is not None  # it was found by this pattern
    return _join(match) or path.stem


def _join(match: re.Match[str]) -> str:
    return "_".join(part for text in match.groups() if (part := text.strip("_-. ")))


def _two_of(name: str, first: Path, second: Path) -> str:
    return f"Two files are called {name}: {first} and {second}; rename or move one of them away."


def _no_class(folder: Path, count: int, layout: Layout) -> str:
    return (
        f"Folder {folder} holds {count} files, but it is not one of the classes "
        f"{', '.join(layout.class_folders)} of {layout.source}; add it there or move it away."
    )


def _alone(files: Mapping[Key, Path], partners: Mapping[Key, Path], role: str) -> list[str]:
    other = " or set 'use: false' under dem in the layout" if role == "dem" else ""
    return [
        f"{files[key]} has no {SPOKEN[role]} partner of the same name; add the missing file or "
        f"move this one away{other}."
        for key in files.keys() - partners.keys()
    ]


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "it does not exist"
    return f"it holds {_some([p.name for p in root.iterdir()], 12) or 'nothing'}"


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(sorted(names)[:limit]) + (", ..." if len(names) > limit else "")
