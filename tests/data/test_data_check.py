"""``umsf data check``: what it says of a folder, against what was written there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from umsf_lib.__main__ import main
from umsf_lib.config import IGNORE, DataError
from umsf_lib.data.check import guess_layout, report, survey
from umsf_lib.data.layout import load_layout
from umsf_lib.data.rasters import write_raster
from umsf_lib.data.scene import find_scenes

from ..fakes import SET, bands, codes, write_fake, write_set

WHU = load_layout("whu-opt-sar")


def test_a_good_folder_is_described_in_full(tmp_path: Path) -> None:
    layout = write_set(tmp_path)
    found = survey(tmp_path, layout)
    text = "\n".join(report(found))
    assert found.defects == [] and "Defects: none" in text
    assert [scene.name for scene in found.scenes] == SET
    scenes = [scene.read() for scene in find_scenes(tmp_path, layout)]
    assert [scene.valid_px for scene in found.scenes] == [int(s["valid"].sum()) for s in scenes]
    labels = np.concatenate([s["label"].ravel() for s in scenes])
    labelled = labels[labels != IGNORE]
    for land in layout.classes:
        share = f"{(labelled == land.id).mean():.1%}"
        assert f"{land.id} {land.name} (code {land.code}): {share}" in text
    assert f"ignored (code 0): {(labels == IGNORE).mean():.1%} of all pixels" in text
    for part in (
        "Scenes: 5 (NH49E001013, ",
        "64 x 56 px (1)",
        "CRS: EPSG:4326",
        "Optical: 4 x uint8 (blue, green, red, nir), stretched8, nodata 0",
        "SAR: 1 x uint8 (sar), amplitude8, nodata 0",
        "Split (file): 2 train, 1 val, 2 test",
    ):
        assert part in text, part


def test_sensors_without_labels_or_places_are_said_to_be(tmp_path: Path) -> None:
    nowhere = {"optical_crs": None, "sar_crs": None}
    layout = write_fake(tmp_path, "pairs", **nowhere)
    text = "\n".join(report(survey(tmp_path, layout)))
    assert "CRS: none, pixel coordinates" in text and "Labels: none read" in text


@pytest.mark.parametrize(
    ("crs", "step", "left", "top", "says"),
    [
        ("EPSG:4326", 10, 400_000, 3_500_000, "The centre has no place on Earth in 1 of 1 scenes"),
        ("EPSG:4326", 1e-4, 7.5, 95, "The centre has no place on Earth"),  # latitude 95
        ("EPSG:32632", 1e-4, 7.5, 47.1, "Pixels are smaller than 1 mm"),  # degrees called metres
        ("EPSG:4326", 1e-4, 359.9, 47.1, ""),
        ("EPSG:2056", 0.01, 2_600_000, 1_200_000, ""),  # a drone's
        ('LOCAL_CS["site",UNIT["metre",1]]', 1, 0, 0, ""),
    ],
)
def test_coordinates_in_another_unit_than_the_crs(tmp_path, crs, step, left, top, says) -> None:
    place = {"crs": crs, "transform": Affine(step, 0, left, 0, -step, top)}
    pairs = load_layout("pairs")
    for role, path in (("optical", "optical/1.tif"), ("sar", "sar/1.tif")):
        write_raster(tmp_path / path, bands(pairs, role), **place)
    found = survey(tmp_path, pairs)
    assert found.defects == [] and len(found.warnings) == bool(says)
    assert says in "".join(found.warnings)


def test_all_defects_are_listed_not_only_the_first(tmp_path: Path) -> None:
    label = codes(WHU)
    label[3, :4] = 35
    names = [f"NH49E00{number}001" for number in range(1, 9)]
    write_fake(tmp_path, "whu-opt-sar", names[0], label=label, optical=bands(WHU, "optical")[:3])
    write_fake(tmp_path, "whu-opt-sar", names[1], sar=bands(WHU, "sar")[:, :40])
    write_fake(tmp_path, "whu-opt-sar", names[2], sar=np.zeros_like(bands(WHU, "sar")))
    for name in names[3:5]:
        write_fake(tmp_path, "whu-opt-sar", name, sar=None)
    for name in names[5:]:
        write_fake(tmp_path, "whu-opt-sar", name)
    (tmp_path / "sar" / f"{names[5]}.tif").write_bytes(b"")
    (tmp_path / "split.txt").write_text("NH49E001001.tif\n")
    found = survey(tmp_path, WHU)
    expected = [
        f"{names[0]}.*3 bands",
        f"{names[0]}.*35 \\(4 px\\)",
        f"{names[1]}.*sizes differ|sizes differ.*{names[1]}",
        f"{names[2]}.*0 valid pixels",
        f"{names[3]}.*no SAR partner",
        f"{names[4]}.*no SAR partner",
        f"{names[5]}.*0 bytes",
        "split.txt line 1",
    ]
    for pattern in expected:
        assert len([text for text in found.defects if re.search(pattern, text)]) == 1, pattern
    assert len(found.defects) == len(expected)
    assert all(text.endswith(".") and "\n" not in text for text in found.defects)
    assert [scene.name for scene in found.scenes if scene.valid_px] == names[6:]


def test_damage_in_the_middle_of_a_file_is_found(tmp_path: Path) -> None:
    layout = write_fake(tmp_path, "whu-opt-sar")
    path = tmp_path / "optical" / "NH49E001013.tif"
    values = np.random.default_rng(0).integers(1, 255, (4, 700, 64), dtype=np.uint8)
    grid = {"crs": None, "transform": rasterio.Affine.identity()}
    for role, array in (("optical", values), ("sar", values[:1]), ("lbl", values[0] * 0 + 10)):
        write_raster(tmp_path / role / path.name, array, **grid)
    with rasterio.open(path) as source:
        where = (
            int(source.tags(1, ns="TIFF").get("BLOCK_OFFSET_0_1", 0)) or path.stat().st_size // 2
        )
    content = bytearray(path.read_bytes())
    content[where : where + 40] = b"\0" * 40
    path.write_bytes(content)
    (text,) = survey(tmp_path, layout).defects
    assert str(path) in text and "damaged" in text


@pytest.mark.parametrize("name", ["whu-opt-sar", "terramesh", "pairs"])
def test_the_layout_is_guessed_with_the_reason(tmp_path: Path, name: str) -> None:
    write_fake(tmp_path, name, "a")
    write_fake(tmp_path, name, "b", optical=np.ones((7, 48, 56), np.uint8))  # one bad scene
    layout, why = guess_layout(tmp_path)
    assert layout.name == name and "1 of 2 scenes have its bands" in why


def test_what_fits_no_layout_says_what_each_lacks(tmp_path: Path) -> None:
    write_fake(tmp_path, "pairs", optical=np.ones((7, 48, 56), np.uint8))
    with pytest.raises(DataError) as caught:
        guess_layout(tmp_path)
    said = str(caught.value)
    assert "pairs does not, since optical file" in said and "7 bands" in said
    assert "terramesh" in said and "find no pairs" in said and "--layout" in said


def test_two_layouts_that_fit_must_be_chosen_from(tmp_path: Path) -> None:
    write_fake(tmp_path, "pairs")
    write_fake(tmp_path, "terramesh")
    with pytest.raises(DataError, match=r"Several layouts fit .*pairs \(1 of 1.*terramesh.*choose"):
        guess_layout(tmp_path)


def test_the_command_prints_the_report_and_its_status(tmp_path: Path, capsys) -> None:
    write_set(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Layout: whu-opt-sar: 5 of 5 scenes have its bands and dtypes (4 x stret")
    assert "; pairs does not, since optical file" in out and "Defects: none" in out
    os.remove(tmp_path / "sar" / f"{SET[0]}.tif")
    assert main(["data", "check", str(tmp_path), "--layout", "whu-opt-sar"]) == 2
    printed = capsys.readouterr()
    assert "Layout: whu-opt-sar: as given" in printed.out and "no SAR partner" in printed.out
    assert "defects, listed above" in printed.err and printed.err.count("\n") == 1
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said and "does not exist" in said and "No known layout" not in said
    (tmp_path / "other" / "photos").mkdir(parents=True)
    assert main(["data", "check", str(tmp_path / "other")]) == 2
    assert "No known layout fits" in capsys.readouterr().err
