"""Each known data set: tiny fakes with its true names, bands and codes go through one door."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rasterio import Affine

from umsf_lib.clustering.tokens import pixel_bands
from umsf_lib.config import IGNORE, ConfigError, DataError
from umsf_lib.data.align import align
from umsf_lib.data.check import guess_layout, report, survey
from umsf_lib.data.layout import Layout, layout_names, load_layout
from umsf_lib.data.rasters import read_window
from umsf_lib.data.scene import find_scenes, split_scenes
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore
from umsf_lib.maps.stage import legend_of

from ..conftest import CPU
from ..fakes import METRES, bands, codes, file_of, write_fake, write_picture
from .test_scenes import REAL, needs_real

README = Path(__file__).parents[2] / "data" / "README.md"


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set, written here by hand."""

    scenes: tuple[tuple[str, str, str], ...]  # what fills the pattern, folder part, split part
    files: tuple[str, ...]  # of the first scene
    shapes: tuple[tuple[int, str], tuple[int, str]]  # bands and dtype of optical and SAR
    ids: dict[int, int]  # label code -> class id
    lists: tuple[tuple[str, str], ...] = ()  # file, text


SETS = {
    "whu-readme": DataSet(
        scenes=(
            ("NH49E001013", "train", "train"),
            ("NH49E001014", "val", "val"),
            ("NH49E001017", "test", "test"),
        ),
        files=(
            "optical/train/NH49E001013.tif",
            "sar/train/NH49E001013.tif",
            "labels/train/NH49E001013.tif",
        ),
        shapes=((4, "uint8"), (1, "uint8")),
        ids={0: IGNORE, 10: 0, 20: 1, 30: 2, 40: 3, 50: 4, 60: 5, 70: 6},
    ),
    "pie-rgb-sar": DataSet(
        scenes=(("1", "", "train"), ("2", "", "val"), ("3", "", "test")),
        files=("rgb/1.tif", "sar/1.tif", "label/1.tif"),
        shapes=((3, "uint8"), (1, "uint8")),
        ids={0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5},
        lists=(("train.txt", "1\n2\n"), ("val.txt", "3\n")),
    ),
    "ddhr-sk": DataSet(
        scenes=(("1", "", "train"), ("2", "", "val"), ("3", "", "test")),
        files=("GF2/1.jpg", "GF3/1.jpg", "label/1.png"),
        shapes=((3, "uint8"), (1, "uint8")),
        ids={0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 255: IGNORE},
        lists=(("train.txt", "1.jpg\n2.jpg\n"), ("val.txt", "3.jpg\n")),
    ),
    "hunan": DataSet(
        scenes=(("|_11", "train", "train"), ("|_12", "val", "val"), ("|_13", "test", "test")),
        files=("s2_dir/train/s2_11.tif", "s1_dir/train/s1_11.tif", "ann_dir/train/lc_11.tif"),
        shapes=((13, "int16"), (2, "float32")),
        # the published look-up table, index = raw code; its 7 is outside the classes
        ids=dict(enumerate([255, 0, 1, 2, 1, 3, 4, 6, 6, 5, 6, 255])) | {255: 255},
    ),
    "dfc2020": DataSet(
        scenes=(
            ("ROIs0000_winter|BlackForest_p1", "BlackForest", "train"),
            ("ROIs0000_spring|MexicoCity_p1", "MexicoCity", "val"),
            ("ROIs0000_summer|Mumbai_p12", "Mumbai", "test"),
        ),
        files=(
            "s2_BlackForest/ROIs0000_winter_s2_BlackForest_p1.tif",
            "s1_BlackForest/ROIs0000_winter_s1_BlackForest_p1.tif",
            "dfc_BlackForest/ROIs0000_winter_dfc_BlackForest_p1.tif",
        ),
        shapes=((13, "uint16"), (2, "float32")),
        ids={0: IGNORE} | {code: code - 1 for code in range(1, 11)},
    ),
    "sen1floods11": DataSet(
        scenes=(
            ("Ghana_5079", "", "train"),
            ("Spain_7370579", "", "val"),
            ("India_900498", "", "test"),
        ),
        files=tuple(
            f"data/flood_events/HandLabeled/{role}Hand/Ghana_5079_{role}Hand.tif"
            for role in ("S2", "S1", "Label")
        ),
        shapes=((13, "int16"), (2, "float32")),
        ids={-1: IGNORE, 0: 0, 1: 1},
        lists=tuple(
            (f"splits/flood_handlabeled/flood_{part}_data.csv", f"{n}_S1Hand.tif,{n}_LabelHand.tif")
            for part, n in (
                ("train", "Ghana_5079"),
                ("valid", "Spain_7370579"),
                ("test", "India_900498"),
            )
        ),
    ),
    "ombria": DataSet(
        scenes=(("0001", "train", "train"), ("0043", "train", "val"), ("0013", "test", "test")),
        files=(
            "OmbriaS2/train/AFTER/S2_after_0001.png",
            "OmbriaS1/train/AFTER/S1_after_0001.png",
            "OmbriaS1/train/MASK/S1_mask_0001.png",
        ),
        shapes=((3, "uint8"), (1, "uint8")),
        ids={0: 0, 255: 1},
    ),
}
each_set = pytest.mark.parametrize("name", SETS)


