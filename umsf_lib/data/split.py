"""Split whole scenes into train, val and test; patches of one scene are never in two parts."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from unicodedata import normalize

from ..config import DataError, composed, read_text
from .layout import PARTS, FileRule, FoldersRule, ListsRule, NamesRule, SplitRule
from .pairing import some

Parts = dict[str, list[str]]  # train, val, test -> names of scenes
IMAGE = re.compile(
    r"\.(tiff?|jpe?g|jp2|png|bmp|gif|img|vrt|np[yz]|mat|hdf5?|h5|nc)$", re.IGNORECASE
)
HEADER = re.compile(r"(train|val|test)(ing|id|idation)?\s*[:\uff1a](.*)", re.IGNORECASE)
COMMENT = re.compile(r"\s#")  # behind a name


@dataclass(frozen=True)
class Split:
    """Scenes of each part, and how they came there."""

    parts: Parts
    notes: list[str] = field(default_factory=list)  # in a few words each
    doubts: list[str] = field(default_factory=list)  # sentences: what matches no scene at all


def split_names(
    root: Path,
    rule: SplitRule,
    names: Sequence[str],
    files: Mapping[str, Sequence[Path]] | None = None,
) -> Parts:
    """Return the parts of ``divide``; each doubt is a warning.

    Raises:
        DataError: see ``divide``.
    """
    split = divide(root, rule, names, files or {})
    for doubt in split.doubts:
        warnings.warn(doubt, stacklevel=2)
    return split.parts


def divide(
    root: Path, rule: SplitRule, names: Sequence[str], files: Mapping[str, Sequence[Path]]
) -> Split:
    """Split scenes into ``train``, ``val`` and ``test`` by a layout's split rule.

    The classes of the rules say what each means. Listed scenes that do not exist are skipped, so
    any subset works; scenes that are not listed are in no part. Without a list (in each folder
    separately), or if ``names`` leaves no training scenes, scenes are split 60/20/20 in the order
    of their names. If there are no validation scenes, the last training scenes are used. The notes
    say which of this happened.

    Args:
        root: data folder.
        rule: the layout's ``split``.
        names: names of the scenes found, sorted.
        files: name -> files of the scene, optical first.

    Raises:
        DataError: a list is malformed, missing while another exists, names a scene twice or leaves
            no training scenes, or a folder is not a part.
    """
    if isinstance(rule, FileRule | ListsRule):
        lists = _lists(root, rule)
        if not lists:
            wanted = rule.files if isinstance(rule, FileRule) else (*rule.train, *rule.test)
            return Split(
                _in_order(names, files), [f"in order of names, without {', '.join(wanted)}"]
            )
        split = _by_lists(root, rule, lists, _Finder(names, files), set(names))
    elif isinstance(rule, NamesRule):
        split = _by_patterns(rule, names)
    elif isinstance(rule, FoldersRule):
        split = _by_folders(root, rule, files, names)
    else:
        return Split(_all_train(names, alternate=rule.rule == "alternate"))
    parts = split.parts
    if not parts["val"] and len(parts["train"]) > 1:  # none are listed, or none of those exist
        parts |= _hold_out(parts["train"])
        split.notes.append("val is the end of train, because no other scenes are for validation")
    if not parts["train"]:
        listed = f": {split.notes[0]}" if split.doubts else ""
        where = " or ".join(getattr(rule, "files", getattr(rule, "train", ["train/"])))
        raise DataError(
            f"None of the training scenes in {root}: {where} is among the {len(names)} scenes "
            f"found ({some(names)}){listed}; correct or remove the lists."
        )
    used = {name for members in parts.values() for name in members}
    if left := [name for name in names if name not in used]:
        split.notes.append(f"{len(left)} scenes are in no part ({some(left)})")
    return split


def _by_patterns(rule: NamesRule, names: Sequence[str]) -> Split:
    globs = {"val": rule.val or (), "test": rule.test}
    hits = _hits([glob for part in globs.values() for glob in part], names)
    found = {part: {name for glob in globs[part] for name in hits[glob]} for part in globs}
    val, test = found["val"], found["test"] - found["val"]
    held = {"train": set(names) - val - test, "val": val, "test": test}
    parts = {part: [name for name in names if name in held[part]] for part in PARTS}
    notes = []
    if idle := [glob for glob, matched in hits.items() if not matched]:
        notes.append(f"{len(idle)} of {len(hits)} patterns match no scene ({some(idle)})")
    if both := [name for name in names if name in val & found["test"]]:
        notes.append(f"{len(both)} scenes of val match test, too ({some(both)})")
    doubts = [_idle(part, globs[part], names) for part in globs if globs[part] and not found[part]]
    if parts["train"]:
        return Split(parts, notes, doubts)
    doubt = "split.val and split.test in the layout match every scene, so none is left to train, "
    doubt += "and scenes are split in the order of their names; correct the patterns there."
    return Split(_in_order(names, {}), notes, [*doubts, doubt])


def _hits(globs: Sequence[str], names: Sequence[str]) -> dict[str, set[str]]:
    """Return pattern -> names that match; one that is itself a name, such as a[1], means that."""
    return {
        glob: {glob} if glob in names else {name for name in names if fnmatchcase(name, glob)}
        for glob in globs
    }


def _idle(part: str, globs: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"split.{part} in the layout is {', '.join(globs)}, which matches none of the "
        f"{len(names)} scenes ({some(names)}); correct it there."
    )


def _by_folders(
    root: Path, rule: FoldersRule, files: Mapping[str, Sequence[Path]], names: Sequence[str]
) -> Split:
    parts: Parts = {part: [] for part in PARTS}
    for name in names:
        folder = files[name][0].parent
        above = [part for part in folder.relative_to(root).parts if part in parts]
        if not above:
            raise DataError(
                f"Folder {folder} is not one of {', '.join(PARTS)}, which this layout splits by; "
                "rename it or move it away."
            )
        parts[above[-1]].append(name)
    if not rule.val:
        return Split(parts)
    train, held = parts["train"], set[str]().union(*_hits(rule.val, parts["train"]).values())
    doubts = [] if held else [_idle("val", rule.val, train)]
    val = sorted({*parts["val"], *held})
    return Split(parts | {"train": [n for n in train if n not in held], "val": val}, doubts=doubts)


def _all_train(names: Sequence[str], *, alternate: bool) -> Parts:
    """Use all scenes for training, and all or every other one for testing."""
    order = sorted(names, key=_number)
    held = {"val": order[::2], "test": order[1::2]} if alternate else {"val": [], "test": [*names]}
    return {"train": list(names)} | held


def _number(name: str) -> list[int | str]:
    """Return a key that sorts names by the numbers in them: 12 before 108."""
    return [int(text) if text.isdecimal() else text for text in re.split(r"(\d+)", name)]


def _by_lists(
    root: Path,
    rule: FileRule | ListsRule,
    paths: Mapping[str, Path],
    finder: _Finder,
    there: Set[str],
) -> Split:
    """Read the members of the parts from lists, and keep those that are there."""
    parts = _read_lists(paths, finder)
    lost = {part: [n for n in listed if n not in there] for part, listed in parts.items()}
    doubts = [
        f"None of the {len(unknown)} names of {part} in {paths.get(part) or paths['']} "
        f"({some(unknown)}) is a scene in {root}; correct or remove them."
        for part, unknown in lost.items()
        if unknown and len(unknown) == len(parts[part])
    ]
    notes, total = [], sum(map(len, parts.values()))
    if unknown := [name for members in lost.values() for name in members]:
        notes.append(f"{len(unknown)} of {total} listed names match no scene ({some(unknown)})")
    if isinstance(rule, FileRule) and not parts["val"]:
        parts |= _hold_out(parts["train"], rule.validation_tail)
        notes.append("val is the end of the listed train")
    parts = {part: [name for name in members if name in there] for part, members in parts.items()}
    return Split(parts, notes, doubts)


def _lists(root: Path, rule: FileRule | ListsRule) -> dict[str, Path]:
    """Return part -> its list, or '' -> the one list with sections; empty if there is none."""
    if isinstance(rule, FileRule):
        wanted = {"": rule.files}
    else:
        wanted = {"train": rule.train, **({"val": rule.val} if rule.val else {}), "test": rule.test}
    found = {
        part: [
            path
            for name in names
            for form in ("NFC", "NFD")
            if os.path.lexists(path := root / normalize(form, name))
        ]
        for part, names in wanted.items()
    }
    paths = {part: files[0] for part, files in found.items() if files}
    lacking = [part for part in wanted if part not in paths]
    if paths and lacking:
        raise DataError(
            f"{next(iter(paths.values()))} exists, but {root} has no "
            f"{' or '.join(wanted[lacking[0]])}; add the list, or remove the others to split in "
            "the order of names."
        )
    return paths


def _read_lists(paths: Mapping[str, Path], finder: _Finder) -> Parts:
    """Return the names listed for each part: of a scene, or as listed if there is no such scene."""
    parts: Parts = {part: [] for part in PARTS}
    seen: dict[str, str] = {}
    for part, path in paths.items():
        sections = not part
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            text, place = line.strip(), f"{path} line {number}"
            header = HEADER.fullmatch(COMMENT.split(text)[0]) if sections else None
            if header and header[3].strip():
                raise DataError(f"{place}: '{text}' names scenes; give each a line below its part.")
            if header:
                part = header[1].lower()
                continue
            name = finder.scene_on(text, place)
            if not name:
                continue
            if sections and name.endswith(":"):
                raise DataError(f"{place}: '{text}' is not one of train:, val: and test:.")
            if not part:
                raise DataError(f"{place}: '{text}' comes before train:, val: or test:.")
            if name in seen:
                raise DataError(f"{place}: {name} is already in {seen[name]}; keep one entry.")
            seen[name] = part
            parts[part].append(name)
    return parts


class _Finder:
    """Finds the scenes that the lines of a list name."""

    def __init__(self, names: Sequence[str], files: Mapping[str, Sequence[Path]]) -> None:
        """Collect what may stand for each scene: its name, and its files with or without ending."""
        self.exact: dict[str, set[str]] = {}
        for name, paths in files.items():
            for key in {text for path in paths for text in (path.stem, path.name)}:
                self.exact.setdefault(composed(key), set()).add(name)
        self.exact |= {name: {name} for name in names}
        self.loose: dict[str, set[str]] = {}
        for key, found in self.exact.items():
            self.loose.setdefault(key.casefold(), set()).update(found)
        marks = (re.compile(r"[,;\t]"), re.compile(r"[,;\s]+"))
        # What names hold does not separate them: "site 3" is not "site".
        self.separators = [m for m in marks if not any(map(m.search, self.exact))]

    def find(self, text: str) -> str | None:
        """Return the scene of a name or file; None: there is none, or files do not tell it.

        Case counts only where scenes differ in nothing else. A dot begins an extension only if that
        of an image follows. Folders tell scenes whose files have the same name.
        """
        *folders, file = re.split(r"[/\\]", text.strip(" \t\"'"))
        keys = [file.strip(), IMAGE.sub("", file).strip()]
        for table, folded in ((self.exact, keys), (self.loose, [key.casefold() for key in keys])):
            for key in folded:
                found = table.get(key, set())
                if len(told := found if len(found) == 1 else found & set(folders)) == 1:
                    return next(iter(told))
        return None

    def scene_on(self, line: str, place: str) -> str:
        """Return the scene that a line names; the line if there is none, '' for a comment.

        The line holds a name or a file, with or without folders, or several files of one scene.
        """
        comment = line.startswith("#")
        if name := None if comment and re.search(r"[\s/\\]", line) else self.find(line):
            return name
        if comment:
            return ""
        line = COMMENT.split(line)[0]
        for fields in ([line], *(separator.split(line) for separator in self.separators)):
            found = sorted({name for text in fields if (name := self.find(text))})
            if len(found) > 1:
                raise DataError(f"{place} names {len(found)} scenes ({some(found)}); keep one.")
            if found:
                return found[0]
        return line


def _hold_out(train: list[str], tail: int = 0) -> Parts:
    """Use the last training scenes for validation: ``tail`` of a long list, else a fifth."""
    count = tail if 0 < 2 * tail < len(train) else round(0.2 * len(train))
    count = max(count, 1) if len(train) > 1 else 0
    return {"train": train[: len(train) - count], "val": train[len(train) - count :]}


def _in_order(names: Sequence[str], files: Mapping[str, Sequence[Path]]) -> Parts:
    """Split in the order of names, each folder separately, because a folder may be a class."""
    folders: dict[Path, list[str]] = {}
    for name in names:
        folders.setdefault(files[name][0].parent if name in files else Path(), []).append(name)
    parts: Parts = {part: [] for part in PARTS}
    for members in folders.values():
        held = max(round(0.2 * len(members)), 1)
        test = len(members) - (held if len(members) > 1 else 0)
        val = test - (held if len(members) > 2 else 0)
        parts["train"] += members[:val]
        parts["val"] += members[val:test]
        parts["test"] += members[test:]
    return {part: sorted(found) for part, found in parts.items()}
