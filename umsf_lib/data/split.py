"""Split whole scenes into train, val and test; patches of one scene are never in two parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ..config import DataError
from .layout import PARTS, FileRule, ListsRule, NamesRule, PlainRule, SplitRule

Parts = dict[str, list[str]]  # train, val, test -> names of scenes


def split_names(
    root: Path,
    rule: SplitRule,
    names: Sequence[str],
    files: Mapping[str, Sequence[Path]] | None = None,
) -> Parts:
    """Split scenes into ``train``, ``val`` and ``test`` by a layout's split rule.

    Listed scenes that do not exist are skipped, so any subset works; scenes that are not listed are
    in no part. Without a list (in each folder separately), or if a part of ``names`` would be
    empty, scenes are split 60/20/20 in the order of their names. If there are no validation scenes,
    the last training scenes are used.

    Args:
        root: data folder.
        rule: the layout's ``split``; its class says what it means.
        names: names of the scenes found, sorted.
        files: name -> files of the scene, optical first.

    Raises:
        DataError: a list is malformed, missing while another exists, names a scene twice or leaves
            no training scenes, or a folder is not a part.
    """
    files = files or {}
    if isinstance(rule, NamesRule):
        parts = _by_patterns(rule, names)
        return parts if all(parts.values()) else _in_order(names, {})
    if isinstance(rule, PlainRule):
        if rule.rule != "folders":
            return {"train": list(names), "val": [], "test": list(names)}
        parts = _by_folders(files, names)
    else:
        listed = _by_lists(root, rule, names, files)
        if listed is None:
            return _in_order(names, files)
        parts = listed
    if not parts["val"]:  # none are listed, or none of those listed exist
        parts |= _hold_out(parts["train"])
    if not parts["train"]:
        where = " or ".join(getattr(rule, "files", getattr(rule, "train", ["train/"])))
        raise DataError(
            f"None of the training scenes in {root}: {where} is among the "
            f"{len(names)} scenes found ({', '.join(names[:3])}{', ...' if names[3:] else ''}); "
            "correct or remove the lists."
        )
    return parts


def _by_patterns(rule: NamesRule, names: Sequence[str]) -> Parts:
    parts: Parts = {part: [] for part in PARTS}
    for name in names:
        held = {"val": rule.val, "test": rule.test}.items()
        found = [part for part, globs in held if any(fnmatchcase(name, glob) for glob in globs)]
        parts[found[0] if found else "train"].append(name)
    return parts


def _by_folders(files: Mapping[str, Sequence[Path]], names: Sequence[str]) -> Parts:
    parts: Parts = {part: [] for part in PARTS}
    for name in names:
        folder = files[name][0].parent
        if folder.name not in parts:
            raise DataError(
                f"Folder {folder} is not one of {', '.join(PARTS)}, which this layout splits by; "
                "rename it or move it away."
            )
        parts[folder.name].append(name)
    return parts


def _by_lists(
    root: Path,
    rule: FileRule | ListsRule,
    names: Sequence[str],
    files: Mapping[str, Sequence[Path]],
) -> Parts | None:
    """Read the members of the parts from lists; None if there is no list.

    A line names a scene, or its files separated by commas or blanks.
    """
    paths = _lists(root, rule)
    if not paths:
        return None
    scenes = {path.stem: name for name, paths in files.items() for path in paths}
    scenes |= {name: name for name in names}
    parts: Parts = {part: [] for part in PARTS}
    seen: dict[str, str] = {}
    for part, path in paths.items():
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            text = line.strip()
            header = re.fullmatch(r"(train|val|test)\s*:", text, re.IGNORECASE)
            if header and isinstance(rule, FileRule):
                part = header[1].lower()
            elif text and not part:
                raise DataError(
                    f"{path} line {number}: '{text}' comes before train:, val: or test:."
                )
            elif text:
                stems = [Path(word).stem for word in (text, *re.split(r"[,\s]+", text))]
                name = next((scenes[stem] for stem in stems if stem in scenes), stems[0])
                if name in seen:
                    raise DataError(
                        f"{path} line {number}: {name} is already in {seen[name]}; keep one entry."
                    )
                seen[name] = part
                parts[part].append(name)
    if isinstance(rule, FileRule) and not parts["val"]:
        parts |= _hold_out(parts["train"], rule.validation_tail)
    there = set(names)  # there can be 100 000 names
    return {part: [name for name in members if name in there] for part, members in parts.items()}


def _lists(root: Path, rule: FileRule | ListsRule) -> dict[str, Path]:
    """Return part -> its list, or '' -> the one list with sections; empty if there is none."""
    if isinstance(rule, FileRule):
        wanted = {"": rule.files}
    else:
        wanted = {"train": rule.train, **({"val": rule.val} if rule.val else {}), "test": rule.test}
    found = {
        part: [root / n for n in names if (root / n).is_file()] for part, names in wanted.items()
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