def write_data_set(root: Path, name: str) -> Layout:
    for number, (scene, part, _) in enumerate(SETS[name].scenes):
        layout = write_fake(root, name, scene, number, part=part)
    for file, text in SETS[name].lists:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return layout


@each_set
def test_a_data_set_opens_pairs_and_splits(tmp_path: Path, name: str) -> None:
    known, layout = SETS[name], write_data_set(tmp_path, name)
    found, why = guess_layout(tmp_path)
    assert found.name == name and "3 of 3 scenes" in why
    scenes = find_scenes(tmp_path, layout)
    assert len(scenes) == 3
    first = next(s for s in scenes if s.optical == tmp_path / known.files[0])
    assert (first.sar, first.label) == tuple(tmp_path / file for file in known.files[1:])
    for scene in scenes:
        scene.check()
        parts = scene.read()
        for role, (count, dtype) in zip(("optical", "sar"), known.shapes, strict=True):
            assert parts[role].shape == (count, 48, 56) and parts[role].dtype == dtype
        assert parts["valid"].all()
    places = {s.optical: s.name for s in scenes}
    expected: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for scene, folder, part in known.scenes:
        expected[part].append(places[file_of(tmp_path, layout, "optical", scene, folder)])
    assert split_scenes(tmp_path, layout, scenes) == expected
    assert survey(tmp_path, layout).defects == []


@each_set
def test_codes_become_the_documented_ids(tmp_path: Path, name: str) -> None:
    known, layout = SETS[name], write_data_set(tmp_path / "data", name)
    seen = set()
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    for index, record in enumerate(scenes.records):
        label = scenes.sources[record.name].label
        assert label is not None
        raw = read_window(label, None)[0][0]
        expected = [[known.ids[int(code)] for code in row] for row in raw]
        np.testing.assert_array_equal(scenes.plane("label", index), expected)
        seen |= set(raw.ravel().tolist())
    assert seen == set(known.ids)  # every code was there
    assert max(i for i in known.ids.values() if i != IGNORE) == len(layout.classes) - 1


@each_set
def test_codes_that_are_not_documented_are_refused(tmp_path: Path, name: str) -> None:
    layout = load_layout(name)
    label = codes(layout)
    label[4, :6] = 99
    scene, part, _ = SETS[name].scenes[0]
    write_fake(tmp_path, name, scene, label=label, part=part)
    (found,) = find_scenes(tmp_path, layout)
    for action in (found.check, found.read):
        with pytest.raises(DataError, match=r"unknown codes 99 \(6 px\)"):
            action()


@each_set
def test_maps_keep_0_for_nodata(tmp_path: Path, name: str) -> None:
    """Some sets count their classes from 0; their maps count from 1 instead."""
    scenes = prepare(tmp_path, write_data_set(tmp_path, name), tmp_path / "prepared")
    classes = legend_of(scenes, 2, np.array([0, 1])).classes
    assert [c.name for c in classes] == [c.name for c in scenes.layout.classes]
    map_codes = [c.code for c in classes]
    assert min(map_codes) > 0 and len(set(map_codes)) == len(map_codes)


