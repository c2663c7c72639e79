"""Sets of small single-sensor tiles: NumPy arrays, folders that are labels, many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from umsf_lib.clustering.tokens import StatisticTokens, draw_tokens
from umsf_lib.config import ConfigError, DataError, load_config
from umsf_lib.data.check import guess_layout, report, survey
from umsf_lib.data.layout import ListsRule, load_layout
from umsf_lib.data.rasters import NumpyRaster, opened
from umsf_lib.data.scene import find_scenes, split_scenes
from umsf_lib.data.split import split_names
from umsf_lib.data.stage import load_data, prepare
from umsf_lib.data.windows import PixelStore
from umsf_lib.evaluation.stage import load_records
from umsf_lib.experiments.pipeline import run_everything
from umsf_lib.run import Run

from ..fakes import METRES, UTM, bands, write_fake, write_raster

# name -> bands and dtype of a tile, as its data set has them
TILES = {"naip": (4, "uint8"), "sentinel2-tiles": (13, "uint16"), "eurosat": (13, "uint16")}
EUROSAT = """AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop
Residential River SeaLake""".split()  # noqa: SIM905


def write_tiles(root: Path, name: str, count: int = 3) -> list[np.ndarray]:
    """Write ``count`` tiles, in ``train/`` or of each class of EuroSAT; returns their values."""
    layout, written = load_layout(name), []
    classes = EUROSAT if name == "eurosat" else [""]
    for number in range(count * len(classes)):
        land = classes[number // count]
        tile = f"{land}_{number % count + 1}" if land else str(number)
        written.append(bands(layout, "optical", number))
        write_fake(root, name, tile, optical=written[-1], part=land)
    return written


@pytest.mark.parametrize("name", TILES)
def test_tiles_go_through_the_same_door(tmp_path: Path, name: str) -> None:
    written = write_tiles(tmp_path / "data", name, count=1 if name == "eurosat" else 3)
    layout, why = guess_layout(tmp_path / "data")
    assert layout.name == name and f"{len(written)} of {len(written)} scenes" in why
    found = survey(tmp_path / "data", layout)
    assert found.defects == []
    text = "\n".join(report(found))
    count, dtype = TILES[name]
    assert f"Optical: {count} x {dtype}" in text and "SAR" not in text
    assert ("CRS: none, pixel coordinates" in text) == (name != "eurosat")
    scenes = find_scenes(tmp_path / "data", layout)
    assert all(scene.sar is None for scene in scenes)
    store_of = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    statistics = store_of.statistics
    assert list(statistics) == ["optical"] and len(store_of.records) == len(written)
    store = PixelStore(store_of, statistics, torch.device("cpu"))
    mean, std = (np.array(statistics["optical"][k])[:, None, None] for k in ("mean", "std"))
    for index, values in enumerate(written):
        scenes[index].check()
        read = scenes[index].read()
        np.testing.assert_array_equal(read["optical"], values)
        assert read["optical"].dtype == dtype and "sar" not in read
        np.testing.assert_array_equal(store_of.plane("optical", index), values)
        window = store.scene(index)["optical"][0].numpy()
        np.testing.assert_allclose(window, (values - mean) / std, atol=1e-4)


def test_geotiff_tiles_keep_their_place(tmp_path: Path) -> None:
    layout = load_layout("naip")
    path = tmp_path / "train" / "0.tif"
    write_raster(path, bands(layout, "optical"), crs=UTM, transform=METRES)
    (scene,) = find_scenes(tmp_path, layout)
    scene.check()
    assert scene.profile().crs == UTM
    np.save(path.with_suffix(".npy"), np.moveaxis(bands(layout, "optical"), 0, -1))
    with pytest.raises(DataError, match=r"Two files are called 0: .*0\.npy and .*0\.tif"):
        find_scenes(tmp_path, layout)


@pytest.mark.parametrize("shape", [(250, 240, 4), (4, 250, 240), (250, 240)])
def test_an_array_is_read_as_rasterio_reads_the_same_values(tmp_path: Path, shape: tuple) -> None:
    values = np.random.default_rng(0).integers(0, 9000, shape).astype(">u2")
    np.save(tmp_path / "a.npy", values)
    planes = np.moveaxis(values, -1, 0) if shape[-1] == 4 else values.reshape(-1, 250, 240)
    native = planes.astype(np.uint16)
    write_raster(tmp_path / "a.tif", native, crs=None, transform=rasterio.Affine.identity())
    window = Window(17, 30, 200, 99)
    with opened(tmp_path / "a.npy") as array, opened(tmp_path / "a.tif") as tiff:
        assert isinstance(array, NumpyRaster) and isinstance(array.array, np.memmap | np.ndarray)
        for field in ("count", "height", "width", "crs", "transform", "nodata"):
            assert getattr(array, field) == getattr(tiff, field)
        assert array.dtypes[0] == tiff.dtypes[0]
        for read in (array.read(), array.read(window=window), array.read(1, window=window)):
            assert read.dtype == np.uint16 and read.dtype.isnative and read.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(array.read(), tiff.read())
        np.testing.assert_array_equal(array.read(window=window), tiff.read(window=window))
        np.testing.assert_array_equal(array.read(1, window=window), tiff.read(1, window=window))


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    layout = write_fake(tmp_path, "naip", "0")
    (scene,) = find_scenes(tmp_path, layout)
    whole = scene.optical.read_bytes()
    cuts = {"empty": 0, "in the magic": 4, "in the header": 60, "30 %": len(whole) * 3 // 10}
    for content in [whole[:end] for end in (*cuts.values(), len(whole) - 1)] + [b"x" + whole]:
        scene.optical.write_bytes(content)
        (said,) = scene.defects()
        assert f"{scene.optical} ({len(content)} bytes) cannot be read" in said
        assert said.endswith("download it again.") and "\n" not in said
        with pytest.raises(DataError, match="cannot be read"):
            prepare(tmp_path, layout, tmp_path / "prepared")
    scene.optical.unlink()
    assert "(missing)" in scene.defects()[0]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((9, 8, 3), np.uint8), r"has 3 bands, but the layout names 4 \(red, green, blue"),
        (np.zeros((9, 8, 4), np.int64), r"is int64, but scaling 'stretched8' .* means uint8"),
        (np.zeros((4, 8, 4), np.uint8), r"shape \(4, 8, 4\) does not tell bands from rows"),
        (np.zeros(36, np.uint8), r"shape \(36,\) does not tell"),
        (np.zeros((0, 8, 4), np.uint8), "0.npy"),
        (np.array({"bands_10": 1}), r"holds Python objects.*could run any code; save a plain"),
    ],
)
def test_arrays_that_are_no_tiles_are_refused(tmp_path: Path, array: Any, says: str) -> None:
    layout = load_layout("naip")
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "0.npy", array, allow_pickle=True)
    (scene,) = find_scenes(tmp_path, layout)
    with pytest.raises(DataError, match=says):
        scene.check()


def test_nan_in_an_array_is_nodata(tmp_path: Path) -> None:
    layout = load_layout("sentinel2-tiles")
    values = bands(layout, "optical").astype(np.float32)
    values[3, 5, 7], values[0, 9, 9] = np.nan, np.inf
    write_fake(tmp_path, "sentinel2-tiles", "0", optical=values)
    (scene,) = find_scenes(tmp_path, layout)
    scene.check()
    assert np.argwhere(~scene.read()["valid"]).tolist() == [[5, 7], [9, 9]]
    write_fake(tmp_path, "sentinel2-tiles", "0", optical=np.full_like(values, np.nan))
    with pytest.raises(DataError, match=r"Scene 0 has 0 valid pixels of 2688.*train.0\.npy; rem"):
        prepare(tmp_path, layout, tmp_path / "prepared")


# -- folders that are labels ----------------------------------------------------------------


def test_the_folder_of_a_tile_is_the_class_of_its_pixels(tmp_path: Path) -> None:
    write_tiles(tmp_path / "data", "eurosat", count=1)
    layout = load_layout("eurosat")
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert len(scenes.records) == 10
    for index, record in enumerate(scenes.records):
        assert set(scenes.plane("label", index).flat) == {EUROSAT.index(record.name.split("_")[0])}
    text = "\n".join(report(survey(tmp_path / "data", layout)))
    assert "Labels: 10 scenes" in text and "7 residential (folder Residential): 10.0%" in text


@pytest.mark.parametrize(
    "above", ["EuroSAT_MS", "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"]
)
def test_classes_are_found_where_the_archives_unpack_them(tmp_path: Path, above: str) -> None:
    write_tiles(tmp_path / above, "eurosat", count=1)
    layout, _ = guess_layout(tmp_path)
    assert len(find_scenes(tmp_path, layout)) == 10


def test_a_folder_that_is_no_class_is_named(tmp_path: Path) -> None:
    write_tiles(tmp_path, "eurosat", count=1)
    layout = write_fake(tmp_path, "eurosat", "Glacier_1", part="Glacier")
    (tmp_path / "notes").mkdir()  # without tiles it is nobody's business
    with pytest.raises(DataError, match=r"Glacier holds 1 files, but it is not one .*SeaLake of"):
        find_scenes(tmp_path, layout)
    with pytest.raises(DataError, match=r"no optical folder .*called AnnualCrop, .*it holds train"):
        write_fake(tmp_path / "other", "naip", "0")
        find_scenes(tmp_path / "other", layout)


def test_each_class_is_split_unless_lists_say_otherwise(tmp_path: Path) -> None:
    write_tiles(tmp_path, "eurosat", count=3)
    layout = load_layout("eurosat")
    scenes = find_scenes(tmp_path, layout)
    parts = split_scenes(tmp_path, layout, scenes)
    for part, number in (("train", 1), ("val", 2), ("test", 3)):
        assert parts[part] == [f"{land}_{number}" for land in EUROSAT]
    for part, number in (("train", 3), ("val", 1), ("test", 2)):  # they name pictures, not TIFFs
        lines = [f"{land}_{number}.jpg" for land in EUROSAT]
        (tmp_path / f"eurosat-{part}.txt").write_text("\n".join(lines))
    parts = split_scenes(tmp_path, layout, scenes)
    for part, number in (("train", 3), ("val", 1), ("test", 2)):
        assert parts[part] == [f"{land}_{number}" for land in EUROSAT]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("folder: Forest", "folder: River", "are not distinct"),
        ("folder: Forest", "code: 2", "classes must all have a folder"),
        (", folder: Forest", "", "it needs either a code or a folder"),
        ("pattern: ", "  label: lbl\npattern: ", "a folder, without a label folder"),
    ],
)
def test_a_broken_class_table_says_what_is_wrong(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = load_layout("eurosat").source.read_text()
    assert old in text
    (tmp_path / "own.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=r"own\.yaml.*" + says):
        load_layout(str(tmp_path / "own.yaml"))


# -- the rest of the chain -------------------------------------------------------------------


def test_a_set_without_sar_runs_to_maps_and_scores(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(9):
        land = ("Forest", "Residential", "SeaLake")[number % 3]
        pixels = bands(load_layout("eurosat"), "optical", number) // 4 * (1 + number % 3)
        write_fake(data, "eurosat", f"{land}_{number}", optical=pixels, part=land)
    config = load_config(
        "tiny", data=str(data), layout="eurosat", overrides="model.sensors=optical"
    )
    run = Run.open(config)
    run_everything(run, maps=True)
    records = load_records([run.folder])
    assert {"umsf", "kmeans-pixels"} <= set(records.method) and records.value.notna().any()
    maps = sorted(p.name for p in run.path("maps").glob("*.prediction.tif"))
    assert [name.split(".")[0] for name in maps] == ["Forest_6", "Residential_7", "SeaLake_8"]
    with opened(run.path("maps", maps[0])) as source:
        assert source.crs == UTM and source.shape == (48, 56)
    assert list(run.path("checkpoints").glob("step-*")) != []


@pytest.mark.parametrize("sensors", ["both", "sar"])
def test_asking_for_sar_that_is_not_there_is_refused(
    project: Path, tmp_path: Path, sensors: str
) -> None:
    write_tiles(tmp_path / "data", "naip")
    overrides = f"model.sensors={sensors}"
    config = load_config("tiny", data=str(tmp_path / "data"), layout="naip", overrides=overrides)
    with pytest.raises(ConfigError, match=rf"'naip' has no SAR, but .* is '{sensors}'; add the"):
        load_data(Run.open(config))


def test_more_tiles_than_tokens_give_as_many_tokens(tmp_path: Path) -> None:
    write_tiles(tmp_path / "data", "naip", count=12)
    scenes = prepare(tmp_path / "data", load_layout("naip"), tmp_path / "prepared")
    store = PixelStore(scenes, scenes.statistics, torch.device("cpu"))
    tokens = StatisticTokens(store, range(12), (1.0,), 4)
    assert draw_tokens(tokens, store, range(12), 4, 5, seed=0).shape == (5, 2 * 6)


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_splitting_many_tiles_compares_each_name_a_few_times(tmp_path: Path) -> None:
    names = [Counted(f"tile_{n:06d}") for n in range(2000)]
    (tmp_path / "train.txt").write_text("\n".join(names[:1500]))
    (tmp_path / "test.txt").write_text("\n".join(names[1500:]))
    rule = ListsRule("lists", train=("train.txt",), test=("test.txt",))
    Counted.compared = 0
    parts = split_names(tmp_path, rule, names)
    assert [len(parts[p]) for p in ("train", "val", "test")] == [1200, 300, 500]
    assert Counted.compared < 10 * len(names)


def test_a_layout_is_guessed_from_some_of_many_tiles(tmp_path: Path, monkeypatch: Any) -> None:
    write_tiles(tmp_path, "naip", count=9)
    monkeypatch.setattr("umsf_lib.data.check.LOOKED_AT", 4)
    layout, why = guess_layout(tmp_path)
    assert layout.name == "naip" and why.startswith("3 of 3 scenes looked at have its bands")


def test_the_documented_conversion_of_sentinel_2_tiles_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SauMoCo's form: per resolution, bands 02 03 04 08, 05 06 07 8A 11 12, 01 09 10."""
    readme = Path(__file__).parents[2] / "data" / "README.md"
    code = readme.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    numbers = {10: (2, 3, 4, 8), 20: (5, 6, 7, 8.5, 11, 12), 60: (1, 9, 10)}  # 8.5: B8A
    rng = np.random.default_rng(0)
    tile = {}
    for m, these in numbers.items():
        noise = rng.integers(0, 50, (2640 // m, 2640 // m, len(these)))
        tile[f"bands_{m}"] = (noise + 100 * np.array(these)).astype(np.uint16)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "downloaded").mkdir()
    np.save("downloaded/7.npy", np.array(tile), allow_pickle=True)
    exec(code, {})
    layout = load_layout("sentinel2-tiles")
    (scene,) = find_scenes(tmp_path / "sentinel2", layout)
    scene.check()
    optical = scene.read()["optical"]
    assert optical.shape == (13, 264, 264)
    assert [int(band.min()) // 50 / 2 for band in optical] == sorted(sum(numbers.values(), ()))
    np.testing.assert_array_equal(optical[1], tile["bands_10"][:, :, 0])
    np.testing.assert_array_equal(optical[0, 3:264:6, 5:264:6], tile["bands_60"][:, :, 0])
    np.testing.assert_array_equal(optical[8, 1::2, ::2], tile["bands_20"][:, :, 3])
