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
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene import find_scenes

from ..fakes import DEGREES, METRES, bands, codes, write_fake
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
    with pytest.raises(OSError, match="No space"):
        align(root, WHU, target)
    assert [p.name for p in target.rglob("*") if p.is_file()] == [NAME]  # the whole SAR file


def test_the_command_says_what_it_resampled(tmp_path: Path, capsys) -> None:
    root, target = tmp_path / "data", tmp_path / "out"
    write_fake(root, "whu-opt-sar", sar_transform=moved(DEGREES, 1, 0))
    options = ["data", "align", str(root), "--layout", "whu-opt-sar", "--output", str(target)]
    assert main([*options, "--resampling", "cubic"]) == 0
    out = capsys.readouterr().out
    assert (
        f"resampled: {target / 'sar' / NAME}" in out and f"{target}: 1 resampled, the others" in out
    )


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
