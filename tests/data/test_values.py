"""What ``umsf data check`` says of values: figures per band, undeclared fill, scalings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from umsf_lib.data import values as module
from umsf_lib.data.check import Survey, report, survey
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.rasters import write_raster
from umsf_lib.data.values import margins

from ..fakes import METRES, UTM, write_fake

H, W = 60, 40
RNG = np.random.default_rng(11)
PLACE: dict[str, Any] = {"crs": UTM, "transform": METRES}


def layout_of(root: Path, bands: int, optical: str, sar: str = "") -> Layout:
    """Write a layout of so many optical bands, b0, b1, ..., and of SAR if it has a scaling."""
    names = [f"b{number}" for number in range(bands)]
    folders = {"optical": "optical"} | ({"sar": "sar"} if sar else {})
    text = f"name: own\nfolders: {folders}\npattern: '*.tif'\nsplit: {{rule: unlabelled}}\n"
    text += f"optical: {{bands: {names}, rgb: [b0, b0, b0], {optical}}}\n"
    (root / "own.yaml").write_text(text + (f"sar: {{bands: [vv], {sar}}}\n" if sar else ""))
    return load_layout(str(root / "own.yaml"))


def survey_of(
    root: Path,
    optical: str,
    arrays: dict[str, np.ndarray],
    sar: dict[str, np.ndarray],
    scaling: str = "db",
) -> Survey:
    """Write scenes (name -> array), with SAR if there is some, and survey them."""
    layout = layout_of(
        root, len(next(iter(arrays.values()))), optical, f"scaling: {scaling}" if sar else ""
    )
    for role, scenes in (("optical", arrays), ("sar", sar)):
        for name, array in scenes.items():
            write_raster(root / role / f"{name}.tif", array, **PLACE)
    return survey(root, layout)


def dn(bands: int = 1, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(300, 4000, (bands, H, W)).astype(dtype)


def rows(found: Survey) -> dict[str, list[str]]:
    """Band -> lowest, median and highest value and share of zeros, as printed."""
    lines = report(found)
    start = next(i for i, line in enumerate(lines) if line.startswith("Values of valid pixels"))
    assert lines[start].split()[-4:] == ["min", "median", "max", "zeros"]
    table = [line.split() for line in lines[start + 1 :] if line.startswith("  ")]
    return {f"{role} {band}": figures for role, band, *figures in table if len(figures) == 4}


def test_figures_are_those_of_all_valid_pixels(tmp_path: Path) -> None:
    arrays = {"a": dn(2), "b": dn(2)}
    arrays["a"][1, ::7] = 0
    decibels = {name: RNG.normal(-12, 3, (1, H, W)).astype(np.float32) for name in "ab"}
    decibels["b"][0, :9] = np.nan
    found = survey_of(tmp_path, "scaling: reflectance", arrays, decibels)
    valid = {name: np.isfinite(values[0]) for name, values in decibels.items()}
    expected = {}
    for role, scenes in (("optical", arrays), ("SAR", decibels)):
        for band, name in enumerate(["b0", "b1"] if role == "optical" else ["vv"]):
            x = np.concatenate([scenes[n][band][valid[n]] for n in "ab"])
            figures = [f"{v:.4g}" for v in (x.min(), np.median(x), x.max())]
            expected[f"{role} {name}"] = [*figures, f"{(x == 0).mean():.1%}"]
    assert rows(found) == expected
    assert found.scenes[0].looks["optical"].sample.shape == (2, H * W)  # a small folder: all


def test_the_sample_of_a_large_folder_is_bounded_and_fair(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 4000)
    monkeypatch.setattr("umsf_lib.data.check.SAMPLE", 4000)
    ramp = np.tile(np.arange(600, dtype=np.uint16)[:, None] + 300, (1, 100))[None]
    found = survey_of(
        tmp_path, "scaling: reflectance", {"a": ramp, "b": ramp + np.uint16(2000)}, {}
    )
    samples = [scene.looks["optical"].sample for scene in found.scenes]
    assert [4000 // 2 <= sample.size <= 4000 // 2 + 3 for sample in samples] == [True, True]
    low, median, high, zeros = rows(found)["optical b0"]
    assert (low, high, zeros) == ("300", "2899", "0.0%")
    assert 899 - 40 < float(median) < 2300 + 40  # between the scenes
    assert abs(np.median(samples[0]) - 599.5) < 4 * 600 / np.sqrt(12 * 2000) * 1.3


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("uint16", 0, "0"),
        ("uint16", 65535, "65535"),
        ("int16", -9999, "-9999"),
        ("int16", -32768, "-32768"),
        ("int16", 0, "0"),  # not the lowest: some values are below it
        ("float32", -9999, "-9999"),
        ("float32", 1e20, "1e+20"),
    ],
)
def test_undeclared_fill_is_said_with_the_line_to_add(
    tmp_path: Path, dtype: str, value: float, said: str
) -> None:
    good, bad = dn(2, dtype), dn(2, dtype)
    bad[:, 20:30, 20:30] = -5 if dtype == "int16" else 400
    corner = np.add.outer(np.arange(H), np.arange(W)) < 25  # as of a turned scene
    if dtype == "float32":
        good, bad = good / 10_000, bad / 10_000
    bad[:, corner] = value
    found = survey_of(tmp_path, "scaling: reflectance", {"a": good, "b": bad}, {})
    texts = [text for text in found.warnings if "margins" in text]
    assert len(texts) == 1 and found.defects == []
    for part in (
        f"optical value {said} fills connected margins of 1 of 2 scenes (b), up to "
        f"{corner.mean():.1%} of a scene (bands b0, b1)",
        f"add 'nodata: {said}' under 'optical' in {tmp_path / 'own.yaml'}.",
    ):
        assert part in texts[0]
    assert [scene.valid_px for scene in found.scenes] == [H * W, H * W]  # not guessed
    text = (tmp_path / "own.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("reflectance", f"reflectance, nodata: {said}"))
    again = survey(tmp_path, load_layout(str(tmp_path / "own.yaml")))
    assert again.warnings == []
    assert [scene.valid_px for scene in again.scenes] == [H * W, H * W - corner.sum()]


def test_a_second_fill_beside_declared_nodata_gets_other_advice(tmp_path: Path) -> None:
    values = dn()
    values[:, :6], values[:, -6:] = 0, 65535
    found = survey_of(tmp_path, "scaling: reflectance, nodata: 0", {"a": values}, {})
    (text,) = [text for text in found.warnings if "margins" in text]
    assert "value 65535 fills" in text and "up to 10.0%" in text and "'nodata:" not in text
    assert "hide them by a mask" in text and "too high for reflectance" in " ".join(found.warnings)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_margins_of_8_bit_scenes(value: int) -> None:
    """A frame of any value is found; the same value inside, or in specks along an edge, is not."""
    band, known = RNG.integers(1, 250, (H, W)).astype(np.uint8), np.ones((H, W), bool)
    band[band == 128] = 60
    band[10:50, 10:30] = value  # water or a roof, inside
    band[0, ::2] = value
    assert dict(margins(band, known)) == {}
    band[:, -2:] = value
    share = (2 * H) / (H * W)
    assert dict(margins(band, known)) == {str(value): pytest.approx(share)}
    assert dict(margins(band, band != value)) == {}  # declared already
    assert dict(margins(band, np.zeros_like(known))) == {}


def test_a_large_scene_is_thinned_before_margins_are_searched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "THINNED_PX", 100)
    values = RNG.integers(300, 4000, (1, 700, 350)).astype(np.uint16)
    values[:, :140] = 0
    (text,) = survey_of(tmp_path, "scaling: reflectance", {"a": values}, {}).warnings
    assert "value 0 fills" in text and "up to 20.0%" in text


def linear() -> np.ndarray:
    return RNG.gamma(2, 0.05, (1, H, W)).astype(np.float32)


def decibels() -> np.ndarray:
    return 10 * np.log10(linear())


@pytest.mark.parametrize(
    ("scaling", "array", "says"),
    [
        ("db", linear(), "nowhere below 0 in some band, as linear power"),
        ("db", np.where(decibels() < -20, -80, decibels()).astype(np.float32), "within -60..30"),
        ("db", np.where(decibels() > -8, 45, decibels()).astype(np.float32), "within -60..30"),
        ("db", decibels(), ""),
        ("intensity", linear() * 1e5, "too high for linear power"),
        ("intensity", np.where(linear() < 0.06, -0.01, linear()).astype(np.float32), "often below"),
        ("intensity", linear(), ""),
    ],
)
def test_sar_that_fits_no_scaling(
    tmp_path: Path, scaling: str, array: np.ndarray, says: str
) -> None:
    """Each in one scene of two, which is named."""
    sar = {"a": array, "b": decibels() if scaling == "db" else linear()}
    optical = {"a": dn(), "b": dn()}
    found = survey_of(tmp_path, "scaling: reflectance", optical, sar, scaling)
    texts = [text for text in found.warnings if text.startswith("SAR values (")]
    assert found.defects == [] and len(texts) == bool(says)
    assert not says or (says in texts[0] and texts[0].endswith("1 of 2 scenes (a)."))


@pytest.mark.parametrize(
    ("scaling", "array", "says"),
    [
        ("reflectance", dn(dtype="float32"), "too high for reflectance in floats"),
        ("reflectance", dn(dtype="float32") / 10_000, ""),
        ("reflectance", dn(dtype="float32") / 10_000**2, "too low for reflectance"),
        ("reflectance", dn(dtype="float32") / 10_000 - 0.2, "often below 0"),
        ("reflectance", dn(dtype="int16") - np.int16(2000), "often below 0"),
        ("reflectance", dn() * np.uint16(10), "too high for reflectance x 10 000"),
        ("reflectance", dn() // 20, "look like 8-bit values"),
        ("reflectance", dn(), ""),
        ("stretched8", np.full((1, H, W), 9, np.uint8), "all the same in band b0"),
        ("stretched8", (dn() % 256).astype(np.uint8), ""),
        ("stretched8", (dn() % 2 * 255).astype(np.uint8), "only 0 and 255 in band b0"),
    ],
)
def test_optical_values_that_fit_no_scaling(
    tmp_path: Path, scaling: str, array: np.ndarray, says: str
) -> None:
    found = survey_of(tmp_path, f"scaling: {scaling}", {"a": array}, {})
    texts = [text for text in found.warnings if text.startswith("optical values (")]
    assert found.defects == [] and len(texts) == bool(says)
    assert not says or (
        says in texts[0] and f"({array.min():.4g} to {array.max():.4g})" in texts[0]
    )


def test_an_offset_that_only_the_metadata_name_is_said(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, 1, "scaling: reflectance")
    write_raster(tmp_path / "optical" / "a.tif", dn() + np.uint16(1000), **PLACE)
    with rasterio.open(tmp_path / "optical" / "a.tif", "r+") as file:
        file.update_tags(BOA_ADD_OFFSET="-1000")
    (text,) = survey(tmp_path, layout).warnings
    assert "BOA_ADD_OFFSET -1000" in text and "gdal_translate -a_offset VALUE" in text
    with rasterio.open(tmp_path / "optical" / "a.tif", "r+") as file:
        file.offsets = (-1000,)
    assert survey(tmp_path, layout).warnings == []


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"scale_factor": "0.0001", "add_offset": "0.0"}, "scale_factor 0.0001"),
        ({"scale_factor": "1.0", "add_offset": "0"}, ""),
    ],
)
def test_units_in_the_words_of_netcdf_are_said(tmp_path: Path, tags: dict, said: str) -> None:
    layout = layout_of(tmp_path, 2, "scaling: reflectance")
    write_raster(tmp_path / "optical" / "a.tif", dn(2), **PLACE)
    with rasterio.open(tmp_path / "optical" / "a.tif", "r+") as file:
        file.update_tags(2, **tags)
    texts = survey(tmp_path, layout).warnings
    assert len(texts) == bool(said) and all(said in text for text in texts)


def test_a_colour_table_is_said_unless_it_is_one_of_greys(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, 1, "scaling: stretched8")
    for name, colors in (
        ("a", {i: (i, 255 - i, 0) for i in range(256)}),
        ("b", {i: (i, i, i) for i in range(256)}),
    ):
        array = (dn() % 250).astype(np.uint8)
        write_raster(tmp_path / "optical" / f"{name}.tif", array, colors=colors, **PLACE)
    (text,) = survey(tmp_path, layout).warnings
    assert "optical files have a colour table" in text and text.endswith("1 of 2 scenes (a).")
    (text,) = survey(tmp_path, layout_of(tmp_path, 3, "scaling: stretched8")).scenes[0].defects
    assert "has 1 bands" in text and "gdal_translate -expand rgb IN OUT.tif" in text


@pytest.mark.parametrize(
    ("nodata", "dtype", "fits"),
    [("-9999", "uint16", False), ("65535", "int16", False), ("nan", "uint16", False)]
    + [("-9999", "int16", True), ("nan", "float32", True), ("65535", "uint16", True)],
)
def test_nodata_that_no_file_can_hold_is_said(
    tmp_path: Path, nodata: str, dtype: str, fits: bool
) -> None:
    layout = layout_of(tmp_path, 1, f"scaling: reflectance, nodata: {nodata}")
    array = dn(dtype=dtype) / (10_000 if dtype == "float32" else 1)
    write_raster(tmp_path / "optical" / "a.tif", array.astype(dtype), **PLACE)
    texts = survey(tmp_path, layout).warnings
    assert len(texts) == (not fits)
    assert fits or f"are {dtype}, which cannot hold nodata {nodata} of the layout" in texts[0]


def test_a_constant_band_is_no_margin() -> None:
    assert list(margins(np.zeros((9, 9), np.uint8), np.ones((9, 9), bool))) == []


def test_arrays_and_pictures_have_figures_too(tmp_path: Path) -> None:
    """They declare nothing, so all pixels are valid."""
    for name in ("naip", "ddhr-sk"):
        layout = write_fake(tmp_path / name, name, "1")
        found = survey(tmp_path / name, layout)
        assert found.defects == [] and [s.valid_px for s in found.scenes] == [48 * 56]
        assert {"optical red", "optical green", "optical blue"} <= rows(found).keys()
