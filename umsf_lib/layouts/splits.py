"""Which scenes train, validate and test: whole scenes, never patches of one scene in two parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import DataError


def split_names(root: Path, rule: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Sorted scene names by a layout's split rule, as ``train``, ``val`` and ``test``.

    ``file``: the first of the rule's lists found in ``root``. Listed scenes that are not there are
    passed over (any subset works); scenes that are not listed are in no part. Without a ``val:``
    section the tail of the training list validates. Without a list: 60/20/20 in order of names.
    ``transductive`` and ``unlabelled``: all train and all are mapped, none validates.

    Raises:
        DataError: the list is malformed, names a scene twice, or leaves nothing to train on.
    """
    if rule["rule"] != "file":
        return {"train": list(names), "val": [], "test": list(names)}
    path = next((p for f in rule["files"] if (p := root / f).is_file()), None)
    if path is None:
        return _split_in_order(list(names))
    listed = _read_list(path)
    if not listed["val"]:
        listed |= _hold_out(listed["train"], rule["validation_tail"])
    parts = {part: [n for n in members if n in names] for part, members in listed.items()}
    if not parts["val"]:  # a subset without any of the validation scenes
        parts |= _hold_out(parts["train"])
    if not parts["train"]:
        raise DataError(
            f"None of the training scenes in {path} is among the {len(names)} scenes found "
            f"({', '.join(names[:3])}{', ...' if names[3:] else ''}); mend or remove the list."
        )
    return parts


def _hold_out(train: list[str], tail: int = 0) -> dict[str, list[str]]:
    """Take the last training scenes for validation: ``tail`` of a long list, else a fifth."""
    count = tail if 0 < 2 * tail < len(train) else round(0.2 * len(train))
    count = max(count, 1) if len(train) > 1 else 0
    return {"train": train[: len(train) - count], "val": train[len(train) - count :]}


def _split_in_order(names: list[str]) -> dict[str, list[str]]:
    held = max(round(0.2 * len(names)), 1)
    test = held if len(names) > 1 else 0
    val = held if len(names) > 2 else 0
    train = len(names) - val - test
    return {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}


def _read_list(path: Path) -> dict[str, list[str]]:
    """Sections ``train:``, ``val:``, ``test:`` with a file name per line."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    part, seen = "", dict[str, str]()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        text = line.strip()
        if header := re.fullmatch(r"(train|val|test)\s*:", text, re.IGNORECASE):
            part = header[1].lower()
        elif text and not part:
            raise DataError(f"{path} line {number}: '{text}' stands before train:, val: or test:.")
        elif text:
            name = Path(text).stem
            if name in seen:
                raise DataError(
                    f"{path} line {number}: {name} is already in {seen[name]}; keep one."
                )
            seen[name] = part
            parts[part].append(name)
    return parts
