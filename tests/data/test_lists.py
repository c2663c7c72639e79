"""Split lists as people write them, and what is said of names that match nothing."""

from __future__ import annotations

import codecs
from pathlib import Path
from unicodedata import normalize

import pytest

from umsf_lib.config import DataError
from umsf_lib.data.check import report, survey
from umsf_lib.data.layout import FileRule, ListsRule, NamesRule, load_layout
from umsf_lib.data.split import divide, split_names

from ..fakes import write_fake

ONE = FileRule("file", ("split.txt",), 0)
THREE = ListsRule("lists", ("train.txt",), ("test.txt",), ("val.txt",))
NAMES = ["Elbe_1", "Oder_2", "Rhein_3", "Weser_4"]
FILES = {name: [Path("opt", f"{name}.tif"), Path("sar", f"s1_{name}.tif")] for name in NAMES}
PARTS = {"train": NAMES[:2], "val": NAMES[2:3], "test": NAMES[3:]}
TEXT = "train:\nElbe_1\nOder_2\nval:\nRhein_3\ntest:\nWeser_4\n"


def parts_of(root: Path, text: str, names: list[str] = NAMES) -> dict[str, list[str]]:
    (root / "split.txt").write_text(text, encoding="utf-8", newline="")
    return split_names(root, ONE, names, FILES if names is NAMES else None)


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_marks_and_line_ends_of_other_systems(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.txt").write_bytes(content)
    assert split_names(tmp_path, ONE, NAMES) == PARTS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("train:\nÖland\n".encode("latin-1"), r"split\.txt line 2 is not UTF-8; save .* as UTF-8"),
        ("train:\nA\n湖北\n".encode("gb18030"), r"split\.txt line 3 is not UTF-8; save"),
        (TEXT.encode("utf-16-le"), r"split\.txt holds null bytes.* save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", r"split\.txt line 1 is not UTF-8"),
    ],
)
def test_another_encoding_is_said_with_the_remedy(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "split.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        split_names(tmp_path, ONE, NAMES)


@pytest.mark.parametrize(
    "line",
    [
        "Weser_4.tif",
        "Weser_4.png",  # the list of a copy in another format
        "s1_Weser_4.tif",
        "opt/Weser_4.tif sar/s1_Weser_4.tif",
        "Weser_4.tif,s1_Weser_4.tif,7",
        "Weser_4;0.25;good",
        r"E:\set\opt\Weser_4.tif",
        "'Weser_4'",
        '"opt/Weser_4.tif"',
        "WESER_4.TIF",
        "  Weser_4  # seen twice, like Elbe_1",
        "Weser_4\n\n# Elbe_1\n#opt/Elbe_1.tif",
    ],
)
def test_spellings_of_one_scene(tmp_path: Path, line: str) -> None:
    assert parts_of(tmp_path, TEXT.replace("Weser_4", line)) == PARTS


@pytest.mark.parametrize("ending", ["", ".tif", ".TIF"])
def test_dots_and_blanks_belong_to_names(tmp_path: Path, ending: str) -> None:
    names = ["S2.2019", "S2.2019.07", "S2.2020", "tile 4 b"]
    listed = dict(zip(("train", "val", "test"), (names[:2], names[2:3], names[3:]), strict=True))
    text = "".join(f"{p}:\n" + "".join(f"{n}{ending}\n" for n in ns) for p, ns in listed.items())
    assert parts_of(tmp_path, text, names) == listed


def test_a_dot_is_no_reason_to_take_another_scene(tmp_path: Path) -> None:
    names = ["S2", "S2.2019", "T"]
    (tmp_path / "split.txt").write_text("train:\nT\nS2.2020\ntest:\nS2.2019\n")
    split = divide(tmp_path, ONE, names, {})
    assert (split.parts["train"], split.parts["test"]) == (["T"], ["S2.2019"])
    assert split.notes[0] == "1 of 3 listed names match no scene (S2.2020)"


def test_case_counts_where_scenes_differ_in_it_alone(tmp_path: Path) -> None:
    names = ["a", "A", "b"]
    split_text = "train:\nb\nval:\nA\ntest:\na\n"
    assert parts_of(tmp_path, split_text, names) == {"train": ["b"], "val": ["A"], "test": ["a"]}


def test_decomposed_names_are_the_same_names(tmp_path: Path) -> None:
    names = [normalize("NFC", name) for name in ("Zürich", "Genève")]
    text = normalize("NFD", "train:\nZürich.tif\ntest:\nGenève.tif\n")
    assert parts_of(tmp_path, text, names) == {"train": names[:1], "val": [], "test": names[1:]}


def test_other_words_for_the_parts_and_unknown_ones(tmp_path: Path) -> None:
    text = TEXT.replace("train:", "Training:").replace("val:", "validation :")
    assert parts_of(tmp_path, text.replace("test:", "TEST\uff1a")) == PARTS
    with pytest.raises(DataError, match=r"line 4: 'holdout:' is not one of train:, val: and test:"):
        parts_of(tmp_path, TEXT.replace("val:", "holdout:"))


def test_a_line_with_two_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 7 names 2 scenes \(Elbe_1, Weser_4\); keep one"):
        parts_of(tmp_path, TEXT.replace("Weser_4", "Weser_4,Elbe_1"))


@pytest.mark.parametrize(
    ("names", "listed"),
    [(["Ufer", "Ufer 2"], "Ufer 3"), (["Ulm", "Ulm, Nord"], "Ulm, West"), (["Bad Ems"], "Bad 1")],
)
def test_what_names_hold_does_not_separate_them(
    tmp_path: Path, names: list[str], listed: str
) -> None:
    """The list names a scene that is not there; a part of its name is another scene."""
    (tmp_path / "split.txt").write_text(f"train:\nX.tif\n{listed}.tif\n")
    split = divide(tmp_path, ONE, ["Bad", "X", *names], {})
    assert split.parts["train"] == ["X"]
    assert split.notes[0] == f"1 of 2 listed names match no scene ({listed}.tif)"


def test_scenes_behind_a_header_are_refused_and_comments_are_not(tmp_path: Path) -> None:
    assert parts_of(tmp_path, TEXT.replace("val:", "val:  # rivers: one")) == PARTS
    with pytest.raises(DataError, match=r"line 6: 'test: Weser_4' names scenes; give each a line"):
        parts_of(tmp_path, TEXT.replace("test:\n", "test: "))


def test_marks_within_joined_lists_are_no_part_of_names(tmp_path: Path) -> None:
    assert parts_of(tmp_path, TEXT.replace("val:", "\ufeffval:\n\ufeff")) == PARTS


def test_folders_tell_scenes_whose_files_have_one_name(tmp_path: Path) -> None:
    names = ["s1", "s2", "s3"]
    files = {name: [Path("set", name, "B02.jp2"), Path("set", name, "vv.tif")] for name in names}
    text = "train:\nset/s1/B02.jp2\nval:\nE:\\s3\\vv.tif\ntest:\nset/s2/B02.jp2 set/s2/vv.tif\n"
    (tmp_path / "split.txt").write_text(text)
    assert divide(tmp_path, ONE, names, files).parts == {
        "train": ["s1"],
        "val": ["s3"],
        "test": ["s2"],
    }
    (tmp_path / "split.txt").write_text("train:\ns1\nB02.jp2\nval:\ns3\n")
    assert divide(tmp_path, ONE, names, files).notes[0] == (
        "1 of 3 listed names match no scene (B02.jp2)"
    )


def test_the_name_of_a_list_may_be_decomposed(tmp_path: Path) -> None:
    (tmp_path / normalize("NFD", "prüfen.txt")).write_text("Weser_4\n")
    (tmp_path / "train.txt").write_text("Elbe_1\nOder_2\n")
    rule = ListsRule("lists", ("train.txt",), (normalize("NFC", "prüfen.txt"),))
    assert divide(tmp_path, rule, NAMES, {}).parts["test"] == ["Weser_4"]


def test_patches_listed_instead_of_scenes_are_shown(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.txt").write_text(f"{part}_0_0.png\n")
    with pytest.raises(DataError, match=r"3 of 3 listed names match no scene .*train_0_0\.png"):
        divide(tmp_path, THREE, NAMES, {})


def test_a_pattern_that_is_a_name_means_that_scene(tmp_path: Path) -> None:
    names = ["Isar[1]", "Isar1", "Lech"]
    split = divide(tmp_path, NamesRule("names", ("Lech",), ("Isar[1]",)), names, {})
    assert split.parts == {"train": ["Isar1"], "val": ["Isar[1]"], "test": ["Lech"]}


def test_idle_and_overlapping_patterns_are_counted(tmp_path: Path) -> None:
    rule = NamesRule("names", ("Weser*", "Oder*"), ("Oder_2", "Main*"))
    assert divide(tmp_path, rule, NAMES, {}).notes == [
        "1 of 4 patterns match no scene (Main*)",
        "1 scenes of val match test, too (Oder_2)",
    ]


def test_a_folder_in_place_of_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "split.txt").mkdir()
    with pytest.raises(DataError, match=r"split\.txt cannot be read \(Is a directory\)"):
        split_names(tmp_path, ONE, NAMES)


def test_what_matches_nothing_is_counted_and_a_whole_list_is_doubted(tmp_path: Path) -> None:
    for part, listed in (("train", "Elbe_1\nOder_2\nX\n"), ("val", "Y\n"), ("test", "Z1\nZ2\n")):
        (tmp_path / f"{part}.txt").write_text(listed)
    split = divide(tmp_path, THREE, NAMES, {})
    assert split.parts == {"train": ["Elbe_1"], "val": ["Oder_2"], "test": []}
    assert split.notes == [
        "4 of 6 listed names match no scene (X, Y, Z1, ...)",
        "val is the end of train, because no other scenes are for validation",
        "2 scenes are in no part (Rhein_3, Weser_4)",
    ]
    first, second = split.doubts
    assert "None of the 1 names of val" in first and f"{tmp_path / 'val.txt'} (Y)" in first
    assert "None of the 2 names of test" in second and "test.txt (Z1, Z2)" in second
    with pytest.warns(UserWarning, match=r"val\.txt \(Y\) is a scene"):
        assert split_names(tmp_path, THREE, NAMES) == split.parts


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        (None, ("Weser*",), {"train": NAMES[:2], "val": NAMES[2:3], "test": NAMES[3:]}),
        (
            ("Oder*",),
            ("W*",),
            {"train": ["Elbe_1", "Rhein_3"], "val": ["Oder_2"], "test": NAMES[3:]},
        ),
        (("Oder*",), ("Main*",), {"train": ["Elbe_1", *NAMES[2:]], "val": ["Oder_2"], "test": []}),
        (("Main*",), ("Elbe*",), {"train": NAMES[1:3], "val": NAMES[3:], "test": ["Elbe_1"]}),
    ],
)
def test_patterns_are_kept_whatever_they_match(
    tmp_path: Path,
    val: tuple[str, ...] | None,
    test: tuple[str, ...],
    expected: dict[str, list[str]],
) -> None:
    split = divide(tmp_path, NamesRule("names", test, val), NAMES, {})
    assert split.parts == expected
    assert [
        text for text in split.doubts if "Main*, which matches none of the 4 scenes" in text
    ] == (split.doubts if "Main*" in (*test, *(val or ())) else [])


