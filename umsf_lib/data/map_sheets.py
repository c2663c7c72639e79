"""Map sheets: locate scenes named after a sheet, as in WHU-OPT-SAR, and find adjacent ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Names of Chinese 1:50 000 sheets: N (hemisphere), row letter, zone, E, and row and column in a
# block of 4 by 6 degrees, which holds 24 by 24 sheets of 10' by 15'.
SHEET = re.compile(r"N([A-V])(\d\d)E(\d{3})(\d{3})")
BLOCK = 24
SHEET_DEGREES = 1 / 6, 1 / 4  # height, width


@dataclass(frozen=True)
class Sheet:
    """Position of a sheet, in numbers of sheets over the whole globe."""

    row: int  # rows of 10', increasing southwards; the top of row 0 is the equator
    column: int  # columns of 15', increasing eastwards; column 0 starts at Greenwich

    @property
    def north_deg(self) -> float:
        """Latitude of the top edge, in degrees."""
        return -self.row / 6

    @property
    def west_deg(self) -> float:
        """Longitude of the left edge, in degrees."""
        return self.column / 4

    @property
    def bounds_deg(self) -> tuple[float, float, float, float]:
        """West, south, east and north edge, in degrees."""
        return self.west_deg, self.north_deg - 1 / 6, self.west_deg + 1 / 4, self.north_deg


@dataclass(frozen=True)
class Leakage:
    """Test scenes adjacent to scenes that were used in training."""

    tested: int  # number of test scenes with a sheet name
    touching: tuple[str, ...]  # share an edge or a corner with a training or validation scene
    sharing_edge: tuple[str, ...]


def sheet_of(name: str) -> Sheet | None:
    """Return the sheet that a scene or file is named after; None for any other name."""
    match = SHEET.fullmatch(Path(name).stem)
    if match is None:
        return None
    zone, row, column = (int(number) for number in match.groups()[1:])
    if not (1 <= row <= BLOCK and 1 <= column <= BLOCK and 1 <= zone <= 60):
        return None
    letter = ord(match[1]) - ord("A") + 1
    return Sheet(row - 1 - BLOCK * letter, BLOCK * (zone - 31) + column - 1)


def neighbours(name: str, others: Sequence[str], *, edge: bool = False) -> list[str]:
    """Return those of ``others`` whose sheets touch the sheet of ``name``, even at a corner.

    With ``edge``, they share a whole edge. Names that are not sheets have no neighbours.
    """
    sheet, found = sheet_of(name), []
    for other in others:
        place = sheet_of(other)
        if sheet and place:
            down, right = abs(place.row - sheet.row), abs(place.column - sheet.column)
            if (down + right if edge else max(down, right)) == 1:
                found.append(other)
    return found


def leakage(split: Mapping[str, Sequence[str]]) -> Leakage | None:
    """Find test scenes that are adjacent to training or validation scenes.

    The result is None if the names of ``split`` (``train``, ``val``, ``test`` -> scenes) give no
    positions, or if only test scenes were used in training.
    """
    test = [name for name in split.get("test", ()) if sheet_of(name)]
    seen = [name for part in ("train", "val") for name in split.get(part, ()) if sheet_of(name)]
    seen = [name for name in seen if name not in test]
    if not test or not seen:
        return None
    touching = tuple(name for name in test if neighbours(name, seen))
    sharing = tuple(name for name in touching if neighbours(name, seen, edge=True))
    return Leakage(len(test), touching, sharing)
