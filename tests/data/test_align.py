"""Grid repair, against arrays moved by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.warp import transform_bounds

from umsf_lib.__main__ import main
from umsf_lib.config import DataError
from umsf_lib.data.align import align
from umsf_lib.data.layout import Layout, load_layout
from umsf_lib.data.scene import find_scenes

from ..fakes import DEGREES, METRES, bands, codes, write_fake, write_picture
from .test_scenes import REAL, needs_real

WHU, NAME = load_layout("whu-opt-sar"), "NH49E001013.tif"


def moved(place: Affine, cols: float, rows: float) -> Affine:
    d = place
    return Affine(d.a, 0, d.c + cols * d.a, 0, d.e, d.f + rows * d.e)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def values(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


def test_whole_pixel_shifts_are_undone_exactly(tmp_path: Path) -> None:
    """SAR lies 3 px right and 5 px down, labels 2 px left: each goes back, the rim is nodata."""
    root, target = tmp_path / "data", tmp_path / "aligned"
    sar, label = bands(WHU, "sar"), np.where(codes(WHU) == 0, 10, codes(WHU))
    write_fake(
        root,
        "whu-opt-sar",
        sar_transform=moved(DEGREES, 3, 5),
        label=label,
        label_transform=moved(DEGREES, -2, 0),
    )
    write_fake(root, "whu-opt-sar", "NH49E001014")
    (root / "split.txt").write_text("train:\nNH49E001013.tif\n")
    before = hashes(root)
    shares = align(root, WHU, target)
    assert shares == {target / "sar" / NAME: 43 * 53 / 2688, target / "lbl" / NAME: 54 / 56}
    expected = np.zeros_like(sar)
    expected[:, 5:, 3:] = sar[:, :-5, :-3]
    np.testing.assert_array_equal(values(target / "sar" / NAME), expected)
    expected = np.zeros_like(label)
    expected[:, :-2] = label[:, 2:]
    np.testing.assert_array_equal(values(target / "lbl" / NAME)[0], expected)
    for scene in find_scenes(target, WHU):
        scene.check()
    assert hashes(root) == before  # never in place
    same = set(before) - {f"sar/{NAME}", f"lbl/{NAME}"}
    after = hashes(target)
    assert set(after) == set(before) and all(after[name] == before[name] for name in same)


def test_half_pixels_are_averaged_and_codes_are_not(tmp_path: Path) -> None:
    root, half = tmp_path / "data", moved(DEGREES, 0.5, 0)
    ramp = np.tile(np.arange(10, 66, dtype=np.uint8), (1, 48, 1)) * 2
    steps = np.where(np.arange(56) % 2, 10, 40).astype(np.uint8) * np.ones((48, 1), np.uint8)
    write_fake(root, "whu-opt-sar", sar=ramp, sar_transform=half, label=steps, label_transform=half)
    align(root, WHU, tmp_path / "linear")
    found = values(tmp_path / "linear" / "sar" / NAME)[0, 10, 1:-1].astype(int)
    np.testing.assert_array_equal(found, ramp[0, 10, 1:-1].astype(int) - 1)
    assert set(np.unique(values(tmp_path / "linear" / "lbl" / NAME))) <= {0, 10, 40}
    align(root, WHU, tmp_path / "near", "nearest")
    assert set(np.unique(values(tmp_path / "near" / "sar" / NAME))) <= {0, *ramp.ravel().tolist()}


def test_decibels_are_marked_with_nan_where_nothing_covers(tmp_path: Path) -> None:
    """A SAR of another CRS and twice the step that ends in the middle of the scene."""
    layout, root = load_layout("terramesh"), tmp_path / "data"
    size = 48
    west, south, east, north = transform_bounds(
        "EPSG:32650", "EPSG:4326", METRES.c, METRES.f - 10 * size, METRES.c + 280, METRES.f
    )
    degrees = Affine((east - west) / 14, 0, west, 0, (south - north) / 24, north)
    sar = np.full((2, 24, 14), -12.5)
    write_fake(root, "terramesh", sar=sar, sar_transform=degrees, sar_crs="EPSG:4326")
    align(root, layout, tmp_path / "out")
    (scene,) = find_scenes(tmp_path / "out", layout)
    scene.check()
    parts = scene.read()
    assert parts["valid"][:, :26].all() and not parts["valid"][:, 30:].any()
    np.testing.assert_allclose(parts["sar"][:, parts["valid"]], -12.5)


def test_what_cannot_be_aligned_is_said(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar", sar_crs=None)
    with pytest.raises(DataError, match=r"sar.*no CRS.*EPSG:4326.*give the files their CRS"):
        align(tmp_path, WHU, tmp_path.parent / "out")
    for inside in (tmp_path, tmp_path / "out", tmp_path.parent):
        with pytest.raises(DataError, match="overlaps the data folder"):
            align(tmp_path, WHU, inside)
    text = WHU.source.read_text().replace("scaling: amplitude8\n  nodata: 0", "scaling: amplitude8")
    (tmp_path / "own.yaml").write_text(text)
    write_fake(tmp_path, "whu-opt-sar", sar_transform=moved(DEGREES, 3, 0))
    with pytest.raises(DataError, match=r"does not cover 144 px .*no nodata value.*own\.yaml"):
        align(tmp_path, load_layout(str(tmp_path / "own.yaml")), tmp_path.parent / "out")


def test_an_interrupted_write_leaves_no_half_file(tmp_path: Path, monkeypatch) -> None:
    root, target = tmp_path / "data", tmp_path / "out"
    write_fake(root, "whu-opt-sar", sar_transform=moved(DEGREES, 3, 0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umsf_lib.data.align.shutil.copyfile", full)
    with pytest.raises(DataError, match=r"The disk of .* is full; free some space.*No space"):
        align(root, WHU, target)
    assert [p.name for p in target.rglob("*") if p.is_file()] == [NAME]  # the whole SAR file


def test_the_command_says_what_it_resampled(tmp_path: Path, capsys) -> None:
    root, target = tmp_path / "data", tmp_path / "out"
    write_fake(root, "whu-opt-sar", sar_transform=moved(DEGREES, 0, 1))
    options = ["data", "align", str(root), "--layout", "whu-opt-sar", "--output", str(target)]
    assert main([*options, "--resampling", "cubic"]) == 0
    out = capsys.readouterr().out
    share = f"{47 * 56 / 2688:.1%} of it holds data"  # one row of the scene lies outside
    assert f"resampled: {target / 'sar' / NAME}, {share}\n" in out
    assert f"{target}: 1 resampled, the others" in out


# -- validity --------------------------------------------------------------------------------


def own_layout(root: Path, optical: str = "nodata: 0", sar: str = "nodata: 0") -> Layout:
    """The layout ``pairs`` for GeoTIFFs and VRTs, with other lines on nodata."""
    text = load_layout("pairs").source.read_text()
    text = text.replace("pattern: ", "pattern: '*.tif|vrt' # ")
    for role, line in (("optical", optical), ("sar", sar)):
        head, tail = text.split(f"\n{role}:\n")
        text = f"{head}\n{role}:\n" + tail.replace("nodata: 0", line, 1)
    root.mkdir(parents=True, exist_ok=True)
    (root / "own.yaml").write_text(text)
    return load_layout(str(root / "own.yaml"))


def hide(path: Path, hidden: np.ndarray, inside: bool) -> None:
    """Hide pixels by a mask in the file, or in a ``.msk`` file beside it."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(np.where(hidden, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("inside", [True, False])