@pytest.mark.parametrize("name", ["hunan", "dfc2020", "sen1floods11"])
def test_partners_are_found_below_folders_called_like_a_sensor(tmp_path: Path, name: str) -> None:
    root = tmp_path / "my_s1_s2_data" / "s2_S2Hand"
    layout = write_data_set(root, name)
    for scene in find_scenes(root, layout):
        assert scene.sar and scene.sar.is_relative_to(root) and scene.sar != scene.optical


def test_dfc_tiles_may_lie_one_folder_further_down(tmp_path: Path) -> None:
    layout = write_data_set(tmp_path / "ROIs0000_test", "dfc2020")
    assert len(find_scenes(tmp_path, layout)) == 3


def test_worldcover_tiles_have_no_sar_and_alternate_by_number(tmp_path: Path) -> None:
    for number in (97, 12, 108, 9, 110):  # 9, 12, 97, 108, 110
        layout = write_fake(tmp_path, "hls-worldcover", str(number), number)
    assert guess_layout(tmp_path)[0].name == "hls-worldcover" == layout.name
    found = survey(tmp_path, layout)
    assert found.defects == [] and layout.sar is None
    assert found.split == {
        "train": ["108", "110", "12", "9", "97"],  # labels are not used for training
        "val": ["9", "97", "110"],
        "test": ["12", "108"],
    }
    scene = next(s for s in find_scenes(tmp_path, layout) if s.name == "12")
    raw = codes(layout, 12)
    expected = [10, 20, 30, 40, 50, 60, 80, 90, 100]
    ids = np.select([raw == code for code in expected], range(9), IGNORE)
    np.testing.assert_array_equal(scene.read()["label"], ids)


def test_validation_tiles_are_cut_out_of_train_by_number(tmp_path: Path) -> None:
    """All tiles of train with 4 or 9 as the digit of the tens, wherever the folder is."""
    root = tmp_path / "test" / "my"  # no part of the data set
    numbers = {"train": (39, 40, 49, 50, 90, 142, 199, 240), "test": (41, 95, 300)}
    for part, listed in numbers.items():
        for number in listed:
            layout = write_fake(root, "ombria", f"{number:04d}", number, part=part)
    found = survey(root, layout)
    assert found.defects == [] and found.split == {
        "train": ["0039", "0050"],
        "val": ["0040", "0049", "0090", "0142", "0199", "0240"],
        "test": ["0041", "0095", "0300"],
    }
    for name in found.split["val"]:
        for path in root.rglob(f"*_{name}.png"):
            path.unlink()
    (said,) = survey(root, layout).defects
    assert "split.val in the layout is ??4?, ??9?, which matches none of the 2 scenes" in said


def test_tiles_of_one_region_are_split_in_order(tmp_path: Path) -> None:
    for number in range(1, 6):
        layout = write_fake(tmp_path, "dfc2020", f"a|Mumbai_p{number}", part="Mumbai")
    parts = split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))
    assert {part: len(names) for part, names in parts.items()} == {"train": 3, "val": 1, "test": 1}


def test_chips_may_lie_side_by_side(tmp_path: Path) -> None:
    write_data_set(tmp_path / "v1.1", "sen1floods11")
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "v1.1").rglob("*Hand.tif"):
        path.rename(tmp_path / "flat" / path.name)
    layout, _ = guess_layout(tmp_path / "flat")
    names = [scene.name for scene in find_scenes(tmp_path / "flat", layout)]
    assert names == ["Ghana_5079", "India_900498", "Spain_7370579"]


def test_a_list_without_the_others_is_refused(tmp_path: Path) -> None:
    layout = write_data_set(tmp_path, "pie-rgb-sar")
    (tmp_path / "val.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt exists, but .* has no val\.txt"):
        split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))
    (tmp_path / "val.txt").write_text("1\n3\n")
    with pytest.raises(DataError, match=r"val\.txt line 1: 1 is already in train"):
        split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))
    (tmp_path / "val.txt").unlink()
    (tmp_path / "train.txt").unlink()
    parts = split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))
    assert parts == {"train": ["1"], "val": ["2"], "test": ["3"]}


def test_a_folder_that_is_no_part_is_named(tmp_path: Path) -> None:
    layout = write_fake(tmp_path, "whu-readme", "NH49E001013", part="training")
    with pytest.raises(DataError, match=r"optical.training is not one of train, val, test"):
        split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))


