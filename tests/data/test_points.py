"""Sparse labels from a CSV: against squares drawn by hand around each point."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from umsf_lib.__main__ import main
from umsf_lib.config import IGNORE, DataError
from umsf_lib.data import rasters
from umsf_lib.data.align import align
from umsf_lib.data.check import guess_layout, report, survey
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene import find_scenes
from umsf_lib.data.scene_set import class_shares
from umsf_lib.data.stage import prepare

from ..fakes import write_fake
from .test_scenes import REAL, needs_real

LAYOUT = load_layout("sentinel-pairs")
H, W = 48, 56
# Codes are 1 more than ids, but trees have code 6 and id 4. Two points are at corners; two of one
# class and two of different ones overlap.
TEXT = """scene,row,col,x,y,code,class
004,0,0,1.5,2.5,1,water
4,47,55,,,2,residential
047,20,20,,,3,commercial
47,22,23,,,3,commercial
47,30,10,,,4,paved
47,33,11,,,6,trees
"""


def folder(root: Path, text: str = TEXT) -> Path:
    for number, name in enumerate(("004", "047", "100")):
        write_fake(root, "pairs", name, number)
    (root / "points.csv").write_text(text)
    return root


def drawn(squares: dict[tuple[int, int], int]) -> np.ndarray:
    """The id of each square of 5 x 5 px around a place, clipped at the border."""
    ids = np.full((H, W), IGNORE)
    for (row, col), id_ in squares.items():
        for i in range(row - 2, row + 3):
            for j in range(col - 2, col + 3):
                if 0 <= i < H and 0 <= j < W:
                    ids[i, j] = id_
    return ids


def expected() -> dict[str, np.ndarray]:
    mixed = drawn({(20, 20): 2, (22, 23): 2, (30, 10): 3, (33, 11): 4})
    mixed[31:33, 9:13] = IGNORE  # where 28..32 x 8..12 and 31..35 x 9..13 meet
    return {
        "004": drawn({(0, 0): 0, (47, 55): 1}),
        "047": mixed,
        "100": drawn({}),
    }


@pytest.mark.parametrize("strip", [7, 1000])
def test_the_25_pixels_around_each_point_are_labelled(tmp_path, monkeypatch, strip: int) -> None:
    monkeypatch.setattr(rasters, "STRIP_PX", strip)
    scenes = prepare(folder(tmp_path / "data"), LAYOUT, tmp_path / "prepared")
    by_hand = expected()
    assert (by_hand["004"] == 0).sum() == 9 and (by_hand["047"] == 3).sum() == 25 - 8
    for index, record in enumerate(scenes.records):
        np.testing.assert_array_equal(scenes.plane("label", index), by_hand[record.name])
        whole = scenes.sources[record.name].read()["label"]
        np.testing.assert_array_equal(whole, by_hand[record.name])
    assert scenes.labelled and set(class_shares(scenes)) == {"train", "val", "test"}
    assert scenes.split == {"train": ["004", "047", "100"], "val": ["004", "100"], "test": ["047"]}


def test_the_order_of_points_does_not_matter(tmp_path: Path) -> None:
    head, *lines = TEXT.splitlines()
    folder(tmp_path, "\n".join([head, *reversed(lines), "47,32,12,,,4,paved"]))
    scene = next(s for s in find_scenes(tmp_path, LAYOUT) if s.name == "047")
    ids = drawn({(20, 20): 2, (22, 23): 2, (30, 10): 3, (32, 12): 3, (33, 11): 4})
    for (top, bottom), (left, right) in (((31, 33), (9, 13)), ((31, 35), (10, 14))):
        ids[top:bottom, left:right] = IGNORE  # trees meet one or the other square of paved ground
    np.testing.assert_array_equal(scene.read()["label"], ids)


def test_changed_points_are_prepared_anew(tmp_path: Path) -> None:
    root, target = folder(tmp_path / "data"), tmp_path / "prepared"
    first = prepare(root, LAYOUT, target)
    assert prepare(root, LAYOUT, target).folder == first.folder
    (root / "points.csv").write_text(TEXT.replace("4,47,55", "047,47,55"))  # to another scene
    second = prepare(root, LAYOUT, target)
    assert second.folder != first.folder
    assert (second.plane("label", 0) == 1).sum() == 0 < (second.plane("label", 1) == 1).sum()


def test_the_check_counts_points_by_class(tmp_path: Path) -> None:
    folder(tmp_path, TEXT + "9,1,1,,,1,water\n9,3,9,,,1,water\n")
    found = survey(tmp_path, LAYOUT)
    text = "\n".join(report(found))
    assert found.defects == [] and "scenes, 5 x 5 px each (points.csv); 2 of 8 points" in text
    assert "Labels: 6 points of 2 scenes" in text and "2 of 8 points match no scene (9)" in text
    for line in ("0 water (code 1): 1\n", "2 commercial (code 3): 2\n", "4 trees (code 6): 1\n"):
        assert line in text


def test_points_make_the_difference_between_two_layouts(tmp_path: Path) -> None:
    folder(tmp_path)
    layout, why = guess_layout(tmp_path)
    assert layout.name == "sentinel-pairs" and "pairs fits, but reads no points" in why
    (tmp_path / "points.csv").write_text(TEXT.replace(",4,paved", ",77,paved"))
    layout, why = guess_layout(tmp_path)
    assert layout.name == "pairs" and "sentinel-pairs does not, since" in why
    assert "unknown code 77" in why
    (tmp_path / "points.csv").unlink()
    layout, why = guess_layout(tmp_path)
    assert layout.name == "pairs" and "has no points.csv" in why


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "row,col",
            "zeile,col",
            r"points\.csv has no column row: .*'scene,zeile,col,x,y,code",
        ),
        ("scene,row,col,x,y,code", "scene;row", "no column scene and no column row and no column"),
        ("47,30,10", "47,48,10", r"line 6: row 48, column 10 lies .* 047, .* 0 to 47 .* 0 to 55"),
        ("47,30,10", "47,-1,10", "line 6: row -1, column 10 lies outside"),
        ("47,30,10", "47,3.5,10", r"points\.csv line 6: row is '3.5', not a whole number"),
        ("47,30,10,,,4,paved", "47,30", r"points\.csv line 6: col is '', not a whole number"),
        ("4,paved", "9,cars", "line 6 has the unknown code 9; layout .* knows 1 water, 2 resid"),
        (TEXT, "", r"points\.csv has no column"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(tmp_path, capsys, old: str, new: str, says: str) -> None:
    assert TEXT.count(old) == 1
    root = folder(tmp_path / "data", TEXT.replace(old, new))
    with pytest.raises(DataError, match=says):
        prepare(root, LAYOUT, tmp_path / "prepared")
    (said,) = survey(root, LAYOUT).defects
    assert said.endswith(".") and "\n" not in said
    assert main(["data", "check", str(root), "--layout", "sentinel-pairs"]) == 2
    assert said in capsys.readouterr().out


def test_many_points_outside_are_one_defect_of_their_scene(tmp_path: Path) -> None:
    folder(tmp_path, TEXT.replace("47,2", "47,92").replace("47,3", "47,93"))
    (said,) = survey(tmp_path, LAYOUT).defects
    assert "line 4: row 920" in said and said.endswith("; 3 more points of this scene do, too.")


def test_points_of_no_scene_at_all_are_a_doubt(tmp_path: Path) -> None:
    lost = "scene,row,col,code\n7,1,1,1\n8,1,1,1\n"
    for text, says in (
        (lost, r"None of the 2 points of .*points\.csv \(7, 8\) lies in one of the 3 scenes"),
        (lost.splitlines()[0], "holds no point of the 3 scenes"),
    ):
        folder(tmp_path, text)
        with pytest.warns(UserWarning, match=says):
            assert not any(scene.points for scene in find_scenes(tmp_path, LAYOUT))
        (said,) = survey(tmp_path, LAYOUT).defects
        assert "points.csv" in said


def test_a_name_that_zeros_leave_open_is_not_guessed(tmp_path: Path) -> None:
    for name in ("07", "007"):
        write_fake(tmp_path, "pairs", name)
    (tmp_path / "points.csv").write_text("scene,row,col,code\n7,1,1,1\n07,1,1,2\n")
    found = {s.name: [p.code for p in s.points] for s in find_scenes(tmp_path, LAYOUT)}
    assert found == {"007": [], "07": [2]}


def test_a_spreadsheet_may_have_saved_the_points(tmp_path: Path) -> None:
    lines = TEXT.replace("\n", "\r\n").replace(",row,", ', "row", ')
    folder(tmp_path)
    (tmp_path / "points.csv").write_bytes(lines.encode("utf-8-sig"))
    assert sum(len(scene.points) for scene in find_scenes(tmp_path, LAYOUT)) == 6


def test_aligned_copies_keep_their_points(tmp_path: Path) -> None:
    align(folder(tmp_path / "data"), LAYOUT, tmp_path / "out")
    assert [len(s.points) for s in find_scenes(tmp_path / "out", LAYOUT)] == [2, 4, 0]


# -- real data -------------------------------------------------------------------------------


@needs_real
def test_real_points_are_found_and_checked() -> None:
    root = REAL / "sentinel_pairs"
    layout, _ = guess_layout(root)
    found = survey(root, layout)
    text = "\n".join(report(found))
    assert found.defects == [] and "Labels: 538 points of 31 scenes" in text
    assert "ignored (code 5): 6\n" in text and "Split (alternate): 31 train, 16 val" in text
    assert found.split["val"][:2] == ["004", "031"] and found.split["test"][:2] == ["019", "047"]
    names = {land.code: land.name for land in layout.classes}
    with (root / "points.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scene"] == "004"]
    assert all(names[int(row["code"])] == row["class"] for row in rows)
    label = find_scenes(root, layout)[0].read()["label"]
    assert (label != IGNORE).sum() == 25 * len(rows)  # none of them overlap
    for row in rows:
        assert layout.classes[label[int(row["row"]), int(row["col"])]].name == row["class"]


@needs_real
def test_real_flood_tiles_have_validation_tiles_of_their_own() -> None:
    found = survey(REAL / "ombria", load_layout("ombria"))
    assert found.defects == [] and len(found.scenes) == 278
    assert {part: len(names) for part, names in found.split.items()} == {
        "train": 168,
        "val": 40,
        "test": 70,
    }
    published = {p.stem[-4:] for p in (REAL / "ombria/OmbriaS2/test/AFTER").glob("*.png")}
    assert set(found.split["test"]) == published
    assert {name[2] for name in found.split["val"]} == {"4", "9"}
    assert not {name[2] for name in found.split["train"]} & {"4", "9"}


@needs_real
def test_real_worldcover_tiles_alternate_by_number() -> None:
    layout, _ = guess_layout(REAL / "hls_worldcover")
    found = survey(REAL / "hls_worldcover", layout)
    assert layout.name == "hls-worldcover" and found.defects == [] and len(found.scenes) == 60
    numbers = sorted(int(p.stem) for p in (REAL / "hls_worldcover/optical").glob("*.tif"))
    assert [int(name) for name in found.split["val"]] == numbers[::2]
    assert [int(name) for name in found.split["test"]] == numbers[1::2]
