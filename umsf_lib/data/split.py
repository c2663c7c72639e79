"""Split whole scenes into train, val and test; patches of one scene are never in two parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config import DataError
from .layout import PARTS


def split_names(
    root: Path,
    rule: Mapping[str, Any],
    names: Sequence[str],
    files: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, list[str]]:
    """Split scenes into ``train``, ``val`` and ``test`` by a layout's split rule.

    The rules are:

    - ``file``: one list with a section per part, the first of the rule's files found in ``root``.
    - ``lists``: one list per part.
    - ``folders``: the name of the folder that holds the optical file is the part.
    - ``names``: scenes whose names match the patterns of ``val`` or ``test``; the others train.
    - ``transductive``, ``unlabelled``: all scenes are in ``train`` and ``test``, none in ``val``.

    Listed scenes that do not exist are skipped, so any subset works; scenes that are not listed are
    in no part. Without a list (in each folder separately), or if a part of ``names`` would be
    empty, scenes are split 60/20/20 in the order of their names. If there are no validation scenes,
    the last training scenes are used.

    Args:
        root: data folder.
        rule: the layout's ``split``.
        names: names of the scenes found, sorted.
        files: name -> files of the scene, optical first.

    Raises:
        DataError: a list is malformed, missing while another exists, names a scene twice or leaves
            no training scenes, or a folder is not a part.
    """
    kind = rule["rule"]
    if kind in ("transductive", "unlabelled"):
        return {"train": list(names), "val": [], "test": list(names)}
    if kind == "names":
        return _by_patterns(rule, names)
    if kind == "folders":
        parts = _by_folders(files or {}, names)
    else:
        listed = _list(root, rule, names, files or {})
        if listed is None:
            return _split_each_folder(files or {}, names)
        there = set(names)  # there can be 100 000 names
        parts = {part: [n for n in members if n in there] for part, members in listed.items()}
    if not parts["val"]:  # none are listed, or none of those listed exist
        parts |= _hold_out(parts["train"])
    if not parts["train"]:
        where = " or ".join(rule.get("files", rule.get("train", ["train/"])))
        raise DataError(
            f"None of the training scenes in {root}: {where} is among the "
            f"{len(names)} scenes found ({', '.join(names[:3])}{', ...' if names[3:] else ''}); "
            "correct or remove the lists."
        )
    return parts


def _list(
    root: Path, rule: Mapping[str, Any], names: Sequence[str], files: Mapping[str, Sequence[Path]]
) -> dict[str, list[str]] | None:
    """Read the members of the parts from the lists; None if there is no list."""
    if rule["rule"] == "lists":
        scenes = {path.stem: name for name, paths in files.items() for path in paths}
        return _read_lists(root, rule, scenes | {name: name for name in names})
    path = next((p for f in rule["files"] if (p := root / f).is_file()), None)
    if path is None:
        return None
    listed = _read_list(path)
    if not listed["val"]:
        listed |= _hold_out(listed["train"], rule["validation_tail"])
    return listed


def _hold_out(train: list[str], tail: int = 0) -> dict[str, list[str]]:
    """Use the last training scenes for validation: ``tail`` of a long list, else a fifth."""
    count = tail if 0 < 2 * tail < len(train) else round(0.2 * len(train))
    count = max(count, 1) if len(train) > 1 else 0
    return {"train": train[: len(train) - count], "val": train[len(train) - count :]}


def _split_in_order(names: list[str]) -> dict[str, list[str]]:
    held = max(round(0.2 * len(names)), 1)
    test = held if len(names) > 1 else 0
    val = held if len(names) > 2 else 0
    train = len(names) - val - test
    return {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}


def _split_each_folder(
    files: Mapping[str, Sequence[Path]], names: Sequence[str]
) -> dict[str, list[str]]:
    """Split in the order of names, each folder separately, because a folder may be a class."""
    folders: dict[Path, list[str]] = {}
    for name in names:
        folders.setdefault(files[name][0].parent if name in files else Path(), []).append(name)
    splits = [_split_in_order(members) for members in folders.values()]
    return {part: sorted(name for split in splits for name in split[part]) for part in PARTS}


def _by_patterns(rule: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        held = (p for p in ("val", "test") if any(fnmatchcase(name, glob) for glob in rule[p]))
        parts[next(held, "train")].append(name)
    return parts if all(parts.values()) else _split_in_order(list(names))


def _by_folders(files: Mapping[str, Sequence[Path]], names: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        folder = files[name][0].parent
        if folder.name not in parts:
            raise DataError(
                f"Folder {folder} is not one of {', '.join(PARTS)}, which this layout splits by; "
                "rename it or move it away."
            )
        parts[folder.name].append(name)
    return parts


def _read_list(path: Path) -> dict[str, list[str]]:
    """Read a list with sections ``train:``, ``val:`` and ``test:`` and one file name per line."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    part, seen = "", dict[str, str]()
    for number, text in _lines(path):
        if header := re.fullmatch(r"(train|val|test)\s*:", text, re.IGNORECASE):
            part = header[1].lower()
        elif not part:
            raise DataError(f"{path} line {number}: '{text}' comes before train:, val: or test:.")
        else:
            name = Path(text).stem
            _see(name, part, seen, path, number)
            parts[part].append(name)
    return parts


def _read_lists(
    root: Path, rule: Mapping[str, Any], scenes: Mapping[str, str]
) -> dict[str, list[str]] | None:
    """Read one list per part, with one scene per line.

    A line holds the scene's name, or its file names separated by commas or blanks.

    Args:
        root: data folder.
        rule: part -> possible names of its list.
        scenes: scene or file stem -> scene name.
    """
    wanted = {part: rule[part] for part in PARTS if part in rule}
    paths = {
        p: next((f for n in ns if (f := root / n).is_file()), None) for p, ns in wanted.items()
    }
    if not any(paths.values()):
        return None
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    seen = dict[str, str]()
    for part, path in paths.items():
        if path is None:
            there = next(p for p in paths.values() if p)
            raise DataError(
                f"{there} exists, but {root} has no {' or '.join(wanted[part])}; add the list, "
                "or remove the others to split in the order of names."
            )
        for number, text in _lines(path):
            stems = [Path(field).stem for field in re.split(r"[,\s]+", text)]
            name = next((scenes[stem] for stem in stems if stem in scenes), stems[0])
            _see(name, part, seen, path, number)
            parts[part].append(name)
    return parts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        if stripped := line.strip():
            yield number, stripped


def _see(name: str, part: str, seen: dict[str, str], path: Path, number: int) -> None:
    if name in seen:
        raise DataError(f"{path} line {number}: {name} is already in {seen[name]}; keep one entry.")
    seen[name] = part