def test_three_equal_sar_channels_are_one_band(tmp_path: Path) -> None:
    layout = load_layout("pie-rgb-sar")
    sar = bands(layout, "sar")
    write_fake(tmp_path, "pie-rgb-sar", "1", sar=np.repeat(sar, 3, axis=0))
    (scene,) = find_scenes(tmp_path, layout)
    scene.check()
    np.testing.assert_array_equal(scene.read()["sar"], sar)
    unequal = np.repeat(sar, 3, axis=0)
    unequal[2, 30, 30] ^= 1
    write_fake(tmp_path, "pie-rgb-sar", "1", sar=unequal)
    with pytest.raises(DataError, match=r"sar.1\.tif has 3 bands that differ"):
        scene.read()
    assert any("3 bands that differ" in text for text in survey(tmp_path, layout).defects)


def test_jpeg_keeps_three_equal_channels_equal(tmp_path: Path) -> None:
    layout = load_layout("ddhr-sk")
    grey = np.repeat(bands(layout, "sar"), 3, axis=0)
    write_fake(tmp_path, "ddhr-sk", "1", sar=grey)
    (scene,) = find_scenes(tmp_path, layout)
    assert scene.read()["sar"].shape == (1, 48, 56)


def test_the_check_says_how_much_is_ignored_by_code(tmp_path: Path) -> None:
    layout = load_layout("hunan")
    label = np.full((48, 56), 4, np.uint8)
    label[:12] = 11
    write_fake(tmp_path, "hunan", "|_11", label=label, part="train")
    text = "\n".join(report(survey(tmp_path, layout)))
    assert "ignored (code 11): 25.0% of all pixels" in text
    assert "1 forest (code 2, 4): 100.0%" in text


def test_the_example_of_an_own_layout_works_as_documented(tmp_path: Path) -> None:
    block = README.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(block, encoding="utf-8")
    layout = load_layout(str(tmp_path / "my.yaml"))
    assert layout.pattern == yaml.safe_load(block)["pattern"]
    root = tmp_path / "data"
    for number, name in enumerate(("east_1", "west_1", "north_1")):
        write_fake(root, str(tmp_path / "my.yaml"), name, number)
    assert (root / "S2" / "east_1_s2.tif").is_file()
    scenes = prepare(root, layout, tmp_path / "prepared")
    assert scenes.split == {"train": ["east_1"], "val": ["west_1"], "test": ["north_1"]}
    raw = codes(layout)
    expected = np.select([raw == 1, (raw == 2) | (raw == 3), raw == 7], [0, 1, 2], IGNORE)
    np.testing.assert_array_equal(scenes.plane("label", scenes.index("east_1")), expected)


def test_every_layout_has_a_data_sheet() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in layout_names() if f"`{name}`" not in text] == []


def test_labels_that_went_through_jpeg_are_refused(tmp_path: Path) -> None:
    layout = load_layout("ddhr-sk")
    write_fake(tmp_path, "ddhr-sk", "1")
    write_picture(tmp_path / "label" / "1.jpg", codes(layout))
    (tmp_path / "label" / "1.jpg").rename(tmp_path / "label" / "1.png")  # as users do
    (scene,) = find_scenes(tmp_path, layout)
    with pytest.raises(DataError, match=r"unknown codes .* and \d+ more; layout"):
        scene.check()


@needs_real
def test_a_real_flood_chip_opens(tmp_path: Path) -> None:
    layout, _ = guess_layout(REAL / "sen1floods11")
    (scene,) = find_scenes(REAL / "sen1floods11", layout)
    scene.check()
    parts = scene.read()
    assert layout.name == "sen1floods11" and scene.name == "Spain_7370579"
    assert parts["optical"].shape == (13, 512, 512) and parts["sar"].shape == (2, 512, 512)
    assert np.bincount(parts["label"].ravel(), minlength=256)[[0, 1, IGNORE]].tolist() == [
        192010,
        70035,
        99,
    ]
    vh, water = parts["sar"][1], parts["label"] == 1
    assert vh[water].mean() < vh[parts["label"] == 0].mean()  # smooth water is dark


# -- elevation -------------------------------------------------------------------------------


def with_dem(folder: Path) -> Layout:
    text = load_layout("hunan").source.read_text()
    assert text.count("use: false") == 1
    (folder / "hunan-dem.yaml").write_text(text.replace("use: false", "use: true"))
    return load_layout(str(folder / "hunan-dem.yaml"))


