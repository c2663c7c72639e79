"""Valid pixels and physical values: what a file says of itself, against what was written there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.windows import Window

from umsf_lib.__main__ import main
from umsf_lib.config import IGNORE, DataError
from umsf_lib.data.check import report, survey
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.rasters import declared_valid, grid_of, opened, pixel_size_m, write_raster
from umsf_lib.data.scene import Scene, find_scenes
from umsf_lib.data.stage import prepare

from ..fakes import METRES, UTM

H, W = 20, 30
PX = H * W
RNG = np.random.default_rng(5)


def write(path: Path, array: np.ndarray, **form: Any) -> Path:
    """Write ``(C, h, w)``, or ``(h, w)``, by rasterio alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array if array.ndim == 3 else array[None]
    form = {"driver": "GTiff", "crs": UTM, "transform": METRES, "dtype": array.dtype} | form
    form |= dict(zip(("count", "height", "width"), array.shape, strict=True))
    with rasterio.open(path, "w", **form) as target:
        target.write(array)
    return path


def tag(path: Path, **change: Any) -> None:
    """Set attributes of a file, such as ``scales``, once for each band."""
    with rasterio.open(path, "r+") as target:
        for name, value in change.items():
            setattr(target, name, (value,) * target.count)


def layout_of(root: Path, optical: str = "", sar: str = "", more: str = "") -> Layout:
    """Write a layout of three optical bands and one of SAR, each with further entries."""
    path = root / "own.yaml"
    folders = "optical: optical, sar: sar" + (", label: label" if more else "")
    path.write_text(
        f"name: own\nfolders: {{{folders}}}\npattern: '*.tif|vrt'\n"
        "optical: {bands: [red, green, blue], rgb: [red, green, blue], "
        f"{optical or 'scaling: stretched8'}}}\n"
        f"sar: {{bands: [vv], {sar or 'scaling: amplitude8'}}}\n"
        f"{more}split: {{rule: unlabelled}}\n"
    )
    return load_layout(str(path))


def grey(bands: int, low: int = 1, high: int = 250) -> np.ndarray:
    return RNG.integers(low, high, (bands, H, W)).astype(np.uint8)


def scene_of(
    root: Path, optical: np.ndarray | None = None, *, layout: Layout, **form: Any
) -> Scene:
    """Write one scene with this optical file beside SAR without nodata."""
    write(root / "optical" / "a.tif", grey(3) if optical is None else optical, **form)
    write(root / "sar" / "a.tif", grey(1))
    (scene,) = find_scenes(root, layout)
    return scene


def valid_everywhere(root: Path, layout: Layout, expected: np.ndarray) -> None:
    """Hold that a scene, a window of it, ``check`` and the prepared arrays tell the same pixels."""
    (scene,) = find_scenes(root, layout)
    scene.check()
    np.testing.assert_array_equal(scene.read()["valid"], expected)
    part = scene.read(Window(3, 2, 20, 15))["valid"]
    np.testing.assert_array_equal(part, expected[2:17, 3:23])
    assert survey(root, layout).scenes[0].valid_px == expected.sum()
    scenes = prepare(root, layout, root / "prepared")
    np.testing.assert_array_equal(scenes.plane("valid", 0), expected)


# -- masks and nodata ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR"), ("GDAL_PAM_ENABLED", "NO")],
)
def test_settings_for_speed_hide_no_sidecars(tmp_path: Path, setting: str, value: str) -> None:
    layout, seen = layout_of(tmp_path), RNG.random((H, W)) < 0.7
    scene = scene_of(tmp_path, layout=layout)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(scene.optical, "r+") as file:
        file.write_mask(seen)
    radar = grey(1)
    radar[0, :, 4] = 0
    write(tmp_path / "sar" / "a.tif", radar)
    fill = '<PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand>'
    (tmp_path / "sar" / "a.tif.aux.xml").write_text(f"<PAMDataset>{fill}</PAMDataset>")
    seen[:, 4] = False
    with rasterio.Env(**{setting: value}):
        valid_everywhere(tmp_path, layout, seen)


