"""Scenes, layouts, splits and GeoTIFF writing; each bad input is a test on what the error says."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from rasterio.windows import Window

from umsf_lib.config import IGNORE, ConfigError, DataError
from umsf_lib.data.layout import load_layout, to_log_intensity
from umsf_lib.data.rasters import Grid, write_raster
from umsf_lib.data.scene import Scene, find_scenes, split_scenes
from umsf_lib.data.split import split_names

from ..fakes import DEGREES, METRES, UTM, WGS84, bands, codes, write_fake

LAYOUTS = ("whu-opt-sar", "terramesh", "pairs")
WHU = load_layout("whu-opt-sar")


def only_scene(root: Path, layout_name: str = "whu-opt-sar", **change: object) -> Scene:
    layout = write_fake(root, layout_name, **change)
    (scene,) = find_scenes(root, layout)
    return scene


def refusal(scene: Scene) -> str:
    """What ``check`` says: one line."""
    with pytest.raises(DataError) as caught:
        scene.check()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_good_scene_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    scene = only_scene(tmp_path, name)
    scene.check()
    parts, layout = scene.read(), scene.layout
    np.testing.assert_array_equal(parts["optical"], bands(layout, "optical"))
    np.testing.assert_array_equal(parts["sar"], bands(layout, "sar"))
    assert parts["optical"].dtype == bands(layout, "optical").dtype
    assert parts["valid"].all() and parts["valid"].shape == (48, 56)
    assert parts["label"].dtype == np.int64
    for land in layout.classes:
        assert set(parts["label"][codes(layout) == land.code]) == {land.id}
    ignored = np.isin(codes(layout), layout.label_nodata) if layout.classes else np.s_[:]
    assert set(parts["label"][ignored].flat) == {IGNORE}
    assert str(scene.profile()).startswith("56 x 48 px, EPSG:")


def test_a_window_is_that_part_of_the_whole(tmp_path: Path) -> None:
    scene = only_scene(tmp_path)
    whole, part = scene.read(), scene.read(Window(8, 20, 30, 16))
    for key in ("optical", "sar", "label", "valid"):
        np.testing.assert_array_equal(part[key], whole[key][..., 20:36, 8:38])
    with pytest.raises(DataError, match="reaches beyond it"):
        scene.read(Window(40, 0, 30, 16))


def test_whu_bands_lie_in_file_order_blue_green_red_nir() -> None:
    assert WHU.optical.bands == ("blue", "green", "red", "nir")
    assert WHU.optical.rgb == (2, 1, 0)
    assert [c.code for c in WHU.classes] == [10, 20, 30, 40, 50, 60, 70]
    assert WHU.classes[3].name == "water" and WHU.classes[3].rgb == (0, 0, 255)


def test_valid_needs_every_band_of_both_sensors(tmp_path: Path) -> None:
    terramesh = load_layout("terramesh")
    optical, sar, label = bands(terramesh, "optical"), bands(terramesh, "sar"), codes(terramesh)
    optical[5, 0, 0] = 0
    sar[1, 0, 1], sar[0, 0, 2] = np.nan, -np.inf
    label[0, 3] = 0  # no label is no reason not to map a pixel
    scene = only_scene(tmp_path, "terramesh", optical=optical, sar=sar, label=label)
    parts = scene.read()
    assert np.argwhere(~parts["valid"]).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert parts["label"][0, 3] == IGNORE


def test_nodata_that_only_the_file_declares_counts(tmp_path: Path) -> None:
    sar = bands(load_layout("terramesh"), "sar")
    sar[:, 7, 9] = -999
    scene = only_scene(tmp_path, "terramesh", sar=sar, sar_nodata=-999)
    assert np.argwhere(~scene.read()["valid"]).tolist() == [[7, 9]]


def test_scenes_without_crs_have_pixel_coordinates(tmp_path: Path) -> None:
    nowhere = {f"{r}_crs": None for r in ("optical", "sar", "label")}
    unplaced = {f"{r}_transform": Affine.identity() for r in ("optical", "sar", "label")}
    scene = only_scene(tmp_path, **nowhere, **unplaced)
    scene.check()
    assert scene.profile() == Grid(48, 56, None, Affine.identity())
    assert "no CRS" in str(scene.profile())


def test_a_layout_without_sar_reads_optical_alone(tmp_path: Path) -> None:
    text = (WHU.source.parent / "pairs.yaml").read_text()
    text = re.sub(r"(?m)^sar:\n(  .*\n)+", "", text).replace("sar: sar", "")
    (tmp_path / "own.yaml").write_text(text)
    write_fake(tmp_path, "pairs", sar=None)
    (scene,) = find_scenes(tmp_path, load_layout(str(tmp_path / "own.yaml")))
    scene.check()
    assert scene.sar is None and "sar" not in scene.read()


# -- bad input: a folder ---------------------------------------------------------------------


def test_missing_folders_are_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere has no optical folder.*does not exist"):
        find_scenes(tmp_path / "nowhere", WHU)
    write_fake(tmp_path, "pairs", sar=None)
    with pytest.raises(DataError, match=r"no sar folder \(sar/.*holds optical; check the data"):
        find_scenes(tmp_path, WHU)


def test_an_early_release_calls_the_optical_folder_image(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar")
    (tmp_path / "optical").rename(tmp_path / "image")
    assert find_scenes(tmp_path, WHU)[0].optical.parent.name == "image"


def test_nothing_found_names_folder_and_pattern(tmp_path: Path) -> None:
    for folder in ("optical", "sar"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "._a.tif").touch()  # file managers leave such files
        (tmp_path / folder / "a.png").touch()
    with pytest.raises(DataError, match=r"No file in .*optical matches '\*\.tif'"):
        find_scenes(tmp_path, WHU)


def test_names_that_match_nowhere_are_shown(tmp_path: Path) -> None:
    write_fake(tmp_path, "pairs", name="a_s2", sar=None)
    write_fake(tmp_path, "pairs", name="a_s1", optical=None)
    with pytest.raises(DataError, match=r"optical: a_s2.tif; SAR: a_s1.tif\); rename"):
        find_scenes(tmp_path, load_layout("pairs"))


@pytest.mark.parametrize(
    ("lacking", "says"),
    [("sar", r"optical.b\.tif has no SAR partner"), ("optical", r"sar.b\.tif has no optical")],
)
def test_a_file_without_its_partner_is_named(tmp_path: Path, lacking: str, says: str) -> None:
    write_fake(tmp_path, "pairs", name="a")
    write_fake(tmp_path, "pairs", name="b", **{lacking: None})
    write_fake(tmp_path, "pairs", name="c", **{lacking: None})
    with pytest.raises(
        DataError, match=says + r".*; 1 more like this: `umsf data check` lists all\.$"
    ):
        find_scenes(tmp_path, load_layout("pairs"))


def test_a_label_may_lack_but_not_stand_alone(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar", name="a")
    write_fake(tmp_path, "whu-opt-sar", name="b", label=None)
    assert [bool(s.label) for s in find_scenes(tmp_path, WHU)] == [True, False]
    write_fake(tmp_path, "whu-opt-sar", name="c", optical=None, sar=None)
    with pytest.raises(DataError, match=r"lbl.c\.tif has no optical partner"):
        find_scenes(tmp_path, WHU)
    shutil.rmtree(tmp_path / "lbl")
    assert [s.label for s in find_scenes(tmp_path, WHU)] == [None, None]


# -- bad input: a pair -----------------------------------------------------------------------


def test_sizes_that_differ_are_both_said(tmp_path: Path) -> None:
    said = refusal(only_scene(tmp_path, sar=bands(WHU, "sar")[:, :40]))
    assert "sizes differ" in said and "56 x 48 px" in said and "56 x 40 px" in said
    assert "optical/NH49E001013.tif" in said and "sar/NH49E001013.tif" in said
    assert "umsf data align" in said


def test_coordinate_systems_that_differ_are_both_said(tmp_path: Path) -> None:
    said = refusal(only_scene(tmp_path, label_crs=UTM))
    assert "coordinate systems differ" in said and "EPSG:4326" in said and "EPSG:32650" in said
    assert "lbl/NH49E001013.tif" in said
    assert "no CRS" in refusal(only_scene(tmp_path, label_crs=None))


@pytest.mark.parametrize(("shift_px", "fits"), [(0.005, True), (0.02, False), (4.0, False)])
def test_grids_may_differ_by_a_hundredth_of_a_pixel(
    tmp_path: Path, shift_px: float, fits: bool
) -> None:
    d = DEGREES
    shifted = Affine(d.a, d.b, d.c + shift_px * d.a, d.d, d.e, d.f)
    scene = only_scene(tmp_path, sar_transform=shifted)
    if fits:
        scene.check()
    else:
        assert f"up to {shift_px:.2f} px apart" in refusal(scene)


def test_a_different_step_is_noticed_at_the_far_corner(tmp_path: Path) -> None:
    wider = Affine(METRES.a * 1.001, 0, METRES.c, 0, METRES.e, METRES.f)
    said = refusal(only_scene(tmp_path, "pairs", sar_transform=wider))
    assert "0.06 px apart" in said and "step (10, -10)" in said and "step (10.01, -10)" in said


def test_band_count_is_compared_with_the_layout(tmp_path: Path) -> None:
    said = refusal(only_scene(tmp_path, optical=bands(WHU, "optical")[:3]))
    assert "3 bands" in said and "4 (blue, green, red, nir)" in said and "optical/" in said


def test_dtype_is_compared_with_the_scaling(tmp_path: Path) -> None:
    said = refusal(only_scene(tmp_path, sar=bands(WHU, "sar").astype(np.float32)))
    assert "is float32" in said and "'amplitude8'" in said and "uint8" in said
    said = refusal(only_scene(tmp_path, label=codes(WHU).astype(np.float32)))
    assert "label file" in said and "is float32" in said and "integers" in said


def test_nodata_is_compared_with_the_layout(tmp_path: Path) -> None:
    only_scene(tmp_path, optical_nodata=0).check()
    said = refusal(only_scene(tmp_path, optical_nodata=255))
    assert "declares nodata 255" in said and "layout says 0" in said


def test_decibels_called_intensity_are_refused(tmp_path: Path) -> None:
    text = load_layout("terramesh").source.read_text().replace("scaling: db", "scaling: intensity")
    (tmp_path / "own.yaml").write_text(text)
    write_fake(tmp_path, "terramesh")
    (scene,) = find_scenes(tmp_path, load_layout(str(tmp_path / "own.yaml")))
    assert "never below 0; if these are decibels, use 'db'" in refusal(scene)


def test_unknown_label_codes_are_listed_with_counts(tmp_path: Path) -> None:
    label = codes(WHU)
    label[10, :5], label[40, 3] = 15, 80
    said = refusal(only_scene(tmp_path, label=label))
    assert "15 (5 px), 80 (1 px)" in said and "10 farmland" in said and "whu-opt-sar.yaml" in said
    assert "lbl/NH49E001013.tif" in said
    with pytest.raises(DataError, match=r"15 \(5 px\), 80 \(1 px\)"):
        find_scenes(tmp_path, WHU)[0].read()


def test_an_all_nodata_scene_is_refused(tmp_path: Path) -> None:
    scene = only_scene(tmp_path, sar=np.zeros_like(bands(WHU, "sar")))
    assert not scene.read(Window(0, 0, 8, 8))["valid"].any()  # a corner may be empty
    with pytest.raises(DataError, match=r"NH49E001013 has 0 valid pixels of 2688.*a partner"):
        scene.read()


@pytest.mark.parametrize("role", ["optical", "sar", "lbl"])
def test_a_truncated_file_is_found_by_check(tmp_path: Path, role: str) -> None:
    scene = only_scene(tmp_path)
    path = tmp_path / role / "NH49E001013.tif"
    path.write_bytes(path.read_bytes()[:-60])
    said = refusal(scene)
    assert str(path) in said and "truncated" in said and "bytes" in said and "again" in said


def test_a_truncated_uncompressed_file_opens_but_does_not_pass(tmp_path: Path) -> None:
    scene = only_scene(tmp_path)
    with rasterio.open(scene.sar) as source:
        values, place = source.read(), {"crs": source.crs, "transform": source.transform}
    form = {"driver": "GTiff", "count": 1, "height": 48, "width": 56, "dtype": "uint8"}
    with rasterio.open(scene.sar, "w", **form, **place) as target:
        target.write(values)
    scene.check()
    assert scene.sar is not None
    scene.sar.write_bytes(scene.sar.read_bytes()[:-60])
    rasterio.open(scene.sar).close()  # GDAL opens it without complaint
    assert "truncated" in refusal(scene)


@pytest.mark.parametrize("content", [b"", b"II*\0 but no more", b"<html>quota exceeded</html>"])
def test_what_is_no_geotiff_is_named(tmp_path: Path, content: bytes) -> None:
    scene = only_scene(tmp_path)
    scene.optical.write_bytes(content)
    said = refusal(scene)
    assert str(scene.optical) in said and f"({len(content)} bytes)" in said
    scene.optical.unlink()
    assert "(missing)" in refusal(scene)


# -- layouts ---------------------------------------------------------------------------------


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'whu' is unknown; choose one of ddhr-sk, .*, pairs, .*, whu-"
    ):
        load_layout("whu")
    with pytest.raises(ConfigError, match=r"mine\.yaml does not exist"):
        load_layout(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "scaling: stretched8",
            "scaling: stretched",
            "must be 'stretched8' or 'reflectance', .* 'stretched'",
        ),
        (
            "standardise: scene  #",
            "standardise: tile  #",
            "must be 'set', 'shrunken' or 'scene', but it is 'tile'",
        ),
        ("pattern:", "patern:", "did you mean 'pattern'"),
        (
            "rgb: [red, green, blue]",
            "rgb: [red, green, nir2]",
            "'nir2'. are not three of the bands blue, green, red",
        ),
        ("code: 20", "code: 10", "are not distinct"),
        ("id: 6", "id: 7", "the ids 0, 1, .*not .*, 7"),
        ("rgb: [0, 0, 255]", "rgb: [0, 0, 256]", "less than or equal to 255, but it is 256"),
        ("rgb: [0, 0, 255]", "rgb: blue", "see .*pairs.yaml"),
        ("name: water", "name: no", "must be a valid string, but it is False"),
        ("  label: lbl", "  label:", "must be a valid string, but it is None"),
        ("folders:\n", "folders:\n  extra: x\n", "folders must hold optical .*extra"),
        ("rule: file", "rule: random", "'random' .*expected tags: 'file'"),
        ("  validation_tail: 20", "", "lacks split.file.validation_tail"),
        ("  sar: sar", "", "sar must be given both"),
        ("folders:", "folders: here\nclasses2:", "did you mean 'classes'"),
        ('"*.tif"', "'[ab]*.tif'", "not a file name with"),
        ('"*.tif"', "{optical: '*.tif', sar: '*_*.tif', label: '*.tif'}", "differ in the number"),
        ('"*.tif"', "{optical: '*.tif'}", "not for all of .*sar"),
        ("label_nodata: [0]", "label_nodata: 0", "must be a valid tuple, but it is 0"),
        ("bands: [blue,", "bands: [red,", "name one band twice"),
        ("label_nodata:", "points: a.csv\nlabel_nodata:", "points need classes .* no folder of l"),
        ("label_nodata:", "points: ../a.csv\nlabel_nodata:", "'../a.csv', not a file in the data"),
        ("pattern:", "pattern: [", "cannot be read"),
    ],
)
def test_a_broken_layout_says_what_is_wrong(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = WHU.source.read_text()
    assert old in text
    (tmp_path / "own.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=r"own\.yaml.*" + says):
        load_layout(str(tmp_path / "own.yaml"))


# -- split -----------------------------------------------------------------------------------


def sheets(count: int, start: int = 0) -> list[str]:
    return [f"NH49E{number:03d}001" for number in range(start, start + count)]


def write_list(path: Path, **parts: list[str]) -> None:
    lines = [f"{part}:\n" + "".join(f"{n}.tif\n" for n in names) for part, names in parts.items()]
    path.write_text("\n".join(lines))


def test_the_official_list_gives_60_20_20(tmp_path: Path) -> None:
    train, test = sheets(80), sheets(20, 80)
    write_list(tmp_path / "The division of the dataset.txt", train=train, test=test)
    parts = split_names(tmp_path, WHU.split, sorted(train + test))
    assert parts == {"train": train[:60], "val": train[60:], "test": test}


def test_any_subset_of_the_official_list_works(tmp_path: Path) -> None:
    train, test = sheets(80), sheets(20, 80)
    write_list(tmp_path / "split.txt", train=train, test=test)
    some = train[50:65] + test[:3]
    assert split_names(tmp_path, WHU.split, some) == {
        "train": train[50:60],
        "val": train[60:65],
        "test": test[:3],
    }
    early = split_names(tmp_path, WHU.split, train[:10])  # none of the validation scenes is there
    assert early == {"train": train[:8], "val": train[8:10], "test": []}


def test_a_list_with_a_val_section_is_taken_as_it_is(tmp_path: Path) -> None:
    names = sheets(6)
    write_list(tmp_path / "split.txt", Train=names[:3], val=names[3:4], test=names[4:])
    parts = split_names(tmp_path, WHU.split, names)
    assert parts == {"train": names[:3], "val": names[3:4], "test": names[4:]}


def test_a_short_list_gives_a_fifth_to_validation(tmp_path: Path) -> None:
    names = sheets(10)
    write_list(tmp_path / "split.txt", train=names, test=[])
    assert split_names(tmp_path, WHU.split, names)["val"] == names[8:]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (6, 2, 2))]
)
def test_without_a_list_scenes_are_split_in_order(
    tmp_path: Path, count: int, sizes: tuple[int, int, int]
) -> None:
    parts = split_names(tmp_path, WHU.split, sheets(count))
    assert tuple(len(parts[p]) for p in ("train", "val", "test")) == sizes
    assert parts["train"] + parts["val"] + parts["test"] == sheets(count)


def test_a_bad_list_says_where(tmp_path: Path) -> None:
    path = tmp_path / "split.txt"
    path.write_text("NH49E001001.tif\ntrain:\n")
    with pytest.raises(DataError, match=r"split\.txt line 1: 'NH49E001001\.tif' comes before"):
        split_names(tmp_path, WHU.split, sheets(3))
    write_list(path, train=sheets(3), test=sheets(2))
    with pytest.raises(DataError, match=r"line 7: NH49E000001 is already in train"):
        split_names(tmp_path, WHU.split, sheets(3))
    write_list(path, train=sheets(3, 50), test=sheets(2))
    with pytest.raises(DataError, match=r"None of .*split\.txt.* is among the 2 "):
        split_names(tmp_path, WHU.split, sheets(2))


@pytest.mark.parametrize("name", ["terramesh", "pairs"])
def test_transductive_and_unlabelled_use_every_scene(tmp_path: Path, name: str) -> None:
    for scene in ("b", "a"):
        layout = write_fake(tmp_path, name, name=scene)
    parts = split_scenes(tmp_path, layout, find_scenes(tmp_path, layout))
    assert parts == {"train": ["a", "b"], "val": [], "test": ["a", "b"]}


# -- values and files ------------------------------------------------------------------------


def test_log_intensity_of_every_scaling() -> None:
    power = np.array([0.01, 0.2, 1.0, 3.0])
    expected = np.log(power)
    np.testing.assert_allclose(to_log_intensity(power, "intensity"), expected)
    np.testing.assert_allclose(to_log_intensity(10 * np.log10(power), "db"), expected)
    counts = np.array([0, 1, 16, 255], np.uint8)
    found = to_log_intensity(counts, "amplitude8")
    np.testing.assert_allclose(found, [2 * math.log(0.5), 0, math.log(256), 2 * math.log(255)])
    assert found.dtype == np.float64  # uint8 would otherwise become float16
    tensor = to_log_intensity(torch.tensor([0.0, 16.0]), "amplitude8")
    torch.testing.assert_close(tensor, torch.tensor([2 * math.log(0.5), math.log(256)]))
    with pytest.raises(ValueError, match="stretched8"):
        to_log_intensity(power, "stretched8")


def test_a_class_map_keeps_crs_colours_names_and_nodata(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [3, 3, 0]], np.uint8)
    path = tmp_path / "maps" / "a.tif"
    write_raster(
        path,
        ids,
        crs=WGS84,
        transform=DEGREES,
        nodata=255,
        descriptions=["cluster"],
        colors={0: (0, 128, 0), 1: (255, 0, 0), 3: (0, 0, 255)},
        class_names={0: "farmland", 1: "city & <town>", 3: "water"},
    )
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(1), ids)
        assert (source.crs, source.nodata, source.descriptions) == (WGS84, 255, ("cluster",))
        assert source.transform.almost_equals(DEGREES)
        assert source.colorinterp[0].name == "palette"
        assert source.colormap(1)[3] == (0, 0, 255, 255)
        assert source.profile["compress"] == "deflate" and source.profile["tiled"]
    names = ElementTree.parse(f"{path}.aux.xml").findall(".//PAMRasterBand[@band='1']//Category")
    assert [n.text or "" for n in names] == ["farmland", "city & <town>", "", "water"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.tif", "a.tif.aux.xml"]
    write_raster(path, ids, crs=None, transform=Affine.identity())
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"]  # no names of the older map


def test_bands_of_floats_keep_their_names(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 20, 30)).astype(np.float32)
    path = tmp_path / "p.tif"
    write_raster(path, values, crs=UTM, transform=METRES, descriptions=["low", "high"])
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(), values)
        assert source.descriptions == ("low", "high") and source.dtypes[0] == "float32"


def test_a_fourth_band_is_no_transparency(tmp_path: Path) -> None:
    path = tmp_path / "four.tif"
    write_raster(path, np.zeros((4, 8, 8), np.uint8), crs=UTM, transform=METRES)
    with rasterio.open(path) as source:
        assert "alpha" not in [meaning.name for meaning in source.colorinterp]
        assert (source.read_masks() == 255).all()


def test_a_write_that_fails_leaves_the_old_map(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_raster(path, np.ones((4, 4), np.uint8), crs=None, transform=Affine.identity())
    before = path.read_bytes()
    with pytest.raises(Exception, match="One description for each band"):
        write_raster(
            path,
            np.zeros((4, 4), np.uint8),
            crs=None,
            transform=Affine.identity(),
            descriptions=["one", "too many"],
        )
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.tif"]


# -- real data -------------------------------------------------------------------------------

REAL = Path(os.environ.get("UMSF_REAL_DATA") or "absent")
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="UMSF_REAL_DATA names no folder of real imagery"
)


@needs_real
@pytest.mark.parametrize(
    ("name", "folder", "count"), [("terramesh", "terramesh", 5), ("pairs", "sentinel_pairs", 31)]
)
def test_real_scenes_pass(name: str, folder: str, count: int) -> None:
    scenes = find_scenes(REAL / folder, load_layout(name))
    assert len(scenes) == count
    for scene in scenes:
        scene.check()
        parts = scene.read()
        assert parts["valid"].mean() > 0.99
        assert (scene.label is None) == (name == "pairs")


@needs_real
def test_real_terramesh_codes_look_like_their_classes() -> None:
    """Forest greener than bare ground, water darker in SWIR than both: the codes mean this."""
    layout = load_layout("terramesh")
    scene = next(s for s in find_scenes(REAL / "terramesh", layout) if s.name == "282D_485L_3_3")
    parts = scene.read()
    x = dict(zip(layout.optical.bands, parts["optical"].astype(float), strict=True))
    ndvi = (x["nir"] - x["red"]) / (x["nir"] + x["red"])
    water, trees, bare = (parts["label"] == k for k in (0, 1, 5))
    assert ndvi[trees].mean() > 0.6 > 0.2 > ndvi[bare].mean()
    assert x["swir16"][water].mean() < x["swir16"][bare].mean() / 2
    vv = parts["sar"][layout.sar.bands.index("vv")] if layout.sar else np.empty(0)
    assert vv[trees].mean() > vv[water].mean() + 5


@needs_real
def test_real_grids_that_differ_are_refused_with_both_sides(tmp_path: Path) -> None:
    text = load_layout("pairs").source.read_text()
    for old, new in (
        ("bands: [red, green, blue]", "bands: [red]"),
        ("rgb: [red, green, blue]", "rgb: [red, red, red]"),
        ("stretched8", "reflectance"),
        ("amplitude8", "db"),
    ):
        text = text.replace(old, new)
    (tmp_path / "own.yaml").write_text(text)
    for role, file in (("optical", "s2_B4.tif"), ("sar", "s1_VH.tif")):
        (tmp_path / role).mkdir()
        shutil.copy(REAL / "ssl4eo_grid_mismatch" / file, tmp_path / role / "a.tif")
    (scene,) = find_scenes(tmp_path, load_layout(str(tmp_path / "own.yaml")))
    said = refusal(scene)
    assert re.search(r"up to 4\.\d\d px apart", said), said
    assert "origin (73.2925443, 30.47557326)" in said and "origin (73.2921397" in said
    assert "optical/a.tif" in said and "sar/a.tif" in said
