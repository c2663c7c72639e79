"""Prepared scenes follow every file that decides their pixels, as GDAL finds them."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from umsf_lib.config import DataError
from umsf_lib.data.files import deciding_files, sidecars_of
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare

from ..fakes import METRES, UTM, bands, write_fake

PAIRS = load_layout("pairs")


def write_vrt(path: Path, source: str, count: int) -> None:
    """A VRT that takes all bands of a file, named as seen from the VRT or absolutely."""
    rows = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename '
        f'relativeToVRT="{int(source[0] != "/")}">{source}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in range(1, count + 1)
    )
    place = "<SRS>EPSG:32650</SRS><GeoTransform>500000,10,0,3400000,0,-10</GeoTransform>"
    path.write_text(f'<VRTDataset rasterXSize="56" rasterYSize="48">{place}{rows}</VRTDataset>')


def write_tif(path: Path, array: np.ndarray) -> None:
    form = {"driver": "GTiff", "dtype": "uint8", "crs": UTM, "transform": METRES}
    form |= dict(zip(("count", "height", "width"), array.shape, strict=True))
    with rasterio.open(path, "w", **form) as target:
        target.write(array)


@pytest.fixture
def made(tmp_path: Path) -> Callable[[], SceneSet]:
    """Prepare one scene, whose optical file is a VRT of a VRT of a GeoTIFF elsewhere."""
    text = PAIRS.source.read_text().replace('pattern: "*.tif"', 'pattern: "*.vrt|tif"')
    (tmp_path / "own.yaml").write_text(text.replace("  nodata: 0\nsplit", "split"))
    write_fake(tmp_path / "data", "pairs", "a")
    (tmp_path / "bands").mkdir()
    (tmp_path / "data" / "optical" / "a.tif").rename(tmp_path / "bands" / "all.tif")
    write_vrt(tmp_path / "data" / "optical" / "a.vrt", "../../bands/inner.vrt", 3)
    write_vrt(tmp_path / "bands" / "inner.vrt", "all.tif", 3)
    layout = load_layout(str(tmp_path / "own.yaml"))
    return lambda: prepare(tmp_path / "data", layout, tmp_path / "prepared")


def test_a_source_of_a_vrt_in_a_vrt_changes_the_scene(tmp_path: Path, made) -> None:
    first = made()
    assert made().folder == first.folder
    other = bands(PAIRS, "optical", 5)
    write_tif(tmp_path / "bands" / "all.tif", other)
    np.testing.assert_array_equal(made().plane("optical", 0), other)
    write_vrt(tmp_path / "bands" / "inner.vrt", "other.tif", 3)
    write_tif(tmp_path / "bands" / "other.tif", other // 2 + 1)
    np.testing.assert_array_equal(made().plane("optical", 0), other // 2 + 1)


def test_a_mask_or_nodata_that_appears_later_counts(tmp_path: Path, made) -> None:
    sar, hidden = tmp_path / "data" / "sar" / "a.tif", np.zeros((48, 56), bool)
    hidden[3:9, 5] = True
    assert made().plane("valid", 0).all()
    before = sar.stat().st_mtime_ns
    copy = Path(shutil.copy(sar, tmp_path / "copy.tif"))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(copy, "r+") as file:
        file.write_mask(np.where(hidden, 0, 255).astype(np.uint8))
    Path(f"{copy}.msk").rename(f"{sar}.msk")
    np.testing.assert_array_equal(made().plane("valid", 0), ~hidden)
    Path(f"{sar}.msk").unlink()
    assert made().plane("valid", 0).all()
    band = '<PAMRasterBand band="1"><NoDataValue>77</NoDataValue></PAMRasterBand>'
    Path(f"{sar}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    np.testing.assert_array_equal(made().plane("valid", 0), bands(PAIRS, "sar")[0] != 77)
    assert sar.stat().st_mtime_ns == before  # nothing but the files beside it has changed


def test_a_mask_of_a_vrt_and_a_vrt_under_another_name_count(tmp_path: Path) -> None:
    """GDAL does not list the sources of a mask, and it knows a VRT by its content."""
    for name in ("in", "mask"):
        write_tif(tmp_path / f"{name}.tif", np.ones((1, 48, 56), np.uint8))
    path = tmp_path / "a.tif"
    write_vrt(path, "in.tif", 1)
    assert deciding_files([path]) == [path, tmp_path / "in.tif"]
    band = '<SourceFilename relativeToVRT="1">mask.tif</SourceFilename><SourceBand>1</SourceBand>'
    mask = f"<VRTRasterBand dataType='Byte'><SimpleSource>{band}</SimpleSource></VRTRasterBand>"
    text = path.read_text().replace("</VRTDataset>", f"<MaskBand>{mask}</MaskBand></VRTDataset>")
    path.write_text(text)
    assert deciding_files([path]) == [path, tmp_path / "in.tif", tmp_path / "mask.tif"]


def test_a_new_content_with_the_old_time_counts(tmp_path: Path, made) -> None:
    """As after ``cp -p`` or ``rsync -t`` of another file of the same size."""
    path, other = tmp_path / "bands" / "all.tif", bands(PAIRS, "optical", 5)
    write_tif(path, other // 2)
    before = path.stat()
    made()
    write_tif(path, other)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(made().plane("optical", 0), other)


def test_links_may_be_renamed(tmp_path: Path, made) -> None:
    """The files that they lead to are the same, but the scene has another name."""
    links = [tmp_path / "data" / name for name in ("optical/a.vrt", "sar/a.tif")]
    for link in links:
        kept = link.rename(tmp_path / "bands" / link.name)
        link.symlink_to(kept)
    write_vrt(tmp_path / "bands" / "a.vrt", "inner.vrt", 3)
    assert made().index("a") == 0
    for link in links:
        link.rename(link.with_stem("b"))
    assert made().index("b") == 0


def test_a_sidecar_that_is_a_broken_link_is_said(tmp_path: Path, made) -> None:
    for ending in (".aux.xml", ".msk"):
        link = tmp_path / "data" / "sar" / f"a.tif{ending}"
        link.symlink_to(tmp_path / "gone")
        with pytest.raises(DataError, match=f"a.tif{ending} is missing: its link is broken"):
            made()
        link.unlink()


def test_sidecars_are_those_that_gdal_reads(tmp_path: Path) -> None:
    path, near = tmp_path / "a.tif", ["a.tif.aux.xml", "a.tif.msk", "a.tfw", "a.TIFW", "a.wld"]
    near += ["a.hdr", "a.prj", "a.rpb", "A.TFW", "a.TIF.aux.xml"]
    far = ["a.png", "a.txt", "ab.tfw", "a_b.tif", "a.b.tif", "a.yaml", "b.tif.msk"]
    for name in [path.name, *near, *far, "a.tif.ovr"]:
        (tmp_path / name).touch()
    assert {p.name for p in sidecars_of([path])[path]} == {*near, "a.tif.ovr"}
    assert {p.name for p in deciding_files([path])} == {path.name, *near}


def test_sources_in_archives_count_and_others_are_said(tmp_path: Path) -> None:
    write_tif(tmp_path / "in.tif", np.ones((1, 48, 56), np.uint8))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "in.tif", "in.tif")
    path = tmp_path / "a.vrt"
    write_vrt(path, f"/vsizip/{tmp_path}/z.zip/in.tif", 1)
    assert deciding_files([path]) == [path, tmp_path / "z.zip"]
    with MemoryFile((tmp_path / "in.tif").read_bytes()) as elsewhere:
        write_vrt(path, elsewhere.name, 1)
        with pytest.warns(UserWarning, match=rf"not prepared again if {elsewhere.name} changes"):
            assert deciding_files([path]) == [path]


def test_each_folder_is_listed_once_and_no_plain_file_is_opened(tmp_path, monkeypatch) -> None:
    paths, calls, listdir = [tmp_path / f"{number}.tif" for number in range(99)], [], os.listdir
    for path in paths:
        path.touch()  # not even a raster
    monkeypatch.setattr(os, "listdir", lambda folder: calls.append(folder) or listdir(folder))
    assert deciding_files(paths) == sorted(paths) and calls == [tmp_path]