def test_hidden_pixels_are_nodata_on_the_new_grid(tmp_path: Path, inside: bool) -> None:
    """The SAR lies 4 px right; a block of it is hidden, though it holds values."""
    root, layout = tmp_path / "data", own_layout(tmp_path)
    sar, hidden = bands(layout, "sar"), np.zeros((48, 56), bool)
    hidden[10:20, 30:40] = True
    write_fake(root, "pairs", "a", sar=sar, sar_transform=moved(METRES, 4, 0))
    hide(root / "sar" / "a.tif", hidden, inside)
    hide(root / "optical" / "a.tif", np.roll(hidden, 7, axis=1), inside)
    ((path, share),) = align(root, layout, tmp_path / "out", "nearest").items()
    expected = np.zeros_like(sar)
    expected[:, :, 4:] = np.where(hidden, 0, sar)[:, :, :-4]
    np.testing.assert_array_equal(values(path), expected)
    assert share == (48 * 52 - 100) / 2688
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.tif"]  # no mask of the old grid
    with rasterio.open(tmp_path / "out" / "optical" / "a.tif") as file:
        np.testing.assert_array_equal(file.dataset_mask() == 0, np.roll(hidden, 7, axis=1))


def test_hidden_pixels_need_a_nodata_value(tmp_path: Path) -> None:
    layout = own_layout(tmp_path, sar="")
    hidden = np.zeros((50, 56), bool)
    hidden[7, :9] = True
    sar = np.ones((1, 50, 56), np.uint8)
    write_fake(tmp_path / "data", "pairs", "a", sar=sar)  # two rows too many
    hide(tmp_path / "data" / "sar" / "a.tif", hidden, True)
    with pytest.raises(DataError, match=r"does not cover 9 px .*with data, .*own\.yaml"):
        align(tmp_path / "data", layout, tmp_path / "out")


