"""Damaged and odd input: each is named with the file, or passes without harm to anything else."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine

from umsf_lib.config import IGNORE, DataError
from umsf_lib.data import stage as module
from umsf_lib.data.check import report, survey
from umsf_lib.data.layout import load_layout
from umsf_lib.data.rasters import opened
from umsf_lib.data.scene import find_scenes
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore
from umsf_lib.run import sha256_of

from .fakes import DEGREES, SET, WGS84, bands, codes, write_fake

WHU = load_layout("whu-opt-sar")
ROLES = ("optical", "sar", "lbl")


def write_whu(root: Path, compress: str | None = "deflate", rows: int = 700) -> None:
    """One good scene of several tiles, compressed or not."""
    rng = np.random.default_rng(0)
    for role, count in zip(ROLES, (4, 1, 1), strict=True):
        values = rng.integers(1, 255, (count, rows, 300), dtype=np.uint8)
        values = values if role != "lbl" else values % 7 * 10 + 10
        (root / role).mkdir(parents=True, exist_ok=True)
        form: dict[str, Any] = {"driver": "GTiff", "count": count, "height": rows, "width": 300}
        form |= {"dtype": "uint8", "crs": WGS84, "transform": DEGREES, "tiled": True}
        form |= {"compress": compress} if compress else {}
        with rasterio.open(root / role / f"{SET[0]}.tif", "w", **form) as target:
            target.write(values)


def left_behind(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def hashes(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# -- damaged files ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("compress", ["deflate", None])
@pytest.mark.parametrize("damage", ["empty", "header only", "header lost", "30 %", "90 %"])
def test_cut_files_are_named(tmp_path: Path, role: str, compress: str | None, damage: str) -> None:
    write_whu(tmp_path / "data", compress)
    path = tmp_path / "data" / role / f"{SET[0]}.tif"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "header only": whole[:12],
            "header lost": whole[200:],
            "30 %": whole[: len(whole) * 3 // 10],
            "90 %": whole[: len(whole) * 9 // 10],
        }[damage]
    )
    before = hashes(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    said = str(caught.value)
    assert f"{path} ({path.stat().st_size} bytes)" in said and "again" in said
    assert left_behind(tmp_path / "prepared") == [] and hashes(tmp_path / "data") == before


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_flipped_bit_of_a_compressed_file_is_named(tmp_path: Path, share: float) -> None:
    write_whu(tmp_path / "data")
    path = tmp_path / "data" / "optical" / f"{SET[0]}.tif"
    flip(path, share)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    assert str(path) in str(caught.value) and "damaged" in str(caught.value)
    assert left_behind(tmp_path / "prepared") == []
    assert len(survey(tmp_path / "data", WHU).defects) == 1


def test_a_silent_flip_changes_the_recorded_sha256(tmp_path: Path) -> None:
    """Without compression nothing in the file can tell; what a run records of its input does."""
    write_whu(tmp_path / "data", compress=None)
    good = prepare(tmp_path / "data", WHU, tmp_path / "good").folder
    flip(tmp_path / "data" / "sar" / f"{SET[0]}.tif", 0.5)
    bad = prepare(tmp_path / "data", WHU, tmp_path / "bad").folder
    same = {
        r: sha256_of(good / f"{r}.npy") == sha256_of(bad / f"{r}.npy") for r in ("optical", "sar")
    }
    assert same == {"optical": True, "sar": False}
    assert sha256_of(good / "manifest.json") != sha256_of(bad / "manifest.json")


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.parametrize("file", ["GF2/1.jpg", "GF3/1.jpg", "label/1.png"])
def test_cut_pictures_are_named(tmp_path: Path, file: str, share: float) -> None:
    layout = write_fake(tmp_path / "data", "ddhr-sk", "1")
    path = tmp_path / "data" / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data", layout, tmp_path / "prepared")
    said = str(caught.value)
    assert f"{path} ({path.stat().st_size} bytes)" in said and said.endswith("again.")
    assert left_behind(tmp_path / "prepared") == []
    assert len(survey(tmp_path / "data", layout).defects) == 1


@pytest.mark.parametrize(("name", "file"), [("ddhr-sk", "GF2/1.jpg"), ("naip", "train/1.npy")])
def test_silent_flips_of_pictures_and_arrays_change_the_sha256(
    tmp_path: Path, name: str, file: str
) -> None:
    layout, recorded = write_fake(tmp_path / "data", name, "1"), []
    for _ in range(2):
        scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
        recorded.append(json.loads((scenes.folder / "manifest.json").read_text())["files"])
        flip(tmp_path / "data" / file, 0.5)
    assert recorded[0]["optical.npy"] != recorded[1]["optical.npy"]
    assert recorded[0]["valid.npy"] == recorded[1]["valid.npy"]


# -- odd values ------------------------------------------------------------------------------


def finite_windows(scenes: SceneSet) -> None:
    statistics = scenes.statistics
    for table in statistics.values():
        assert np.isfinite([*table["mean"], *table["std"]]).all() and min(table["std"]) > 0
    store = PixelStore(scenes, statistics, torch.device("cpu"))
    zero = torch.zeros(1, dtype=torch.int64)
    batch = store.windows(zero, zero, zero, (48, 56))
    for role in ("optical", "sar"):
        assert torch.isfinite(batch[role]).all()
        assert (batch[role][~batch["valid"].expand_as(batch[role])] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_masked_values_change_no_statistics(tmp_path: Path, value: float) -> None:
    """NaN, infinite and nodata pixels of reflectance: as if they were not there."""
    layout = load_layout("terramesh")
    rng = np.random.default_rng(1)
    optical = bands(layout, "optical").astype(np.float32)
    hole = rng.random((48, 56)) < 0.1
    optical[3, hole] = value
    sar = bands(layout, "sar")
    sar[1, :2] = np.nan
    write_fake(tmp_path / "data", "terramesh", optical=optical, sar=sar)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    valid = ~hole
    valid[:2] = False
    np.testing.assert_array_equal(scenes.plane("valid", 0), valid)
    found = scenes.statistics
    np.testing.assert_allclose(found["optical"]["mean"], optical[:, valid].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        found["sar"]["mean"], sar[:, valid].mean(axis=1) * np.log(10) / 10, rtol=1e-6
    )
    finite_windows(scenes)


def test_zero_and_negative_intensities_stay_finite(tmp_path: Path) -> None:
    """Products with the noise taken off have a few negative powers."""
    text = load_layout("terramesh").source.read_text().replace("scaling: db", "scaling: intensity")
    (tmp_path / "own.yaml").write_text(text)
    layout = load_layout(str(tmp_path / "own.yaml"))
    sar = np.random.default_rng(0).gamma(2, 0.1, (2, 48, 56))
    sar[0, 3, :9], sar[1, 4, :9] = 0, -0.01
    write_fake(tmp_path / "data", "terramesh", sar=sar)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    assert scenes.plane("valid", 0).all()
    finite_windows(scenes)


@pytest.mark.parametrize("code", [35, 80])
def test_codes_beside_the_known_ones_are_refused(tmp_path: Path, code: int) -> None:
    label = codes(WHU)
    label[20, :7] = code
    write_fake(tmp_path / "data", "whu-opt-sar", label=label)
    with pytest.raises(DataError, match=rf"lbl.NH49E001013\.tif has unknown codes {code} \(7 px\)"):
        prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    assert left_behind(tmp_path / "prepared") == []


def test_a_scene_without_a_label_is_prepared_beside_those_with_one(tmp_path: Path) -> None:
    write_fake(tmp_path / "data", "whu-opt-sar", SET[0])
    write_fake(tmp_path / "data", "whu-opt-sar", SET[1], label=None)
    scenes = prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    unlabelled = [(scenes.plane("label", index) == IGNORE).all() for index in range(2)]
    assert unlabelled == [False, True] and scenes.plane("valid", 1).all()
    assert "Labels: 1 scenes" in "\n".join(report(survey(tmp_path / "data", WHU)))


def test_a_label_of_background_alone_is_read_but_scores_nothing(tmp_path: Path) -> None:
    write_fake(tmp_path / "data", "whu-opt-sar", label=np.zeros((48, 56), np.uint8))
    scenes = prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    assert (scenes.plane("label", 0) == IGNORE).all() and scenes.plane("valid", 0).all()
    text = "\n".join(report(survey(tmp_path / "data", WHU)))
    assert "ignored (code 0): 100.0%" in text and "farmland (code 10): 0.0%" in text


def test_a_rotated_grid_is_refused_beside_a_straight_one(tmp_path: Path) -> None:
    d, cos, sin = DEGREES, math.cos(0.02), math.sin(0.02)
    turned = Affine(d.a * cos, -d.a * sin, d.c, d.e * sin, d.e * cos, d.f)
    write_fake(tmp_path, "whu-opt-sar", sar_transform=turned)
    (scene,) = find_scenes(tmp_path, WHU)
    (text,) = scene.defects()
    assert "grids (up to" in text and text.count("shear") == 1 and text.count("origin") == 2
    every = {f"{role}_transform": turned for role in ("optical", "sar", "label")}
    write_fake(tmp_path, "whu-opt-sar", **every)
    assert scene.defects() == []


# -- names and places ------------------------------------------------------------------------


def test_two_files_of_one_stem_are_both_named(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar")
    for other in ("NH49E001013.TIF", "NH49E001013.tiff"):
        shutil.copy(tmp_path / "sar" / "NH49E001013.tif", tmp_path / "sar" / other)
    with pytest.raises(DataError, match=r"Two files are called NH49E001013: .*TIF and .*tif.*; 1"):
        find_scenes(tmp_path, WHU)
    assert len(survey(tmp_path, WHU).defects) == 2


def test_one_name_in_two_parts_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        layout = write_fake(tmp_path, "whu-readme", "tile_1", part=part)
    with pytest.raises(DataError, match=r"called tile_1: .*test.*and .*train"):
        find_scenes(tmp_path, layout)


def test_extensions_may_be_written_in_any_case(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar")
    for role, ending in zip(ROLES, (".TIF", ".tiff", ".Tif"), strict=True):
        path = tmp_path / role / "NH49E001013.tif"
        path.rename(path.with_suffix(ending))
    (scene,) = find_scenes(tmp_path, WHU)
    scene.check()
    assert scene.name == "NH49E001013" and scene.label is not None


def test_spaces_unicode_and_links_in_paths(tmp_path: Path) -> None:
    root = tmp_path / "Données s1 [été]" / "湖北 100%"
    write_fake(root, "whu-opt-sar", "село 1")
    (tmp_path / "elsewhere").mkdir()
    (root / "sar").rename(tmp_path / "elsewhere" / "sar")
    (root / "sar").symlink_to(tmp_path / "elsewhere" / "sar")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        scenes = prepare(place, WHU, tmp_path / "vorbereitet für später")
        assert [record.name for record in scenes.records] == ["село 1"]
        np.testing.assert_array_equal(scenes.plane("sar", 0), bands(WHU, "sar"))


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    write_fake(tmp_path, "whu-opt-sar")
    path = tmp_path / "sar" / "NH49E001013.tif"
    path.unlink()
    path.symlink_to(tmp_path / "gone.tif")
    (scene,) = find_scenes(tmp_path, WHU)
    with pytest.raises(DataError, match=r"sar.NH49E001013\.tif \(missing\)"), opened(path):
        pass
    assert len(scene.defects()) == 1
    with pytest.raises(DataError, match=r"sar.NH49E001013\.tif is missing"):
        prepare(tmp_path, WHU, tmp_path / "prepared")


def test_the_source_is_only_read(tmp_path: Path) -> None:
    """A read-only folder will do; what is made of it goes elsewhere."""
    root = tmp_path / "data"
    write_fake(root, "whu-opt-sar")
    before, folders = hashes(root), [root, *(root / role for role in ROLES)]
    for folder in folders:
        folder.chmod(0o555)
    try:
        prepare(root, WHU, tmp_path / "prepared")
        assert survey(root, WHU).defects == []
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert hashes(root) == before


# -- a full disk -----------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    write_whu(tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    said = str(caught.value)  # 4 + 1 bands, label and valid, one byte each
    assert f"{700 * 300 * 7 / 1e9:.3f} GB" in said and "0.001 GB are free" in said
    assert str(tmp_path / "prepared") in said and "UMSF_ROOT" in said
    assert left_behind(tmp_path / "prepared") == []


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    for name in SET[:2]:
        write_fake(tmp_path / "data", "whu-opt-sar", name)
    copy, calls = module._copy_scene, []

    def fill(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy_scene", fill)
        with pytest.raises(DataError, match=r"prepared is full; .*UMSF_ROOT"):
            prepare(tmp_path / "data", WHU, tmp_path / "prepared")
    assert left_behind(tmp_path / "prepared") == []
    assert len(prepare(tmp_path / "data", WHU, tmp_path / "prepared").records) == 2
