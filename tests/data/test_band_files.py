"""Bands in files of their own, and VRTs: read as the arrays that were written, bands stacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from rasterio import Affine

from umsf_lib.config import ConfigError, DataError
from umsf_lib.data.align import align
from umsf_lib.data.check import report, survey
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.pairing import pair_files
from umsf_lib.data.rasters import grid_of, opened, write_raster
from umsf_lib.data.scene import find_scenes
from umsf_lib.data.stack import BandFiles
from umsf_lib.data.stage import prepare

from ..fakes import METRES, UTM

HEIGHT, WIDTH = 12, 16
BANDS = {"blue": "B02", "red": "B04", "swir": "B11"}


def grid(step_m: float, cols: float = 0, rows: float = 0) -> Affine:
    """Pixels of this size that start this many 10 m columns and rows from the corner of METRES."""
    return Affine(step_m, 0, METRES.c + 10 * cols, 0, -step_m, METRES.f - 10 * rows)


COARSE = grid(20)
RNG = np.random.default_rng(3)
BLUE, RED = RNG.integers(200, 3000, (2, HEIGHT, WIDTH), dtype=np.uint16)
SWIR = RNG.integers(200, 3000, (HEIGHT // 2, WIDTH // 2), dtype=np.uint16)
VV, VH = RNG.normal(-12, 3, (2, HEIGHT, WIDTH)).astype(np.float32)


def write(path: Path, array: np.ndarray, transform: Affine = METRES, **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": 1, "height": array.shape[0], "width": array.shape[1]}
    form = {"driver": "GTiff", "dtype": array.dtype, "nodata": tags.get("nodata")} | shape
    with rasterio.open(path, "w", crs=UTM, transform=transform, **form) as target:
        target.write(array, 1)
        target.scales, target.offsets = [tags.get("scale", 1)], [tags.get("offset", 0)]
        target.descriptions = [tags.get("description", "")]
        if "mask" in tags:
            target.write_mask(tags["mask"])
    return path


def own_layout(folder: Path, **change: Any) -> Layout:
    """Optical bands of 10 and 20 m, SAR in dB, a folder per scene; ``change`` replaces entries."""
    tree = {
        "name": "own",
        "folders": {"optical": "scenes/*", "sar": "scenes/*"},
        "pattern": {
            "optical": {"blue": "*_B02_10m.tif", "red": "*_B04_10m.tif", "swir": "*_B11_20m.tif"},
            "sar": {"vv": "*_vv.tif", "vh": "*_vh.tif"},
        },
        "optical": {"bands": [*BANDS], "rgb": ["red", "red", "blue"], "scaling": "reflectance"},
        "sar": {"bands": ["vv", "vh"], "scaling": "db"},
        "split": {"rule": "unlabelled"},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree | change), encoding="utf-8")
    return load_layout(str(path))


def write_scene(folder: Path, date: str = "T50RKU_20200101", sar: str = "S1A_20200103") -> None:
    write(folder / f"{date}_B02_10m.tif", BLUE, nodata=0)
    write(folder / f"{date}_B04_10m.tif", RED, nodata=0)
    write(folder / f"{date}_B11_20m.tif", SWIR, COARSE, nodata=0)
    write(folder / f"{sar}_vv.tif", VV)
    write(folder / f"{sar}_vh.tif", VH)


def stack(*paths: Path) -> BandFiles:
    return BandFiles(paths)


def test_bands_are_stacked_in_the_order_of_the_layout(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "valley")
    layout = own_layout(tmp_path)
    (scene,) = find_scenes(tmp_path, layout)
    assert scene.name == "valley"  # the dates differ, so the folder is the scene
    assert scene.defects() == []
    parts = scene.read()
    np.testing.assert_array_equal(parts["optical"], [BLUE, RED, np.kron(SWIR, np.ones((2, 2)))])
    np.testing.assert_array_equal(parts["sar"], [VV, VH])
    window = rasterio.windows.Window(3, 5, 6, 4)
    part = scene.read(window)["optical"]
    np.testing.assert_array_equal(part, parts["optical"][:, 5:9, 3:9])


def test_scenes_may_lie_side_by_side(tmp_path: Path) -> None:
    for name in ("a_1", "b_2"):
        write_scene(tmp_path / "all", name, name)
    layout = own_layout(tmp_path, folders={"optical": "all", "sar": "all"})
    assert [scene.name for scene in find_scenes(tmp_path, layout)] == ["a_1", "b_2"]


def test_names_may_be_those_of_bands_alone_and_bands_in_folders_below(tmp_path: Path) -> None:
    for scene in ("hill", "lake"):
        write(tmp_path / scene / "S2" / "R10m" / "B02.tif", BLUE)
        write(tmp_path / scene / "S2" / "R20m" / "B11.tif", SWIR, COARSE)
    layout = own_layout(
        tmp_path,
        folders={"optical": "*/S2"},
        pattern={"optical": {"blue": "R10m/B02.tif", "swir": "R20m/B11.tif"}},
        optical={"bands": ["blue", "swir"], "rgb": ["blue"] * 3, "scaling": "reflectance"},
        sar=None,
    )
    scenes = find_scenes(tmp_path, layout)
    assert [scene.name for scene in scenes] == ["hill", "lake"]
    np.testing.assert_array_equal(scenes[1].read()["optical"][0], BLUE)


def test_products_may_lie_deeper_than_their_partner(tmp_path: Path) -> None:
    inside = "scenes/valley/S2A_1.SAFE/GRANULE/L2A_7/IMG_DATA"
    write(tmp_path / inside / "R10m" / "T50_B02_10m.tif", BLUE)
    write(tmp_path / "scenes" / "valley" / "S1A_9_vv.tif", VV)
    layout = own_layout(
        tmp_path,
        folders={"optical": "scenes/*/*.SAFE/GRANULE/*/IMG_DATA/R10m", "sar": "scenes/*"},
        pattern={"optical": "*_B02_10m.tif", "sar": "*_vv.tif"},
        optical={"bands": "blue", "rgb": ["blue"] * 3, "scaling": "reflectance"},
        sar={"bands": "vv", "scaling": "db"},
    )
    (scene,) = find_scenes(tmp_path, layout)
    assert scene.name == "valley" and scene.sar == tmp_path / "scenes/valley/S1A_9_vv.tif"


def test_what_the_files_declare_survives(tmp_path: Path) -> None:
    mask = np.full(SWIR.shape, 255, np.uint8)
    mask[1, 2] = 0
    blue = write(tmp_path / "blue & <b>.tif", BLUE, nodata=7, scale=1e-4, offset=-0.1)
    swir = write(tmp_path / "swir #é.tif", SWIR, COARSE, mask=mask, description="B11")
    with opened(stack(blue, swir)) as source:
        assert grid_of(source).transform == METRES and source.crs == UTM
        assert source.nodatavals == (7, None)
        assert (source.scales, source.offsets) == ((1e-4, 1), (-0.1, 0))
        assert source.descriptions == ("", "B11") or source.descriptions == (None, "B11")
        np.testing.assert_array_equal(source.read_masks(2), np.kron(mask, np.ones((2, 2))))
        assert {Path(file) for file in source.files} >= {blue, swir}


def test_a_coarse_band_may_reach_less_than_a_pixel_beyond(tmp_path: Path) -> None:
    """15 columns and 11 rows of 10 m, cut at an odd position, lie in 8 x 6 pixels of 20 m."""
    fine = write(tmp_path / "fine.tif", BLUE[1:, 1:], grid(10, 1, 1))
    coarse = write(tmp_path / "coarse.tif", SWIR, COARSE)
    with opened(stack(fine, coarse)) as source:
        np.testing.assert_array_equal(source.read(2), np.kron(SWIR, np.ones((2, 2)))[1:, 1:])


@pytest.mark.parametrize(
    ("array", "transform", "says"),
    [
        (SWIR, grid(15), "cover the same ground"),  # 15 m
        (SWIR, grid(20, 0.5), "cover the same ground"),  # half a fine pixel
        (SWIR, grid(20, 2), "cover the same ground"),  # does not cover
        (SWIR.astype(np.float32), COARSE, "dtype float32, but .*fine.tif has uint16"),
    ],
)
def test_bands_that_do_not_go_together_are_refused(
    tmp_path: Path, array: np.ndarray, transform: Affine, says: str
) -> None:
    files = stack(
        write(tmp_path / "fine.tif", BLUE), write(tmp_path / "coarse.tif", array, transform)
    )
    with pytest.raises(DataError, match=r"coarse\.tif .*" + says), opened(files):
        pass


def test_a_file_of_several_bands_is_no_band(tmp_path: Path) -> None:
    blue = write(tmp_path / "blue.tif", BLUE)
    with rasterio.open(blue) as source:
        form = source.profile | {"count": 3}
    with rasterio.open(tmp_path / "three.tif", "w", **form) as target:
        target.write(np.stack([BLUE] * 3))
    with (
        pytest.raises(DataError, match=r"three\.tif has 3 bands"),
        opened(stack(blue, tmp_path / "three.tif")),
    ):
        pass


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    for scene in ("hill", "lake"):
        write_scene(tmp_path / "scenes" / scene)
    (tmp_path / "scenes" / "lake" / "T50RKU_20200101_B04_10m.tif").unlink()
    pairing = pair_files(tmp_path, own_layout(tmp_path))
    assert [*pairing.scenes] == ["hill"]
    (defect,) = pairing.defects
    assert "lake" in defect and "has no file of band red ('*_B04_10m.tif') beside it" in defect
    (tmp_path / "scenes" / "hill" / "S1A_20200103_vh.tif").unlink()
    found = survey(tmp_path, own_layout(tmp_path))  # no scene is whole
    assert found.scenes == () and len(found.defects) >= 2
    assert "of band vh ('*_vh.tif')" in "\n".join(report(found))


def test_two_files_of_one_band_are_named(tmp_path: Path) -> None:
    for scene in ("hill", "lake"):
        write_scene(tmp_path / "scenes" / scene)
    write(tmp_path / "scenes" / "lake" / "T50RKU_20200106_B02_10m.tif", BLUE)
    (defect,) = pair_files(tmp_path, own_layout(tmp_path)).defects
    assert "Two files are called lake" in defect
    assert "20200101_B02" in defect and "20200106_B02" in defect


def test_folders_pair_only_where_they_hold_one_scene(tmp_path: Path) -> None:
    for date in ("20200101", "20200106"):
        write_scene(tmp_path / "scenes" / "valley", date, f"x{date}")
    with pytest.raises(DataError, match="has a SAR file of the same name"):
        pair_files(tmp_path, own_layout(tmp_path))


@pytest.mark.parametrize(
    ("name", "array", "transform"),
    [("T50RKU_20200101_B11_20m.tif", SWIR, COARSE), ("S1A_20200103_vh.tif", VH, METRES)],
)
def test_damage_is_said_of_the_file_of_the_band(
    tmp_path: Path, name: str, array: np.ndarray, transform: Affine
) -> None:
    write_scene(tmp_path / "scenes" / "valley")
    damaged = tmp_path / "scenes" / "valley" / name
    write_raster(damaged, array, crs=UTM, transform=transform)  # its pixels come last
    (scene,) = find_scenes(tmp_path, own_layout(tmp_path))
    assert scene.defects() == []
    for content in (damaged.read_bytes()[:-60], b"no raster"):
        damaged.write_bytes(content)
        (said,) = scene.defects()
        assert f"{damaged} ({len(content)} bytes) cannot be read" in said


def test_prepared_scenes_follow_each_band_file(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "valley")
    layout = own_layout(tmp_path)
    first = prepare(tmp_path, layout, tmp_path / "prepared")
    np.testing.assert_array_equal(first.plane("optical", 0)[1], RED)
    write(tmp_path / "scenes" / "valley" / "T50RKU_20200101_B04_10m.tif", RED + 1, nodata=0)
    second = prepare(tmp_path, layout, tmp_path / "prepared")
    np.testing.assert_array_equal(second.plane("optical", 0)[1], RED + 1)


def test_sar_bands_are_aligned_one_by_one(tmp_path: Path) -> None:
    root = tmp_path / "data"
    folder = root / "scenes" / "valley"
    write_scene(folder)
    write(folder / "S1A_20200103_vh.tif", VH[::2, ::2], grid(20, 1))
    layout = own_layout(tmp_path)
    vh = tmp_path / "out" / "scenes" / "valley" / "S1A_20200103_vh.tif"
    assert [*align(root, layout, tmp_path / "out", "nearest")] == [vh]
    (scene,) = find_scenes(tmp_path / "out", layout)
    assert scene.defects() == []
    moved = np.full((HEIGHT, WIDTH), np.nan)
    moved[:, 1:] = np.kron(VH[::2, ::2], np.ones((2, 2)))[:, :-1]
    np.testing.assert_array_equal(scene.read()["sar"][1], moved.astype(np.float32))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ({"blue": "*_B02.tif", "red": "*_B04.tif"}, "bands .*blue.*red.*not for all of .*swir"),
        ({"blue": "*.npy", "red": "*_B04.tif", "swir": "*_B11.tif"}, "cannot be .npy"),
    ],
)
def test_a_wrong_pattern_of_bands_is_refused(
    tmp_path: Path, pattern: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        own_layout(tmp_path, pattern={"optical": pattern, "sar": "*.tif"})


VRT = """<VRTDataset rasterXSize="16" rasterYSize="12">
  <SRS>EPSG:32650</SRS><GeoTransform>500000, 10, 0, 3400000, 0, -10</GeoTransform>
  {}
</VRTDataset>"""
VRT_BAND = """<VRTRasterBand dataType="Float32" band="{}"><SimpleSource>
  <SourceFilename relativeToVRT="1">../raw/{}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand>"""


def test_vrts_are_read_and_a_copy_still_finds_their_files(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root / "raw" / "a_vv.tif", VV)
    write(root / "raw" / "a_vh.tif", VH)
    write(root / "s2" / "a.tif", BLUE)
    (root / "s1").mkdir()
    bands = VRT_BAND.format(1, "a_vv.tif") + VRT_BAND.format(2, "a_vh.tif")
    (root / "s1" / "a.vrt").write_text(VRT.format(bands), encoding="utf-8")
    layout = own_layout(
        tmp_path,
        folders={"optical": "s2", "sar": "s1"},
        pattern={"optical": "*.tif", "sar": "*.vrt"},
        optical={"bands": "blue", "rgb": ["blue"] * 3, "scaling": "reflectance"},
    )
    assert not align(root, layout, tmp_path / "deep" / "out")
    for folder in (root, tmp_path / "deep" / "out"):
        (scene,) = find_scenes(folder, layout)
        assert scene.defects() == []
        np.testing.assert_array_equal(scene.read()["sar"], [VV, VH])