def write_hunan(root: Path, layout: Layout, **change: Any) -> None:
    for number, (scene, part, _) in enumerate(SETS["hunan"].scenes):
        write_fake(root, str(layout.source), scene, number, part=part, **change)


def test_elevation_is_one_more_optical_band(tmp_path: Path) -> None:
    layout, root = with_dem(tmp_path), tmp_path / "data"
    assert (
        layout.optical.bands[13:] == ("elevation",)
        and len(load_layout("hunan").optical.bands) == 13
    )
    write_hunan(root, layout)
    assert (root / "dem_dir" / "train" / "topo_11.tif").is_file()
    found = survey(root, layout)
    assert found.defects == []
    text = "\n".join(report(found))
    assert "Optical: 13 x int16" in text and "DEM: 1 x int16 (elevation), elevation" in text
    scenes = prepare(root, layout, tmp_path / "prepared")
    for index, number in ((scenes.index(f"1{n + 1}"), n) for n in range(3)):
        plane = scenes.plane("optical", index)
        np.testing.assert_array_equal(plane[:13], bands(load_layout("hunan"), "optical", number))
        np.testing.assert_array_equal(plane[13], bands(layout, "dem", number)[0])
    statistics = scenes.statistics
    assert len(statistics["optical"]["mean"]) == 14
    names = pixel_bands(PixelStore(scenes, statistics, CPU), 0)[1]
    assert names == [*layout.optical.bands, "ndvi", "ndwi", "vv", "vh"]
    plain, _ = guess_layout(root)  # without the switch the DEM is left alone
    assert plain.name == "hunan" and len(prepare(root, plain, tmp_path / "p").flat("optical")) == 13


def test_what_follows_elevation_in_its_file_is_not_read(tmp_path: Path) -> None:
    """Training tiles have ruggedness beside it, in metres with decimals; no tile has less."""
    layout = with_dem(tmp_path)
    dem = np.repeat(bands(layout, "dem"), 2, axis=0).astype(np.float32)
    dem[1] = np.nan
    dem[0, 3, 4:6] = np.nan
    write_hunan(tmp_path, layout, dem=dem)
    (scene, *_) = find_scenes(tmp_path, layout)
    scene.check()
    parts = scene.read()
    assert parts["optical"].dtype == np.float32  # holds int16 and float32
    np.testing.assert_array_equal(parts["optical"][13], dem[0])
    assert np.argwhere(~parts["valid"]).tolist() == [[3, 4], [3, 5]]


def test_a_tile_without_its_elevation_is_named(tmp_path: Path) -> None:
    layout = with_dem(tmp_path)
    write_hunan(tmp_path, layout)
    (tmp_path / "dem_dir" / "val" / "topo_12.tif").unlink()
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path, layout)
    said = str(caught.value)
    assert f"{tmp_path / 's2_dir' / 'val' / 's2_12.tif'} has no DEM partner" in said
    assert "add the missing file" in said and "'use: false'" in said
    assert len(find_scenes(tmp_path, load_layout("hunan"))) == 3


def test_elevation_lies_on_the_grid_of_its_tile(tmp_path: Path) -> None:
    layout = with_dem(tmp_path)
    coarse = Affine(30, 0, METRES.c, 0, -30, METRES.f)
    write_hunan(tmp_path / "data", layout, dem_transform=coarse)
    (said, *_) = find_scenes(tmp_path / "data", layout)[0].defects()
    assert "grids (up to" in said and "step (10, -10)" in said and "step (30, -30)" in said
    assert len(align(tmp_path / "data", layout, tmp_path / "aligned")) == 3
    assert survey(tmp_path / "aligned", layout).defects == []
    with_text = bands(layout, "dem").astype(np.uint8)
    write_hunan(tmp_path / "bytes", layout, dem=with_text)
    (said, *_) = find_scenes(tmp_path / "bytes", layout)[0].defects()
    assert "DEM file" in said and "is uint8, but scaling 'elevation'" in said


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  use: true", "  use: maybe", "must be a valid boolean, .* it is 'maybe'"),
        ("  use: true", "  use: true\n  rgb: [elevation]", "known: dem.bands"),
        ("bands: [elevation]", "bands: [nir]", "coastal, .*, nir name one band twice"),
        ("dem: dem_dir/*, ", "", "dem must be given both"),
    ],
)
def test_a_broken_dem_entry_says_what_is_wrong(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = with_dem(tmp_path).source.read_text()
    assert text.count(old) == 1
    text = text.replace(old, new)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"own\.yaml.*" + says):
        load_layout(str(tmp_path / "own.yaml"))