def test_a_setting_hides_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", grey(1), compress="deflate")
    path.write_bytes(path.read_bytes()[:-80] + bytes(80))
    with (
        rasterio.Env(GTIFF_IGNORE_READ_ERRORS=True),
        pytest.raises(DataError, match="truncated, damaged"),
        opened(path) as source,
    ):
        source.read()


@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_in_the_file_or_beside_it_hides_pixels(tmp_path: Path, inside: bool) -> None:
    layout, seen = layout_of(tmp_path), RNG.random((H, W)) < 0.7
    scene = scene_of(tmp_path, layout=layout)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(scene.optical, "r+") as file:
        file.write_mask(seen)
    assert scene.optical.with_name("a.tif.msk").exists() != inside
    valid_everywhere(tmp_path, layout, seen)


@pytest.mark.parametrize(
    ("shape", "tags", "says"),
    [
        ((2 * H, 2 * W), {"INTERNAL_MASK_FLAGS_1": "2"}, f"is {2 * W} x {2 * H} px, and the file"),
        ((H, W), {}, "lacks the tag INTERNAL_MASK_FLAGS_1"),
        (None, {}, "a.tif.msk (4 bytes) cannot be read"),
    ],
)
def test_a_mask_file_that_gdal_reads_wrongly_or_not_at_all_is_refused(
    tmp_path: Path, shape: tuple[int, int] | None, tags: dict[str, str], says: str
) -> None:
    layout = layout_of(tmp_path)
    scene = scene_of(tmp_path, grey(3), layout=layout)
    mask = tmp_path / "optical" / "a.tif.msk"
    if shape:
        write(tmp_path / "new.tif", np.full(shape, 255, np.uint8))
        with rasterio.open(tmp_path / "new.tif", "r+") as file:
            file.update_tags(**tags)
        (tmp_path / "new.tif").rename(mask)
    else:
        mask.write_bytes(b"junk")
    (text,) = scene.defects()
    assert str(mask) in text and says in text
    with pytest.raises(DataError, match="msk"):
        scene.read()


def test_a_raster_does_not_inherit_the_mask_of_an_older_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", grey(1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((H, W), bool))
    write_raster(path, grey(1), crs=UTM, transform=METRES)
    with opened(path) as file:
        assert declared_valid(file).all()


