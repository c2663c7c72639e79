"""Which files of a data folder belong to one scene.

Partners are found by each role's own pattern, never by replacing text in a path: what the
wildcards stand for is the scene, so `a_s2_7.tif` under ``*_s2_*.tif`` meets `a_s1_7.tif` under
``*_s1_*.tif`` whatever else the folder is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import DataError
from . import Layout

SPELLINGS = {"tif": "tiff?", "jpg": "jpe?g"}  # of extensions, in any case
SPOKEN = {"optical": "optical", "sar": "SAR", "label": "label"}
Key = tuple[str, ...]  # what the wildcards of folder and file name stand for


@dataclass(frozen=True)
class Pairing:
    """The scenes of a data folder, and the files that have no place in one."""

    scenes: dict[str, dict[str, Path]]  # name -> role -> file, sorted by name
    defects: list[str]  # one sentence each


def pair_files(root: Path, layout: Layout) -> Pairing:
    """Pair the files of a data folder by what their layout's wildcards stand for.

    A label may lack (such a scene is mapped, not scored); an optical or SAR file without its
    partner and a label without its images are defects, as are two files of one scene and role.

    Raises:
        DataError: a folder is missing, or nothing matches or pairs.
    """
    defects: list[str] = []
    files = {role: _files(root, layout, role, defects) for role in layout.folders}
    whole = set.intersection(*(set(files[role]) for role in files if role != "label"))
    if not whole:
        optical, sar = (_some([p.name for p in files[r].values()]) for r in ("optical", "sar"))
        raise DataError(
            f"No optical file under {root} has a SAR file of the same name (optical: {optical}; "
            f"SAR: {sar}); rename the files so that pairs match."
        )
    for role, other in (("optical", "sar"), ("sar", "optical"), ("label", "optical")):
        if role in files and other in files:
            defects += _alone(files[role], files[other], other)
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
    folders = next((found for name in names if (found := list(_folders(root, name)))), [])
    if not folders and role == "label" and root.is_dir():
        return {}
    if not folders:
        raise DataError(
            f"Data folder {root} has no {role} folder ({' or '.join(names)}/, layout "
            f"'{layout.name}'): {_contents(root)}; check the data path and the layout."
        )
    files: dict[Key, Path] = {}
    for where, folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not (match := regex.fullmatch(path.name)):
                continue
            key = (*where, *match.groups())
            if key in files:
                defects.append(_two_of(_joined(match), files[key], path))
            files.setdefault(key, path)
    if not files and role != "label":
        raise DataError(
            f"No file in {folders[0][1]} matches '{layout.pattern[role]}' (layout "
            f"'{layout.name}'); check the data path and the layout's pattern."
        )
    return files


def _folders(root: Path, name: str) -> Iterator[tuple[Key, Path]]:
    """Folders under a name that may have wildcards, each with what they stand for."""
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
    ending = SPELLINGS.get(extension.lower(), re.escape(extension))
    return re.compile(rf"{'(.*)'.join(map(re.escape, stem.split('*')))}\.(?i:{ending})")


def _scene_name(path: Path, pattern: str) -> str:
    match = _regex(pattern).fullmatch(path.name)
    assert match is not None  # it was found by this pattern
    return _joined(match) or path.stem


def _joined(match: re.Match[str]) -> str:
    return "_".join(part for text in match.groups() if (part := text.strip("_-. ")))


def _two_of(name: str, first: Path, second: Path) -> str:
    return f"Two files are called {name}: {first} and {second}; rename or move one of them away."


def _alone(files: Mapping[Key, Path], partners: Mapping[Key, Path], role: str) -> list[str]:
    return [
        f"{files[key]} has no {SPOKEN[role]} partner of the same name; add the missing file or "
        "move this one away."
        for key in files.keys() - partners.keys()
    ]


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "it does not exist"
    return f"it holds {_some([p.name for p in root.iterdir()], 12) or 'nothing'}"


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(sorted(names)[:limit]) + (", ..." if len(names) > limit else "")
