"""Whatever rasterio, GDAL or PROJ raise becomes one sentence with the right advice."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.errors import CRSError, RasterioIOError

from umsf_lib.__main__ import main
from umsf_lib.config import DataError, WriteError
from umsf_lib.data import faults
from umsf_lib.data.rasters import opened, write_raster
from umsf_lib.data.stage import prepare

from ..fakes import METRES, UTM, bands, write_fake

BYTES = np.arange(48, dtype=np.uint8).reshape(1, 6, 8)


def write(path: Path, array: np.ndarray = BYTES, dtype: str = "") -> Path:
    form = dict(zip(("count", "height", "width"), array.shape, strict=True))
    form |= {"driver": "GTiff", "dtype": dtype or array.dtype.name, "crs": UTM, "transform": METRES}
    with rasterio.open(path, "w", **form) as target:
        target.write(array)
    return path


def write_vrt(path: Path, *sources: tuple[str, str], place: str = "0,10,0,0,0,-10") -> Path:
    """A VRT of 8 x 6 px with one band per (type, file beside it)."""
    rows = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for band, (kind, file) in enumerate(sources, start=1)
    )
    head = f"<SRS>EPSG:32650</SRS><GeoTransform>{place}</GeoTransform>"
    path.write_text(f'<VRTDataset rasterXSize="8" rasterYSize="6">{head}{rows}</VRTDataset>')
    return path


def refusal(path: Path) -> str:
    """What is said when a file is read: one sentence."""
    with pytest.raises(DataError) as caught, opened(path) as source:
        source.read()
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and said.count(path.name) >= 1
    return said


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64", "complex128"])
def test_complex_sar_is_called_complex(tmp_path: Path, dtype: str) -> None:
    kind = "complex128" if dtype == "complex128" else "complex64"
    said = refusal(write(tmp_path / "a.tif", BYTES.astype(kind), dtype))
    assert f"is complex ({dtype})" in said and "intensity first" in said
    assert "decibel" not in said and "again" not in said
    np.save(tmp_path / "a.npy", BYTES[0].astype(kind))
    assert f"is complex ({kind})" in refusal(tmp_path / "a.npy")


def test_bands_of_several_types_are_listed_unless_one_is_transparency(tmp_path: Path) -> None:
    write(tmp_path / "byte.tif")
    write(tmp_path / "float.tif", BYTES / np.float32(4))
    path = write_vrt(tmp_path / "a.vrt", ("Byte", "byte.tif"), ("Float32", "float.tif"))
    assert "several types (float32, uint8)" in refusal(path)
    alpha = '<VRTRasterBand dataType="Float32" band="2"><ColorInterp>Alpha</ColorInterp>'
    text = path.read_text().replace('<VRTRasterBand dataType="Float32" band="2">', alpha)
    path.write_text(text)
    with opened(path) as source:
        np.testing.assert_array_equal(source.read(1), BYTES[0])


@pytest.mark.parametrize(
    "place",
    ["0,0,0,0,0,0", "0,10,0,0,0,0", "0,0,0,0,0,-10", "0,10,10,0,10,10", "nan,10,0,0,0,-10"]
    + ["0,10,0,inf,0,-10", "0,10,0,0,nan,-10", "0,1e200,0,0,0,-1e200"],
)
def test_places_that_are_none_are_defects(tmp_path: Path, place: str) -> None:
    write(tmp_path / "byte.tif")
    said = refusal(write_vrt(tmp_path / "a.vrt", ("Byte", "byte.tif"), place=place))
    assert "no usable place: its transform is (" in said and "again" not in said


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3)])
def test_arrays_without_pixels_are_empty(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert "is empty (" in refusal(tmp_path / "a.npy")


def test_a_missing_source_of_a_vrt_is_named(tmp_path: Path) -> None:
    said = refusal(write_vrt(tmp_path / "a.vrt", ("Byte", "gone.tif")))
    assert "needs another file that is missing" in said and "gone.tif" in said


def test_a_folder_in_place_of_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    assert "is a folder, but a file is needed" in refusal(tmp_path / "a.tif")


def test_an_unknown_compression_is_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    tag = struct.pack("<HHI", 259, 3, 1)  # Compression, one SHORT
    content = path.read_bytes()
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag + b"\1\0", tag + struct.pack("<H", 59999)))
    said = refusal(path)
    assert "cannot handle" in said and "convert it" in said and "again" not in said


def test_more_pixels_than_memory(tmp_path: Path) -> None:
    path = write_vrt(tmp_path / "a.vrt", ("Byte", "byte.tif"))
    huge = 'rasterXSize="2000000000" rasterYSize="2000000000"'
    path.write_text(path.read_text().replace('rasterXSize="8" rasterYSize="6"', huge))
    said = refusal(path)
    assert "more memory than there is" in said and "smaller scenes" in said


def test_a_name_that_is_no_unicode_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.tif")
    try:
        path.write_bytes(write(tmp_path / "a.tif").read_bytes())
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(DataError, match=r"caf\\udce9\.tif has a name .* no UTF-8 .*rename") as said:
        opened(path).__enter__()
    str(said.value).encode()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CRSError("The EPSG code is unknown"), "coordinate system is unknown .* -a_srs"),
        (PermissionError(errno.EACCES, "Permission denied"), "ask for the right to read it"),
        (ValueError("band 9 is odd"), r"cannot handle \(band 9 is odd\); convert it"),
        (TypeError("data type 'x' not understood"), "cannot handle"),
        (RasterioIOError("CURL error: Could not resolve host: x"), "fetched .* the network"),
        (CRSError("x/proj.db contains LAYOUT.VERSION = 0"), "unset .*GDAL_DATA=/here"),
    ],
)
def test_each_kind_of_error_has_its_own_advice(tmp_path, monkeypatch, error, says) -> None:
    monkeypatch.setenv("GDAL_DATA", "/here")
    with pytest.raises(DataError, match=rf"a\.tif.*{says}"), faults.explained(tmp_path / "a.tif"):
        raise error


def test_what_is_said_already_is_not_said_twice(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"^full\.$"), faults.explained(tmp_path):
        raise WriteError("full.")


def test_a_check_lists_such_files_and_ends_with_2(tmp_path: Path, capsys) -> None:
    layout = write_fake(tmp_path, "pairs", "one")
    write_fake(tmp_path, "pairs", "two")
    write(tmp_path / "sar" / "two.tif", bands(layout, "sar").astype(np.complex64))
    assert main(["data", "check", str(tmp_path), "--layout", "pairs"]) == 2
    shown = capsys.readouterr()
    assert "Defects: 1\n  1. " in shown.out and "two.tif is complex (complex64)" in shown.out
    assert shown.err.count("\n") == 1


# -- writing ---------------------------------------------------------------------------------


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("overviews", [None, "average"])
def test_a_disk_that_fills_up_with_the_last_block_is_noticed(tmp_path, overviews) -> None:
    """GDAL closes such a file without an error."""
    noise = np.random.default_rng(0).integers(0, 255, (150, 150), dtype=np.uint8)
    path = tmp_path / "a.tif"
    place = {"crs": UTM, "transform": METRES, "overviews": overviews}
    write_raster(path, noise, **place)
    before = path.read_bytes()
    with small_disk(len(before) - 1), pytest.raises(DataError, match=r"a\.tif cannot be written"):
        write_raster(path, noise, **place)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    place = {"crs": None, "transform": Affine.identity()}
    with pytest.raises(WriteError, match=r"taken.a\.tif cannot be written .*you may write to\.$"):
        write_raster(tmp_path / "taken" / "a.tif", BYTES, **place)
    with pytest.raises(DataError, match=r"a\.tif .*cannot handle \(Unsupported data type float16"):
        write_raster(tmp_path / "a.tif", BYTES.astype(np.float16), **place)
    layout = write_fake(tmp_path / "data", "pairs")
    with pytest.raises(WriteError, match=r"taken.\w+ cannot be written"):
        prepare(tmp_path / "data", layout, tmp_path / "taken")


# -- a foreign PROJ --------------------------------------------------------------------------


def foreign_proj(folder: Path) -> Path:
    """A database of an early PROJ 6, as other software leaves behind."""
    folder.mkdir()
    with sqlite3.connect(folder / "proj.db") as database:
        database.execute("create table metadata (key text, value text)")
        rows = [("DATABASE.LAYOUT.VERSION.MAJOR", "1"), ("DATABASE.LAYOUT.VERSION.MINOR", "0")]
        database.executemany("insert into metadata values (?, ?)", rows)
    return folder


def test_a_foreign_proj_is_put_aside_and_named(tmp_path: Path) -> None:
    code = "from umsf_lib.data import rasters as r; import os; from rasterio.crs import CRS; "
    code += "print(CRS.from_epsg(32650), 'PROJ_DATA' in os.environ)"
    set_wrong = {"PROJ_DATA": str(foreign_proj(tmp_path / "old")), "PROJ_LIB": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | set_wrong,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "EPSG:32650 False\n" and "ERROR" not in done.stderr
    assert f"PROJ_DATA={tmp_path / 'old'}, PROJ_LIB=/nowhere leads to files" in done.stderr


def test_without_a_database_of_its_own_it_is_only_named(monkeypatch) -> None:
    def unknown(code: int) -> None:
        raise CRSError("proj.db comes from another PROJ installation.")

    monkeypatch.setenv("PROJ_LIB", "/usr/share/proj")
    monkeypatch.setattr(faults.PROJDataFinder, "search_wheel", lambda self: None)
    monkeypatch.setattr(faults, "CRS", SimpleNamespace(from_epsg=unknown))
    says = "PROJ_LIB=/usr/share/proj leads to .* no coordinate system can be read; unset it"
    with pytest.warns(UserWarning, match=says):
        faults.use_own_proj()
    assert os.environ["PROJ_LIB"] == "/usr/share/proj"
