"""Odd names of files, and odd things in place of files and folders."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from umsf_lib import config as config_module
from umsf_lib.__main__ import main
from umsf_lib.config import ConfigError, DataError
from umsf_lib.data.check import guess_layout, survey
from umsf_lib.data.layout import load_layout
from umsf_lib.data.pairing import listing, pair_files
from umsf_lib.data.scene import find_scenes

from ..fakes import write_fake

PAIRS = load_layout("pairs")


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_composed_and_decomposed_names_pair(tmp_path: Path) -> None:
    composed, apart = (normalize(form, "Málaga") for form in ("NFC", "NFD"))
    touch(tmp_path, f"optical/{composed}.tif", f"sar/{apart}.tif")
    found = pair_files(tmp_path, PAIRS)
    assert list(found.scenes) == [composed] and found.defects == []
    touch(tmp_path, f"optical/{apart}.tif")
    (said,) = pair_files(tmp_path, PAIRS).defects
    assert said.startswith(f"Two files are called {composed}")


def test_folders_and_patterns_may_be_decomposed(tmp_path: Path) -> None:
    composed, apart = (normalize(form, "é") for form in ("NFC", "NFD"))
    layout = replace(
        PAIRS,
        folders={"optical": (f"{composed}t/*",), "sar": ("sar/*",)},
        pattern={"optical": f"{composed}_*.tif", "sar": "*.tif"},
    )
    touch(tmp_path, f"{apart}t/x/{apart}_1.tif", "sar/x/1.tif")
    assert list(pair_files(tmp_path, layout).scenes) == ["1"]


def test_the_folder_in_a_pattern_may_be_decomposed(tmp_path: Path) -> None:
    composed, apart = (normalize(form, "à_10m") for form in ("NFC", "NFD"))
    layout = replace(PAIRS, pattern={"optical": f"{composed}/*.tif", "sar": "*.tif"})
    touch(tmp_path, f"optical/{apart}/1.tif", "sar/1.tif")
    assert list(pair_files(tmp_path, layout).scenes) == ["1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["y" * 300], "cannot be opened (File name too long)"),
        ([".", "--layout", "y" * 300], "is unknown"),
        ([".", "--layout", "y" * 300 + ".yaml"], "does not exist"),
    ],
)
def test_names_too_long_for_a_disk_are_said(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_class_folder_may_be_decomposed(tmp_path: Path) -> None:
    base = load_layout("eurosat")
    layout = replace(base, classes=(replace(base.classes[0], folder=normalize("NFC", "Forêt")),))
    write_fake(tmp_path, "eurosat", "1", part=normalize("NFD", "Forêt"))
    (scene,) = find_scenes(tmp_path, layout)
    assert scene.whole_tile_class == layout.classes[0]


@pytest.mark.parametrize("folder", ["S2 [2020]", "a?b", "./optical/", "optical"])
def test_names_of_folders_are_taken_as_they_are(tmp_path: Path, folder: str) -> None:
    layout = replace(PAIRS, folders={"optical": (folder,), "sar": ("sar",)})
    touch(tmp_path, f"{folder}/1.tif", "sar/1.tif")
    assert list(pair_files(tmp_path, layout).scenes) == ["1"]


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"a\\nb"), ("c\x1b[2J", r"c\\x1b\[2J")])
def test_a_name_with_a_control_character_is_a_defect(tmp_path: Path, name: str, shown: str) -> None:
    touch(tmp_path, "optical/1.tif", "sar/1.tif", f"optical/{name}.tif", f"sar/{name}.tif")
    found = pair_files(tmp_path, PAIRS)
    assert list(found.scenes) == ["1"] and len(found.defects) == 2
    assert all(text.isprintable() for text in found.defects)
    with pytest.raises(DataError, match=shown + r"\.tif' holds a line break"):
        find_scenes(tmp_path, PAIRS)


def test_names_that_are_no_text_are_a_defect(tmp_path: Path) -> None:
    touch(tmp_path, "optical/1.tif", "sar/1.tif")
    with open(bytes(tmp_path / "sar") + b"/\xff.tif", "wb"):  # Latin-1 from an old archive
        pass
    (said,) = pair_files(tmp_path, PAIRS).defects
    assert r"\udcff.tif" in said and "rename" in said


def test_a_folder_in_place_of_a_file_is_a_defect(tmp_path: Path) -> None:
    write_fake(tmp_path, "pairs", "1")
    (tmp_path / "sar" / "2.tif").mkdir()
    (said,) = survey(tmp_path, PAIRS).defects
    assert "2.tif is a folder, not a file" in said


def make_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("optical/1.tif", "")
    return path


def test_what_is_no_data_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a.tif", "empty/.DS_Store")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "download").mkdir()
    cases = {
        make_zip(tmp_path / "set.zip"): "is an archive; unpack it",
        make_zip(tmp_path / "download" / "optical.zip").parent: r"only archives \(optical\.zip\)",
        tmp_path / "a.tif": "is a file, not a folder",
        tmp_path / "empty": "is empty",
        tmp_path / "missing": "does not exist",
        tmp_path / "loop": "cannot be opened",
        tmp_path / "dangling": "cannot be opened",
    }
    for path, says in cases.items():
        for action in (lambda p=path: find_scenes(p, PAIRS), lambda p=path: guess_layout(p)):
            with pytest.raises(DataError, match=f"{path.name}.*{says}"):
                action()
        assert main(["data", "check", str(path)]) == 2


def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be opened \(Permission denied\)"):
        listing(tmp_path)


@pytest.mark.parametrize("folder", ["/data/S2", "~/S2", "../S2", "", "/"])
def test_a_layout_stays_inside_the_data_folder(tmp_path: Path, folder: str) -> None:
    text = PAIRS.source.read_text(encoding="utf-8")
    assert "sar: sar" in text
    (tmp_path / "own.yaml").write_text(text.replace("sar: sar", f"sar: '{folder}'"), "utf-8")
    with pytest.raises(ConfigError, match="not a folder inside the data folder"):
        load_layout(str(tmp_path / "own.yaml"))


def test_a_home_folder_is_expanded_in_each_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    monkeypatch.setenv("UMSF_ROOT", "~/root")
    text = PAIRS.source.read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(text.replace("name: pairs", "name: own"), encoding="utf-8")
    write_fake(tmp_path / "data", "pairs", "1")
    assert main(["data", "check", "~/data", "--layout", "~/own.yaml"]) == 0
    align = ["data", "align", "~/data", "--layout", "pairs", "--output", "~/out"]
    assert main(align) == 0 and (tmp_path / "out" / "sar" / "1.tif").is_file()
    made = ["synthesize", "--profile", "tiny", "--data=~/data", "--layout", "~/own.yaml"]
    assert main([*made, "--run", "mine"]) == 0
    assert (tmp_path / "root" / "runs" / "mine" / "manifest.json").is_file()
    assert str(config_module.expanded("~nobody-here/x")) == "~nobody-here/x"
    capsys.readouterr()


def test_a_path_that_is_no_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a locale without UTF-8, where the bytes of other letters are not decoded."""
    write_fake(tmp_path, "pairs", "1")
    data = f"{tmp_path}/\udce6\udcb9"
    for command in (["data", "check", data], ["map", "--profile", "tiny", "--data", data]):
        assert main(command) == 2
        assert "not text in this locale; set PYTHONUTF8=1" in capsys.readouterr().err
    (tmp_path / "sar" / "1.tif").rename(tmp_path / "sar" / "\udce6.tif")
    with pytest.raises(DataError, match=r"udce6\.tif' .* PYTHONUTF8=1"):
        pair_files(tmp_path, PAIRS)