def stack(path: Path, nodata: tuple[float, ...], kind: str = "Byte") -> None:
    """A VRT of the band files ``0.tif``, ``1.tif`` ... in its folder, each with its own nodata."""
    rows = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><NoDataValue>{value}</NoDataValue>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{band}.png</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, value in enumerate(nodata, start=1)
    )
    place = "<SRS>EPSG:32650</SRS><GeoTransform>499960,10,0,3400000,0,-10</GeoTransform>"
    path.write_text(f'<VRTDataset rasterXSize="56" rasterYSize="48">{place}{rows}</VRTDataset>')


@pytest.mark.parametrize(("nodata", "taken"), [((0, 255), 255), ((255, 0), 255), ((7, 0), 7)])
def test_bands_with_nodata_of_their_own_get_one_that_none_holds(tmp_path, nodata, taken) -> None:
    """The SAR lies 4 px left. Where band 1 has 0 as data, 0 cannot mark what is missing."""
    root = tmp_path / "data"
    layout = own_layout(tmp_path, sar="")
    text = layout.source.read_text().replace("bands: [vh]", "bands: [vh, vv]")
    layout.source.write_text(text)
    layout = load_layout(str(layout.source))
    write_fake(root, "pairs", "a")
    (root / "sar" / "a.tif").unlink()
    both = np.random.default_rng(0).integers(10, 200, (2, 48, 56), dtype=np.uint8)
    both[0, 5, 20:24], both[1, 6, 20:24] = nodata
    both[1, 9, 30] = 0 if nodata[1] else 33
    both[0, 9, 31] = 0 if nodata[0] else 34
    for number, band in enumerate(both, start=1):
        write_picture(root / "sar" / f"{number}.png", band)
    stack(root / "sar" / "a.vrt", nodata)
    ((path, share),) = align(root, layout, tmp_path / "out", "nearest").items()
    expected = np.full_like(both, taken)
    expected[:, :, :-4] = both[:, :, 4:]
    for row, band in ((5, 0), (6, 1)):
        expected[band, row, 16:20] = taken
    np.testing.assert_array_equal(values(path), expected)
    with rasterio.open(path) as file:
        assert file.nodatavals == (taken, taken)
    assert share == (48 * 52 - 8) / 2688