def test_patterns_that_leave_nothing_to_train_are_said(tmp_path: Path) -> None:
    split = divide(tmp_path, NamesRule("names", ("*",)), NAMES, {})
    assert split.parts == {"train": NAMES[:2], "val": NAMES[2:3], "test": NAMES[3:]}
    assert "match every scene" in split.doubts[0] and "in the order of" in split.doubts[0]


def test_the_check_tells_of_lists(tmp_path: Path) -> None:
    for name in "abc":
        layout = write_fake(tmp_path, "whu-opt-sar", name)
    found = survey(tmp_path, layout)
    why = "in order of names, without split.txt, The division of the dataset.txt"
    assert f"Split (file): 1 train, 1 val, 1 test; {why}" in report(found)
    (tmp_path / "split.txt").write_text("train:\nA.tif\nb\nc\ngone\ntest:\nlost\n")
    found = survey(tmp_path, layout)
    assert [
        text for text in found.defects if "None of the 1 names of test" in text
    ] == found.defects
    line = next(line for line in report(found) if line.startswith("Split"))
    assert "2 train, 1 val, 0 test; 2 of 5 listed names match no scene (gone, lost)" in line
    (tmp_path / "split.txt").write_bytes("train:\nÉ\n".encode("cp1252"))
    assert "save the file as UTF-8" in survey(tmp_path, layout).defects[0]


def test_a_layout_may_leave_val_out(tmp_path: Path) -> None:
    text = load_layout("pairs").source.read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        text.replace("  rule: unlabelled", "  rule: names\n  test: [n*]"), encoding="utf-8"
    )
    assert load_layout(str(tmp_path / "own.yaml")).split == NamesRule("names", ("n*",))
