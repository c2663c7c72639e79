"""The first layout of an unknown folder: what it finds, guesses, and marks for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rasterio import Affine

from umsf_lib.__main__ import main
from umsf_lib.config import DataError
from umsf_lib.data.check import survey
from umsf_lib.data.draft import draft_layout
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.rasters import write_raster
from umsf_lib.data.scene import find_scenes

from ..fakes import METRES, UTM, write_fake, write_set
from .test_layouts import SETS, write_data_set
from .test_scenes import REAL, needs_real


def drafted(root: Path, folder: Path) -> tuple[dict[str, Any], Layout]:
    """The draft as plain YAML and as a layout; it describes the folder without a defect."""
    path = folder / "draft.yaml"
    path.write_text(draft_layout(root), encoding="utf-8")
    layout = load_layout(str(path))
    assert survey(root, layout).defects == []
    return yaml.safe_load(path.read_text(encoding="utf-8")), layout


def write(path: Path, array: np.ndarray, **change: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, array, **{"crs": UTM, "transform": METRES} | change)


def counts(dtype: str = "uint16", bands: int = 1) -> np.ndarray:
    return np.arange(1, bands * 144 + 1, dtype=dtype).reshape(bands, 12, 12)


DB = np.linspace(-25, -3, 144, dtype=np.float32).reshape(12, 12)


@pytest.mark.parametrize("name", [*SETS, "whu-opt-sar"])
def test_known_data_sets_are_drafted_without_defects(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    known = write_set(root) if name == "whu-opt-sar" else write_data_set(root, name)
    tree, layout = drafted(root, tmp_path)
    assert layout.sar and known.sar and tree["folders"].keys() == known.folders.keys()
    assert layout.optical.scaling == known.optical.scaling
    assert layout.sar.scaling == known.sar.scaling
    assert len(layout.optical.bands) == len(known.optical.bands)
    found = {code for land in layout.classes for code in land.codes} | {*layout.label_nodata}
    assert found <= {c for land in known.classes for c in land.codes} | {*known.label_nodata}
    assert len({land.rgb for land in layout.classes}) == len(layout.classes)
    scenes = {scene.name for scene in survey(root, layout).scenes}
    assert len(scenes) == (5 if name == "whu-opt-sar" else 3)


def test_lists_and_folders_of_parts_become_the_split(tmp_path: Path) -> None:
    write_data_set(tmp_path / "lists", "pie-rgb-sar")
    tree, _ = drafted(tmp_path / "lists", tmp_path)
    assert tree["split"] == {"rule": "lists", "train": "train.txt", "test": "val.txt"}
    write_data_set(tmp_path / "folders", "whu-readme")
    assert drafted(tmp_path / "folders", tmp_path)[0]["split"] == {"rule": "folders"}
    write_set(tmp_path / "one")
    found = survey(tmp_path / "one", drafted(tmp_path / "one", tmp_path)[1])
    assert [len(names) for names in found.split.values()] == [2, 1, 2]


@pytest.mark.parametrize("scenes", [["valley"], ["hill", "valley"]])
def test_sentinel_products_become_a_pattern_per_band(tmp_path: Path, scenes: list[str]) -> None:
    root = tmp_path / "data"
    coarse = Affine(20, 0, METRES.c, 0, -20, METRES.f)
    for scene in scenes:
        inside = root / "in" / scene / f"S2A_{scene}_7.SAFE" / "GRANULE" / f"L2A_{scene}"
        for band in ("B02", "B03", "B04"):
            write(inside / "R10m" / f"T50RKU_{scene}_{band}_10m.tif", counts())
        for band in ("B04", "B11"):
            write(
                inside / "R20m" / f"T50RKU_{scene}_{band}_20m.tif",
                counts()[:, ::2, ::2],
                transform=coarse,
            )
        write(inside / "R20m" / f"T50RKU_{scene}_SCL_20m.tif", counts()[:, ::2, ::2] % 4)
        satellite = {"hill": "S1A", "valley": "S1B"}[scene]
        for polarisation in ("vv", "vh"):
            write(root / "in" / scene / f"{satellite}_x{scene}_{polarisation}.tif", DB)
    tree, layout = drafted(root, tmp_path)
    assert tree["pattern"]["optical"] == {
        "blue": "R10m/*_B02_10m.tif",
        "green": "R10m/*_B03_10m.tif",
        "red": "R10m/*_B04_10m.tif",
        "swir16": "R20m/*_B11_20m.tif",
    }
    assert [*tree["pattern"]["sar"]] == ["vv", "vh"]
    assert [scene.name for scene in survey(root, layout).scenes] == scenes
    assert draft_layout(root).count("# not used") == 2  # the coarse B04, and SCL


@pytest.mark.parametrize(
    ("product", "red", "nir"), [("LC08", "B4", "B5"), ("LE07", "B3", "B4"), ("LT05", "B3", "B4")]
)
def test_landsat_numbers_bands_by_satellite(
    tmp_path: Path, product: str, red: str, nir: str
) -> None:
    for date in ("20200101", "20200117"):
        for band in (f"SR_{red}", f"SR_{nir}", "ST_B10", "QA_PIXEL"):
            write(tmp_path / "data" / f"{product}_L2SP_123_{date}_02_T1_{band}.TIF", counts())
    tree, _ = drafted(tmp_path / "data", tmp_path)
    assert tree["pattern"] == {"optical": {"red": f"*_SR_{red}.tif", "nir": f"*_SR_{nir}.tif"}}


def test_files_without_telling_names_are_known_by_bands_and_values(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("x", "y"):
        write(root / "A" / f"{name}.tif", counts(bands=5), nodata=65535)
        write(root / "B" / f"{name}.tif", np.stack([DB, DB]))
        codes = np.array([0, 3, 9, 255], np.uint8)[np.arange(144).reshape(12, 12) % 4]
        write(root / "C" / f"{name}.tif", codes)
    tree, layout = drafted(root, tmp_path)
    assert tree["folders"] == {"optical": "A", "sar": "B", "label": "C"}
    assert tree["optical"]["scaling"] == "reflectance" and tree["sar"]["scaling"] == "db"
    assert [land.code for land in layout.classes] == [0, 3, 9] and layout.label_nodata == (255,)
    text = draft_layout(root)
    assert "nodata: 65535 as the files declare" in text
    assert "uint16, 1 to 720, median 360.5" in text  # of 1, 2, ..., 720
    assert "float32, -25 to -3, median -14" in text
    for line in text.splitlines():
        guess = any(word in line for word in ("band1", "vv", "class 3", "rule: transductive"))
        assert not guess or "# check: " in line


def test_bands_that_files_describe_keep_their_names(tmp_path: Path) -> None:
    write(tmp_path / "s2" / "a.tif", counts(bands=3), descriptions=["B8", "B4", "B3"])
    write(tmp_path / "s1" / "a.tif", np.stack([DB, DB]), descriptions=["gamma_VV", "gamma_VH"])
    tree = yaml.safe_load(draft_layout(tmp_path))
    assert tree["optical"]["bands"] == ["nir", "red", "green"]
    assert tree["sar"]["bands"] == ["gamma_VV", "gamma_VH"]
    write(tmp_path / "s2" / "a.tif", counts(bands=3), descriptions=["B8", "B4", "NDVI"])
    assert yaml.safe_load(draft_layout(tmp_path))["optical"]["bands"] == ["nir", "red", "NDVI"]


def test_only_the_layout_goes_to_stdout(tmp_path: Path, capsys) -> None:
    write_fake(tmp_path, "pairs", "1")
    assert main(["data", "layout", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == draft_layout(tmp_path) and "to check" in shown.err
    with pytest.raises(DataError, match="does not exist"):
        draft_layout(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no optical files: it holds no raster"):
        draft_layout(tmp_path / "empty")


def test_a_draft_that_does_not_work_says_why(tmp_path: Path) -> None:
    write(tmp_path / "optical" / "a.tif", counts(bands=3))
    write(tmp_path / "sar" / "b.tif", DB)
    first = draft_layout(tmp_path).splitlines()[0]
    assert "# check: it does not work yet: No optical file" in first


def test_files_that_cannot_be_read_are_said_and_hide_no_others(tmp_path: Path, capsys) -> None:
    for name in "abc":
        write(tmp_path / "data" / "optical" / f"{name}.tif", counts(bands=4))
        np.save(tmp_path / f"{name}.npy", DB.astype(np.complex64))
    (tmp_path / "data" / "optical" / "a.tif").write_bytes(b"MM")
    (tmp_path / "data" / "sar").mkdir()
    for name in "abc":
        (tmp_path / f"{name}.npy").rename(tmp_path / "data" / "sar" / f"{name}.npy")
    text = draft_layout(tmp_path / "data")
    assert yaml.safe_load(text)["folders"] == {"optical": "optical"}
    assert "# check: unreadable files: 4, such as " in text
    assert "a.tif (2 bytes) cannot be read" in text.splitlines()[0]
    for path in (tmp_path / "data" / "optical").glob("[bc].tif"):
        path.unlink()
    with pytest.raises(DataError, match="no optical files: it holds unreadable files: 4"):
        draft_layout(tmp_path / "data")
    with pytest.raises(DataError, match="is a file, not a folder"):
        draft_layout(tmp_path / "data" / "sar" / "a.npy")


@pytest.mark.parametrize(
    ("path", "array", "form", "reason"),
    [
        ("optical/c.tif", counts(bands=2), {}, "c.tif has 2 bands, but the layout names 4"),
        ("label/b.tif", DB * 0 + 1, {}, "b.tif is float32, but class codes must be"),
        ("sar/a.tif", DB, {"crs": "EPSG:32651"}, "The coordinate systems differ"),
    ],
)
def test_a_draft_says_what_its_files_lack(tmp_path: Path, path, array, form, reason) -> None:
    root = tmp_path / "data"
    for name in "abc":
        write(root / "optical" / f"{name}.tif", counts(bands=4))
        write(root / "sar" / f"{name}.tif", DB)
        write(root / "label" / f"{name}.tif", counts("uint8")[0] % 3)
    drafted(root, tmp_path)
    write(root / path, array, **form)
    first = draft_layout(root).splitlines()[0]
    assert first.startswith("# check: it does not work yet: ") and reason in first


def test_quality_layers_and_angles_are_no_sensor(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for scene in ("120038", "121038"):
        start = f"LC08_L1TP_{scene}_20240103_02_T1"
        for band in ("B3", "B4", "QA_PIXEL", "SAA", "VZA"):
            write(root / f"{start}_{band}.TIF", counts())
    tree, _ = drafted(root, tmp_path)
    assert tree["pattern"] == {"optical": {"green": "*_B3.tif", "red": "*_B4.tif"}}
    for scene in ("a", "b"):
        write(tmp_path / "planet" / f"{scene}_3B_AnalyticMS_clip.tif", counts(bands=4))
        write(tmp_path / "planet" / f"{scene}_3B_udm2_clip.tif", counts("uint8", bands=6) * 0)
        write(tmp_path / "planet" / "angles" / f"{scene}.tif", counts())  # no SAR is uint16
    tree, _ = drafted(tmp_path / "planet", tmp_path)
    assert "sar" not in tree and len(tree["optical"]["bands"]) == 4


def test_one_scene_of_bands_without_a_common_name(tmp_path: Path) -> None:
    for band in ("B2", "B3", "B4"):
        write(tmp_path / "data" / f"s2_{band}.tif", counts())
    write(tmp_path / "data" / "s1_VV.tif", DB)
    write(tmp_path / "data" / "s1_VH.tif", DB)
    tree, layout = drafted(tmp_path / "data", tmp_path)
    assert tree["pattern"]["sar"] == {"vv": "*s1_VV.tif", "vh": "*s1_VH.tif"}
    assert len(survey(tmp_path / "data", layout).scenes) == 1


@needs_real
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sentinel_pairs", 31),
        ("terramesh", 5),
        ("sen1floods11", 1),
        ("ombria", 278),
        ("hls_worldcover", 60),
    ],
)
def test_real_folders_are_drafted(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "draft.yaml").write_text(draft_layout(REAL / name), encoding="utf-8")
    layout = load_layout(str(tmp_path / "draft.yaml"))
    scenes = find_scenes(REAL / name, layout)
    assert len(scenes) == count
    scenes[0].check()