def test_a_mask_adds_to_nodata_of_the_file_and_of_the_layout(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: stretched8, nodata: 0")
    values, seen = grey(3), np.ones((H, W), bool)
    values[1, :2], values[2, 5], seen[:, 7] = 0, 0, False
    scene = scene_of(tmp_path, values, layout=layout, nodata=0)
    with rasterio.open(scene.optical, "r+") as file:
        file.write_mask(seen)
    valid_everywhere(tmp_path, layout, seen & (values != 0).all(axis=0))
    with opened(scene.optical) as file:
        np.testing.assert_array_equal(declared_valid(file), seen & (values != 0))


def vrt(path: Path, bands: list[tuple[Path, str, str]]) -> None:
    """Stack files (path, GDAL's data type, nodata) as bands with nodata values of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}"><NoDataValue>{nodata}</NoDataValue>'
        f"<SimpleSource><SourceFilename>{file}</SourceFilename></SimpleSource></VRTRasterBand>"
        for number, (file, kind, nodata) in enumerate(bands, start=1)
    )
    place = ",".join(map(str, METRES.to_gdal()))
    path.write_text(
        f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><SRS>{UTM.to_wkt()}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{rows}</VRTDataset>"
    )


def test_each_band_has_its_own_nodata(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: reflectance", sar="scaling: amplitude8")
    values = RNG.normal(0.2, 0.01, (3, H, W)).astype(np.float32)
    files = []
    for band, (nodata, row) in enumerate(((-9999, 1), (7, 4), (np.nan, 9))):
        values[band, row : row + 2] = nodata
        values[(band + 1) % 3, 15, band] = nodata if nodata == nodata else 3  # data in this band
        files.append((write(tmp_path / f"{band}.tif", values[band]), "Float32", str(nodata)))
    vrt(tmp_path / "optical" / "a.vrt", files)
    write(tmp_path / "sar" / "a.tif", grey(1))
    expected = np.ones((H, W), bool)
    expected[[1, 2, 4, 5, 9, 10]] = False
    valid_everywhere(tmp_path, layout, expected)
    layout = layout_of(tmp_path, optical="scaling: reflectance, nodata: 7")
    (text,) = survey(tmp_path, layout).defects
    assert "a.vrt declares nodata -9999 and nan, but the layout says 7" in text


@pytest.mark.parametrize("said", ["nan", ".nan", "-9999", "-9999.0"])
def test_the_same_nodata_in_other_words_is_no_defect(tmp_path: Path, said: str) -> None:
    layout = layout_of(tmp_path, sar=f"scaling: db, nodata: {said}")
    scene_of(tmp_path, layout=layout)
    decibels = RNG.normal(-12, 2, (1, H, W)).astype(np.float32)
    decibels[0, :, :3] = float(said.lstrip(".")) if "nan" in said else -9999
    write(tmp_path / "sar/a.tif", decibels, nodata=np.nan if "nan" in said else -9999)
    expected = np.ones((H, W), bool)
    expected[:, :3] = False
    valid_everywhere(tmp_path, layout, expected)


def test_nan_of_several_bands_is_said_once(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: reflectance, nodata: 7")
    array = np.ones((3, H, W), np.float32)
    (text,) = scene_of(tmp_path, array, layout=layout, nodata=np.nan).defects()
    assert "declares nodata nan, but the layout says 7" in text
    layout = layout_of(tmp_path, optical="scaling: reflectance")
    tag(tmp_path / "optical" / "a.tif", scales=np.nan)
    (text,) = find_scenes(tmp_path, layout)[0].defects()
    assert "declares scale nan, offset 0, of which" in text


# -- alpha -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_alpha_beyond_the_bands_of_the_layout_decides(tmp_path: Path, dtype: str) -> None:
    eight = dtype == "uint8"
    layout = layout_of(tmp_path, optical="" if eight else "scaling: reflectance")
    opaque = np.ones((H, W), bool)
    opaque[:5, 10:] = False
    values = np.concatenate([grey(3), opaque[None] * np.uint8(255)]).astype(dtype)
    scene = scene_of(tmp_path, values, layout=layout, photometric="RGB", alpha="yes")
    valid_everywhere(tmp_path, layout, opaque)
    np.testing.assert_array_equal(scene.read()["optical"], values[:3])


def test_near_infrared_tagged_alpha_is_data_where_it_is_named(tmp_path: Path) -> None:
    values = grey(4)
    values[3, :6] = 0  # water
    layout = layout_of(tmp_path)
    scene = scene_of(tmp_path, values, layout=layout, photometric="RGB", alpha="yes")
    with pytest.raises(DataError, match=r"band 4 tagged alpha, but its values vary .* as nir"):
        scene.check()  # of three named bands: not guessed
    path = tmp_path / "own.yaml"
    path.write_text(path.read_text().replace("bands: [red, green, blue]", "bands: [r, g, b, nir]"))
    path.write_text(path.read_text().replace("rgb: [red, green, blue]", "rgb: [r, g, b]"))
    layout = load_layout(str(path))
    valid_everywhere(tmp_path, layout, np.ones((H, W), bool))


# -- labels ----------------------------------------------------------------------------------

CLASSES = """label_nodata: [9]
classes:
  - {id: 0, name: land, code: 1, rgb: [0, 0, 0]}
  - {id: 1, name: water, code: 2, rgb: [0, 0, 255]}
"""


def test_nodata_and_masks_of_a_label_leave_pixels_unlabelled(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, more=CLASSES)
    codes, seen = RNG.integers(1, 3, (H, W)).astype(np.uint8), np.ones((H, W), bool)
    codes[0], codes[1], codes[2, :15], seen[:, :3] = 9, 200, 77, False
    codes[2] = np.where(seen[2], 1, 77)  # unknown, but hidden
    path = write(tmp_path / "label" / "a.tif", codes, nodata=200)
    with rasterio.open(path, "r+") as file:
        file.write_mask(seen)
    scene = scene_of(tmp_path, layout=layout)
    known = seen & np.isin(codes, (1, 2))
    assert scene.defects() == []
    np.testing.assert_array_equal(scene.read()["label"], np.where(known, codes - 1, IGNORE))
    assert scene.read()["valid"].all()  # a pixel without a label is valid
    text = "\n".join(report(survey(tmp_path, layout)))
    land = (codes[known] == 1).mean()
    assert f"0 land (code 1): {land:.1%}" in text
    assert f"ignored (code 9): {(seen & (codes == 9)).mean():.1%} of all pixels" in text
    hidden = (~seen | (codes == 200)).mean()
    assert f"ignored (no data, as the file declares): {hidden:.1%} of all pixels" in text


def test_a_label_that_a_mask_hides_wholly_is_said(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, more=CLASSES)
    path = write(tmp_path / "label" / "a.tif", np.ones((H, W), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((H, W), bool))
    scene_of(tmp_path, layout=layout)
    text = "\n".join(report(survey(tmp_path, layout)))
    assert "ignored (no data, as the file declares): 100.0% of all pixels" in text


def test_a_class_that_the_label_declares_to_be_nodata_is_a_defect(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, more=CLASSES)
    write(tmp_path / "label" / "a.tif", np.ones((H, W), np.uint8), nodata=2)
    (text,) = scene_of(tmp_path, layout=layout).defects()
    assert "a.tif declares nodata 2, but layout" in text and "class water" in text


# -- scale and offset ------------------------------------------------------------------------


def test_scenes_of_different_offsets_come_out_equal(tmp_path: Path) -> None:
    """Sentinel-2 before and since baseline 04.00: one ground, 1000 DN apart."""
    layout = layout_of(tmp_path, optical="scaling: reflectance")
    ground = RNG.integers(1, 9000, (3, H, W)).astype(np.uint16)
    for name, offset in (("a", 0.0), ("b", -0.1)):
        dn = ground + np.uint16(round(-offset * 1e4))
        dn[:, 3] = 0
        path = write(tmp_path / "optical" / f"{name}.tif", dn, nodata=0)
        tag(path, scales=1e-4, offsets=offset)
        write(tmp_path / "sar" / f"{name}.tif", grey(1))
    read = [scene.read() for scene in find_scenes(tmp_path, layout)]
    expected = np.ones((H, W), bool)
    expected[3] = False  # nodata is meant as stored
    for parts in read:
        assert parts["optical"].dtype == np.float32
        np.testing.assert_array_equal(parts["valid"], expected)
        physical = ground[:, expected] / 1e4
        np.testing.assert_allclose(parts["optical"][:, expected], physical, rtol=1e-6, atol=1e-8)
    first, second = prepare(tmp_path, layout, tmp_path / "prepared").records
    assert first.mean["optical"] == pytest.approx(second.mean["optical"], rel=1e-6)
    assert first.mean["optical"] == pytest.approx(ground[:, expected].mean(axis=1) / 1e4)
    found = survey(tmp_path, layout)
    text = "\n".join(report(found))
    assert found.defects == [] and found.warnings == []
    assert "scale 0.0001, offset 0 (1), scale 0.0001, offset -0.1 (1) applied" in text


def test_an_offset_in_dn_applies_beside_files_without_tags(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: reflectance")
    ground = RNG.integers(1, 9000, (3, H, W)).astype(np.uint16)
    write(tmp_path / "optical" / "a.tif", ground)
    tag(write(tmp_path / "optical" / "b.tif", ground + np.uint16(1000)), offsets=-1000)
    for name in "ab":
        write(tmp_path / "sar" / f"{name}.tif", grey(1))
    first, second = (scene.read()["optical"] for scene in find_scenes(tmp_path, layout))
    np.testing.assert_array_equal(first, ground)
    np.testing.assert_array_equal(second, ground)
    assert survey(tmp_path, layout).defects == []


def test_bands_are_scaled_one_by_one(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: reflectance")
    values = RNG.integers(0, 9000, (3, H, W)).astype(np.int16)
    scene = scene_of(tmp_path, values, layout=layout)
    with rasterio.open(scene.optical, "r+") as file:
        file.scales, file.offsets = (1e-4, 2e-4, 1.0), (0.0, 0.5, -3.0)
    expected = [values[0] / 1e4, values[1] / 5e3 + 0.5, values[2] - 3.0]
    np.testing.assert_allclose(scene.read()["optical"], expected, rtol=1e-6)


def test_decibels_may_be_stored_as_scaled_integers(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, sar="scaling: db")
    scene = scene_of(tmp_path, layout=layout)
    stored = RNG.integers(-2500, -300, (1, H, W)).astype(np.int16)
    write(tmp_path / "sar" / "a.tif", stored)
    assert "is int16, but scaling 'db'" in scene.defects()[0]
    tag(tmp_path / "sar" / "a.tif", scales=0.01)
    assert scene.defects() == []
    np.testing.assert_allclose(scene.read()["sar"], stored / 100, rtol=1e-6)


@pytest.mark.parametrize(
    ("role", "change", "says"),
    [
        ("optical", {"scales": 0.5}, "is uint8 with scale 0.5, offset 0, which means float32, but"),
        ("sar", {"offsets": -3.0}, "is uint8 with scale 1, offset -3, which means float32, but"),
        ("sar", {"scales": 0.0}, "scale 0, offset 0, of which no value can be made"),
        ("label", {"scales": 2.0}, "with scale 2, offset 0, but class codes must be plain"),
    ],
)
def test_tags_that_fit_no_scaling_are_refused(
    tmp_path: Path, role: str, change: dict[str, Any], says: str
) -> None:
    layout = layout_of(tmp_path, more=CLASSES)
    write(tmp_path / "label" / "a.tif", np.ones((H, W), np.uint8))
    scene = scene_of(tmp_path, layout=layout)
    tag(tmp_path / role / "a.tif", **change)
    assert says in scene.defects()[0]


def test_scaled_files_beside_plain_integers_are_refused(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, optical="scaling: reflectance")
    for name in "ab":
        values = RNG.integers(300, 9000, (3, H, W)).astype(np.uint16)
        write(tmp_path / "optical" / f"{name}.tif", values)
        write(tmp_path / "sar" / f"{name}.tif", grey(1))
    tag(tmp_path / "optical" / "b.tif", scales=1e-4)
    (text,) = survey(tmp_path, layout).defects
    for part in ("b.tif declares a scale, but", "a.tif holds plain integers", "of neither"):
        assert part in text
    with pytest.raises(DataError, match="declares a scale, but"):
        prepare(tmp_path, layout, tmp_path / "prepared")


# -- place and parts -------------------------------------------------------------------------


def with_gcps(path: Path, array: np.ndarray, west: float, south: float) -> None:
    """Place the four corners of a file by control points in degrees."""
    corners = [(row, col) for row in (0, H) for col in (0, W)]
    points = [
        GroundControlPoint(row, col, (west + col / 1e4 + 180) % 360 - 180, south - row / 1e4)
        for row, col in corners
    ]
    write(path, array, crs=None, transform=rasterio.Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.gcps = points, rasterio.crs.CRS.from_epsg(4326)


def without_crs(path: Path, array: np.ndarray, west: float, south: float) -> None:
    """Place one corner by a control point in a plane that nothing names."""
    write(path, array, crs=None, transform=rasterio.Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.gcps = [GroundControlPoint(0, 0, west, south)], rasterio.crs.CRS()


def with_arrays(path: Path, array: np.ndarray, west: float, south: float) -> None:
    """Refer to rasters of longitudes and latitudes, as products of Sentinel-3 do."""
    write(path, array, crs=None, transform=rasterio.Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", Y_DATASET="lat.tif")


def with_rpcs(path: Path, array: np.ndarray, west: float, south: float) -> None:
    """Place a file by rational polynomials of its height, and name a CRS nevertheless."""
    one = [1.0] + [0.0] * 19
    place = {"lat_off": south, "long_off": west, "height_off": 0.0, "line_off": 0.0}
    place |= {"samp_off": 0.0, "lat_scale": 1.0, "long_scale": 1.0, "height_scale": 1.0}
    place |= {"line_scale": 1.0, "samp_scale": 1.0}
    terms = ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")
    rpcs = RPC(**place, **dict.fromkeys(terms, one), err_bias=None, err_rand=None)
    write(path, array, crs="EPSG:4326", transform=rasterio.Affine.identity(), rpcs=rpcs)


@pytest.mark.parametrize(
    ("place", "west", "south", "command"),
    [
        (with_gcps, 111.0, 31.0, "gdalwarp -tps -t_srs EPSG:32649 IN OUT.tif"),
        (with_gcps, -58.4, -34.6, "gdalwarp -tps -t_srs EPSG:32721 IN OUT.tif"),
        (with_gcps, 179.9999, -20.0, "gdalwarp -tps -t_srs EPSG:32760 IN OUT.tif"),
        (with_rpcs, 2.3, 48.9, "gdalwarp -rpc -t_srs EPSG:32631 IN OUT.tif"),
        (without_crs, 4e5, 3e6, "gdalwarp -tps -s_srs EPSG:... -t_srs EPSG:... IN OUT.tif"),
        (with_arrays, 2.3, 48.9, "gdalwarp -geoloc -t_srs EPSG:... IN OUT.tif"),
    ],
)
def test_what_gcps_or_rpcs_place_is_refused_with_the_command(
    tmp_path: Path, place: Callable[..., None], west: float, south: float, command: str
) -> None:
    layout = layout_of(tmp_path)
    scene = scene_of(tmp_path, layout=layout)
    place(tmp_path / "sar" / "a.tif", grey(1), west, south)
    (text,) = scene.defects()
    assert text.startswith("SAR file") and text.endswith(f"{command}.")
    with opened(tmp_path / "sar" / "a.tif") as file:
        assert grid_of(file).crs is None and pixel_size_m(grid_of(file)) is None


def test_pages_of_a_tiff_are_named(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    scene = scene_of(tmp_path, layout=layout)
    write(tmp_path / "sar" / "a.tif", grey(1), APPEND_SUBDATASET="YES")
    (text,) = scene.defects()
    path = tmp_path / "sar" / "a.tif"
    assert f"{path} holds 2 rasters" in text
    assert f"GTIFF_DIR:2:{path}" in text and f"gdal_translate 'GTIFF_DIR:1:{path}' OUT.tif" in text
    with rasterio.open(f"GTIFF_DIR:2:{path}") as page:  # the name works
        assert page.count == 1


def test_the_parts_of_a_container_are_named(tmp_path: Path) -> None:
    path = tmp_path / "both.gpkg"
    for number, table in enumerate(("vv", "vh")):
        form = {"driver": "GPKG", "RASTER_TABLE": table, "TILE_FORMAT": "PNG"}
        write(path, grey(1), **form, **({"APPEND_SUBDATASET": "YES"} if number else {}))
    says = r"holds 2 rasters.*GPKG:.*:vv.*GPKG:.*:vh.*gdal_translate 'GPKG:.*:vv' OUT.tif"
    with pytest.raises(DataError, match=says), opened(path):
        pass


def test_the_command_is_content_with_masks_and_says_so(tmp_path: Path, capsys) -> None:
    layout = layout_of(tmp_path)
    scene = scene_of(tmp_path, layout=layout)
    with rasterio.open(scene.sar, "r+") as file:
        file.write_mask(np.arange(PX).reshape(H, W) >= PX // 4)
    assert main(["data", "check", str(tmp_path), "--layout", str(layout.source)]) == 0
    out = capsys.readouterr().out
    assert "Valid pixels: 75.0%" in out and "Warnings: none\nDefects: none" in out