def test_scales_and_names_of_bands_are_kept(tmp_path: Path) -> None:
    root, layout = tmp_path / "data", load_layout("terramesh")
    write_fake(root, "terramesh", "a", sar_transform=moved(METRES, 1, 0))
    with rasterio.open(next((root).rglob("*S1*/*.tif")), "r+") as file:
        file.scales, file.offsets, file.descriptions = (0.5, 0.25), (-1, 2), ("vv", "vh")
    for path in align(root, layout, tmp_path / "out"):
        with rasterio.open(path) as file:
            assert (file.scales, file.offsets) == ((0.5, 0.25), (-1.0, 2.0))
            assert file.descriptions == ("vv", "vh")


def test_a_vrt_is_copied_with_its_sources_where_they_are(tmp_path: Path) -> None:
    root, layout = tmp_path / "data", own_layout(tmp_path)
    write_fake(root, "pairs", "a", sar_transform=moved(METRES, 1, 0))
    three = values(root / "optical" / "a.tif")
    (root / "optical" / "a.tif").unlink()
    for number, band in enumerate(three, start=1):
        write_picture(root / "optical" / f"{number}.png", band)
    stack(root / "optical" / "a.vrt", (0, 0, 0))
    align(root, layout, tmp_path / "out")
    np.testing.assert_array_equal(values(tmp_path / "out" / "optical" / "a.vrt"), three)


# -- places ----------------------------------------------------------------------------------


def test_files_without_common_ground_are_refused_with_their_distance(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_fake(root, "whu-opt-sar", sar_transform=moved(DEGREES, 0, 10 * 48))
    km = 480 * 4.5e-5 * np.pi / 180 * 6348.3  # along the meridian: its radius at 31 degrees
    with pytest.raises(DataError, match=rf"does not overlap .*, {km:.1f} km from centre to centre"):
        align(root, WHU, tmp_path / "out")
    write_fake(root, "whu-opt-sar", sar_transform=moved(DEGREES, 0, 47))
    write_fake(root, "whu-opt-sar", label_transform=moved(DEGREES, -55, 0))
    shares = align(root, WHU, tmp_path / "out")
    assert shares == {tmp_path / "out" / "lbl" / NAME: pytest.approx(1 / 56, abs=0.02)}


@pytest.mark.parametrize("sar_crs", ['LOCAL_CS["here",UNIT["metre",1]]', "IAU_2015:30100"])
def test_a_crs_from_which_nothing_leads_to_the_other_is_said(tmp_path: Path, sar_crs: str) -> None:
    crs = rasterio.crs.CRS.from_string(sar_crs)
    write_fake(tmp_path / "data", "whu-opt-sar", sar_crs=crs)
    with pytest.raises(DataError, match=r"no transformation leads from one CRS to the other; give"):
        align(tmp_path / "data", WHU, tmp_path / "out")
    same = {f"{role}_crs": crs for role in ("optical", "sar", "label")}
    write_fake(tmp_path / "data", "whu-opt-sar", sar_transform=moved(DEGREES, 5, 0), **same)
    (share,) = align(tmp_path / "data", WHU, tmp_path / "out").values()
    assert share == 51 / 56


@needs_real
def test_a_real_pair_of_differing_grids_is_aligned(tmp_path: Path) -> None:
    text = load_layout("pairs").source.read_text()
    for old, new in (
        ("bands: [red, green, blue]", "bands: [red]"),
        ("rgb: [red, green, blue]", "rgb: [red, red, red]"),
        ("stretched8", "reflectance"),
        ("scaling: amplitude8", "scaling: db"),
        ("  nodata: 0\nsplit", "split"),
    ):
        text = text.replace(old, new)
    (tmp_path / "own.yaml").write_text(text)
    layout = load_layout(str(tmp_path / "own.yaml"))
    for role, file in (("optical", "s2_B4.tif"), ("sar", "s1_VH.tif")):
        (tmp_path / "data" / role).mkdir(parents=True)
        source = REAL / "ssl4eo_grid_mismatch" / file
        (tmp_path / "data" / role / "a.tif").write_bytes(source.read_bytes())
    align(tmp_path / "data", layout, tmp_path / "out")
    (scene,) = find_scenes(tmp_path / "out", layout)
    scene.check()
    assert 0.9 < scene.read()["valid"].mean() < 1
