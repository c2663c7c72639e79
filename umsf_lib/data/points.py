"""Sparse labels: points of known class, those of all scenes in one CSV.

Its columns are ``scene``, ``row`` and ``col`` (px from the top left, from 0) and ``code``; others
are not read. A point labels the 5 x 5 px around it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import IGNORE, DataError, read_text
from .layout import Layout
from .pairing import some

COLUMNS = ("scene", "row", "col", "code")
REACH = 2  # px that a label extends to each side of its point


@dataclass(frozen=True)
class Point:
    """A place in a scene whose class is known."""

    row: int
    col: int
    code: int
    place: str  # file and line, for messages


@dataclass(frozen=True)
class Points:
    """The points of each scene."""

    of_scene: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # in a few words each
    doubts: list[str] = field(default_factory=list)  # sentences: what matches no scene at all


def read_points(root: Path, layout: Layout, names: Iterable[str]) -> Points:
    """Read the file that the layout calls ``points``; without one there are none.

    Scenes are found by name, also where leading zeros differ, because spreadsheets drop them.
    Points of scenes that are not there are skipped, so any subset of the scenes works.

    Raises:
        DataError: the file is not there or cannot be read, a column is missing, a row, column or
            code is no whole number, or the layout does not know a code.
    """
    if not layout.points:
        return Points()
    path = root / layout.points
    if not path.is_file():
        raise DataError(
            f"{root} has no {layout.points}; add the file, or remove 'points' from {layout.source}."
        )
    reader = csv.DictReader(read_text(path).splitlines(), restval="", skipinitialspace=True)
    columns = reader.fieldnames or []
    if lacking := [name for name in COLUMNS if name not in columns]:
        raise DataError(
            f"{path} has no column {' and no column '.join(lacking)}: its first line is "
            f"'{','.join(columns)}'; it must name {', '.join(COLUMNS)}, separated by commas."
        )
    listed: dict[str, list[Point]] = {}
    for line in reader:
        place = f"{path} line {reader.line_num}"
        row, col, code = (_whole(line[name], f"{place}: {name}") for name in COLUMNS[1:])
        if code not in layout.ids_of_codes:
            raise DataError(f"{place} has the unknown code {code}; {layout.known_codes()}.")
        listed.setdefault(line["scene"].strip(), []).append(Point(row, col, code, place))
    return _of_scenes(path, listed, sorted(names))


def _whole(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{what} is '{text}', not a whole number; correct it.") from error


def _of_scenes(path: Path, listed: dict[str, list[Point]], names: Sequence[str]) -> Points:
    """Give the points to the scenes that their lines name."""
    bare: dict[str, list[str]] = {}
    for name in names:
        bare.setdefault(name.lstrip("0"), []).append(name)
    found: dict[str, tuple[Point, ...]] = {}
    lost: dict[str, int] = {}
    for text, points in listed.items():
        alike = [text] if text in names else bare.get(text.lstrip("0"), [])
        if len(alike) == 1:
            found[alike[0]] = found.get(alike[0], ()) + tuple(points)
        else:
            lost[text] = len(points)
    total, gone = sum(map(len, listed.values())), sum(lost.values())
    if not found:
        what = f"None of the {total} points of {path} ({some([*lost])})" if total else f"{path}"
        verb = "lies in one of" if total else "holds no point of"
        doubt = f"{what} {verb} the {len(names)} scenes ({some(names)}); correct the file."
        return Points(doubts=[doubt])
    notes = [f"{gone} of {total} points match no scene ({some([*lost])})"] if lost else []
    return Points(found, notes)


def outside(points: Iterable[Point], name: str, height: int, width: int) -> list[str]:
    """Say in one sentence which point lies outside of its scene, if any."""
    far = [p for p in points if not (0 <= p.row < height and 0 <= p.col < width)]
    more = f"; {len(far) - 1} more points of this scene do, too" if len(far) > 1 else ""
    return [
        f"{p.place}: row {p.row}, column {p.col} lies outside of scene {name}, which has rows 0 to "
        f"{height - 1} and columns 0 to {width - 1}; correct or remove it{more}."
        for p in far[:1]
    ]


def painted(
    points: Iterable[Point], ids_of_codes: dict[int, int], top: int, height: int, width: int
) -> NDArray[np.int64]:
    """Return the class ids ``(height, width)`` around points, for rows from ``top`` on.

    They are ``IGNORE`` elsewhere, and where points of different classes overlap.
    """
    empty, mixed = -1, -2
    ids = np.full((height, width), empty, np.int64)
    for point in points:
        row, id_ = point.row - top, ids_of_codes[point.code]
        rows, cols = (slice(max(at - REACH, 0), max(at + REACH + 1, 0)) for at in (row, point.col))
        around = ids[rows, cols]
        around[:] = np.where((around == empty) | (around == id_), id_, mixed)
    return np.where(ids < 0, IGNORE, ids)
