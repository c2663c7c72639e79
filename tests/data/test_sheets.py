"""Sheet positions and leakage, against boxes of exact fractions of a degree."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from umsf_lib.config import DataError
from umsf_lib.data.check import report, survey
from umsf_lib.data.map_sheets import Sheet, leakage, neighbours, sheet_of
from umsf_lib.data.synthetic import sheet_transform

from ..fakes import write_fake

# "The division of the dataset.txt" of WHU-OPT-SAR: block, then row and column of each sheet.
TRAIN = {
    "NH49E": """004021 005014 005023 005024 006011 006022 006024 007013 007023 007024 008014 008017
        008024 009014 009023 009024 010014 010015 012017 012018 012022 013018 013023 014007 014017
        014021 014024 001013 002014 004013 006014 006017 007017 009012 010016 010022 011011 011017
        012009 013007 013021 014022""",
    "NH50E": """003001 006001 006007 007001 007003 007004 008003 009001 009003 009004 009006 010001
        010003 010004 011002 011004 012001 012004 012005 012008 013001 013002 013005 016002""",
    "NI49E": """021010 022010 022011 022013 022015 023017 024017 024018 024019 024020 021011 021012
        022014 024013""",
}
TEST = {
    "NH49E": """001014 001017 002012 002016 003014 003024 004011 005011 005019 006019 007014 008013
        009017 010020 011024 012020 013010""",
    "NH50E": "007002 011005 014003",
}

Box = tuple[Fraction, Fraction, Fraction, Fraction]  # west, south, east, north, degrees


def listed(blocks: dict[str, str]) -> list[str]:
    return [block + code for block, text in blocks.items() for code in text.split()]


def box(name: str) -> Box:
    """Bounds in degrees, straight from the description of the numbering."""
    letter, zone = "ABCDEFGHIJKLMNOPQRSTUV".index(name[1]) + 1, int(name[2:4])
    north = 4 * letter - Fraction(int(name[5:8]) - 1, 6)
    west = 6 * (zone - 31) + Fraction(int(name[8:11]) - 1, 4)
    return west, north - Fraction(1, 6), west + Fraction(1, 4), north


def touch(a: Box, b: Box) -> tuple[bool, bool]:
    """Whether two boxes meet at all, and whether along more than a point."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return min(wide, high) >= 0, min(wide, high) == 0 and max(wide, high) > 0


def test_a_sheet_lies_where_its_number_says() -> None:
    sheet = sheet_of("NH49E001013.tif")
    assert sheet is not None and (sheet.north_deg, sheet.west_deg) == (32, 111)
    for name in listed(TRAIN) + listed(TEST):
        found, (west, south, east, north) = sheet_of(name), box(name)
        assert found is not None
        assert found.bounds_deg == pytest.approx(tuple(map(float, (west, south, east, north))))
        assert 29.33 <= north <= 32.7 and west >= 109.5 and east <= 116.01  # where Hubei is


@pytest.mark.parametrize(
    "name", ["", "059", "NH49E025001", "NH49E001000", "NH4XE001013", "xNH49E001013", "NH49E0010131"]
)
def test_other_names_have_no_sheet(name: str) -> None:
    assert sheet_of(name) is None and neighbours(name, ["NH49E001013"]) == []
    with pytest.raises(DataError, match="not a sheet name"):
        sheet_transform(name)


def test_neighbours_go_on_across_the_edges_of_a_block() -> None:
    """NH49 ends in the east at NH50 and in the north at NI49."""
    assert neighbours("NH49E001024", ["NH50E001001", "NI49E024024", "NI50E024001"]) == [
        "NH50E001001",
        "NI49E024024",
        "NI50E024001",
    ]
    corner = neighbours("NH49E001024", ["NH50E001001", "NI49E024024", "NI50E024001"], edge=True)
    assert corner == ["NH50E001001", "NI49E024024"]
    assert neighbours("NH49E001013", ["NH49E001013", "NH49E001015", "059"]) == []
    assert sheet_of("NA31E024001") == Sheet(-1, 0)


def test_the_official_split_leaks_15_of_20_scenes() -> None:
    train, test = listed(TRAIN), listed(TEST)
    assert len(train) == 80 and len(test) == 20
    found = leakage({"train": train[:60], "val": train[60:], "test": test})
    assert found is not None
    assert (found.tested, len(found.touching), len(found.sharing_edge)) == (20, 15, 10)
    assert set(found.sharing_edge) <= set(found.touching) <= set(test)


@pytest.mark.parametrize("seed", range(5))
def test_leakage_equals_that_of_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = ["NH49E", "NH50E", "NI49E", "NI50E"]
    every = [
        f"{b}{r:03d}{c:03d}" for b in blocks for r in (1, 2, 23, 24) for c in (1, 2, 3, 23, 24)
    ]
    names = rng.permutation(every)[:40].tolist()
    train, test = names[:25], names[25:]
    meets = {n: [touch(box(n), box(o)) for o in train] for n in test}
    found = leakage({"train": train, "val": [], "test": test})
    assert found is not None
    assert list(found.touching) == [n for n in test if any(t for t, _ in meets[n])]
    assert list(found.sharing_edge) == [n for n in test if any(e for _, e in meets[n])]


def test_no_leakage_is_reported_where_there_are_no_positions() -> None:
    assert leakage({"train": ["a", "b"], "val": [], "test": ["c"]}) is None
    both = ["NH49E001013", "NH49E001014"]
    assert leakage({"train": both, "val": [], "test": both}) is None  # transductive


def test_the_check_reports_leakage(tmp_path: Path) -> None:
    names = ["NH49E001013", "NH49E001014", "NH49E002015", "NH49E009001"]
    for name in names:  # as distributed: the CRS is stripped
        layout = write_fake(
            tmp_path, "whu-opt-sar", name, optical_crs=None, sar_crs=None, label=None
        )
    lines = ["train:", names[0], "val:", names[1], "test:", *names[2:]]
    (tmp_path / "split.txt").write_text("\n".join(lines))
    text = "\n".join(report(survey(tmp_path, layout)))
    assert "Leakage: 1 of 2 test scenes touch a training or validation scene, 0 share" in text
    assert "CRS: none, pixel coordinates" in text