# -- what YAML makes of words and numbers ------------------------------------------------------


def own_layout(folder: Path, old: str, new: str) -> Layout:
    text = load_layout("whu-opt-sar").source.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (folder / "own.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return load_layout(str(folder / "own.yaml"))


@pytest.mark.parametrize("name", ["2020-01-01", "1:30", "007", "1.10", "1e3", "0x1F", "'no'"])
def test_names_are_kept_as_they_are_spelled(tmp_path: Path, name: str) -> None:
    layout = own_layout(tmp_path, "name: water", f"name: {name}")
    assert layout.classes[3].name == name.strip("'")
    layout = own_layout(tmp_path, "sar: sar\n", f"sar: {name}\n")
    assert layout.folders["sar"] == (name.strip("'"),)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: water", "name: off", "Line 25: classes.3.name .* put a word such as no in quotes"),
        ("code: 40", "code: 1:30", "Line 25: classes.3.code .*'1:30'"),
        ("code: 40", "code: yes", "Line 25: classes.3.code .* must be a number, .* as true"),
        ("code: 40", "code:", "Line 25: classes.3.code .* must be a valid integer, .* None"),
        ("  nodata: 0  # observed range of the imagery", "  nodata: no  #", "Line 13: .* number"),
        ("  label: lbl", "  label:", "Line 7: folders.label.0 .* must be a valid string"),
        ("  sar: sar\n", "  sar: sar\n  sar: VH\n", "line 7: 'sar' is there twice"),
        ("pattern:", "patern:", "Line 8: 'patern' is not a parameter"),
        ("pattern:", "on:", "Line 8: 'on' is not a parameter"),
        ("name: water", "name: ''", "Line 25: classes.3.name .* at least 1 character"),
        ("validation_tail: 20", "validation_tail: no", "split.file.validation_tail .* as false"),
    ],
)
def test_a_mistake_in_a_layout_names_its_line(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        own_layout(tmp_path, old, new)
    assert "own.yaml" in str(caught.value)


def test_other_spellings_of_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    assert own_layout(tmp_path, "code: 40", "code: [041, 42]").classes[3].codes == (41, 42)
    nodata = "  nodata: 0  # observed range of the imagery"
    found = own_layout(tmp_path, nodata, "  nodata: -3.4028234663852886e+38  #").optical.nodata
    assert found == float(np.finfo(np.float32).min)


def test_a_layout_may_be_saved_by_any_editor(tmp_path: Path) -> None:
    text = load_layout("pairs").source.read_text(encoding="utf-8").replace("name: p", "name: ö-p")
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "own.yaml").write_text(text, encoding=encoding)
        assert load_layout(str(tmp_path / "own.yaml")).name == "ö-pairs"
    (tmp_path / "own.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"Layout .*own\.yaml line \d+ is not UTF-8; save"):
        load_layout(str(tmp_path / "own.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml is a folder"):
        load_layout(str(tmp_path / "folder.yaml"))


@pytest.mark.parametrize(("count", "fine"), [(254, True), (255, False), (300, False)])
def test_classes_must_fit_a_byte(tmp_path: Path, count: int, fine: bool) -> None:
    rows = "".join(
        f"\n  - {{id: {i}, name: c{i}, code: {2 * i + 1}, rgb: [{i % 256}, 0, 0]}}"
        for i in range(count)
    )
    text = load_layout("whu-opt-sar").source.read_text(encoding="utf-8")
    head, tail = text.index("classes:"), text.index("split:")
    (tmp_path / "own.yaml").write_text(f"{text[:head]}classes:{rows}\n{text[tail:]}", "utf-8")
    if fine:
        assert load_layout(str(tmp_path / "own.yaml")).classes[-1].codes == (507,)
    else:
        with pytest.raises(ConfigError, match=f"there are {count} classes, .* at most 254"):
            load_layout(str(tmp_path / "own.yaml"))
