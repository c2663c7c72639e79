"""Neighbours: even in the disc, on real ground, across sheet edges, alike where asked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio import Affine
from scipy import stats
from torch import Tensor

from umsf_lib.config import PretrainConfig
from umsf_lib.data.layout import load_layout
from umsf_lib.data.map_sheets import sheet_of
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.pretraining.neighbours import Neighbours, alike, draw_in_disc, lay_out

from ..fakes import METRES, UTM, write_fake

SIZE = 8  # of a window, px
WEST, EAST, TEST = "NH49E001013", "NH49E001014", "NH49E001015"  # side by side, from west to east


def make_set(folder: Path, sides: int, grids: dict[str, Any], **images: np.ndarray) -> SceneSet:
    """Scenes of ``sides`` px with the CRS and transform of each; TEST is not trained on."""
    for name, (crs, transform) in grids.items():
        optical = images.get(name, np.random.default_rng(1).integers(90, 110, (4, sides, sides)))
        place = {f"{r}_crs": crs for r in ("optical", "sar", "label")}
        place |= {f"{r}_transform": transform for r in ("optical", "sar", "label")}
        pictures: dict[str, Any] = {"optical": optical.astype(np.uint8)}
        pictures |= {"sar": np.full((1, sides, sides), 50, np.uint8), "label": None}
        write_fake(folder / "data", "whu-opt-sar", name, **pictures, **place)
    found = prepare(folder / "data", load_layout("whu-opt-sar"), folder / "prepared")
    return replace(found, split={"train": [n for n in grids if n != TEST], "test": [TEST]})


@pytest.fixture(scope="module")
def row_of_three(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Three scenes of 80 px of 10 m that touch: two to train, the third to test."""
    grids = {
        name: (UTM, Affine(10, 0, 500_000 + 800 * k, 0, -10, 3_400_000))
        for k, name in enumerate((WEST, EAST, TEST))
    }
    return make_set(tmp_path_factory.mktemp("row"), 80, grids)


def neighbours_of(scenes: SceneSet, radius_m: float, **changes: Any) -> Neighbours:
    config = replace(PretrainConfig(), neighbour_m=radius_m, **changes)
    return Neighbours(scenes, ("optical", "sar"), SIZE, config)


def draw(near: Neighbours, scene: int, row: int, col: int, count: int = 4000) -> tuple[Tensor, ...]:
    place = (torch.full((count,), value) for value in (scene, row, col))
    return near.draw(tuple(place), torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def test_offsets_fill_the_disc_evenly() -> None:
    dy, dx = draw_in_disc(40, 200, 30.0, torch.Generator().manual_seed(2)).flatten(0, 1).T.numpy()
    share_of_area = (dx**2 + dy**2) / 30**2
    turn = np.arctan2(dy, dx) / (2 * math.pi) + 0.5
    for values in (share_of_area, turn):
        assert stats.kstest(values, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(share_of_area, turn)[0, 1]) < 0.04


def test_neighbours_in_one_scene_are_even_over_the_pixels_of_the_disc(
    row_of_three: SceneSet,
) -> None:
    scene, row, col = draw(neighbours_of(row_of_three, 50), 0, 36, 36, 20_000)
    assert (scene == 0).all()
    offsets, counts = np.unique(
        torch.stack([row - 36, col - 36]).numpy(), axis=1, return_counts=True
    )
    near = np.hypot(*offsets) < 4  # pixels that lie wholly in the disc of 5 px: each as likely
    assert near.sum() == 45 and np.hypot(*offsets).max() < 5.8
    expected = 20_000 / (math.pi * 25)
    assert stats.chisquare(counts[near], np.full(45, counts[near].mean())).pvalue > 0.01
    assert counts[near].mean() == pytest.approx(expected, rel=0.03)


def test_at_a_corner_the_ground_that_is_there_is_filled(row_of_three: SceneSet) -> None:
    """A quarter of the disc is left; it is used as evenly, and never left."""
    scene, row, col = draw(neighbours_of(row_of_three, 200), 0, 0, 0)
    assert (scene == 0).all() and (row >= 0).all() and (col >= 0).all()
    distance = torch.hypot(row.double(), col.double())
    assert distance.max() <= 20.8
    assert (distance < 10).double().mean() == pytest.approx(0.25, abs=0.04)
    assert (distance == 0).double().mean() < 0.01  # its own neighbour only where all else fails


def test_radius_zero_gives_the_anchor(row_of_three: SceneSet) -> None:
    place = tuple(torch.tensor(v) for v in ([0, 1, 0], [0, 72, 31], [5, 72, 8]))
    found = neighbours_of(row_of_three, 0).draw(place, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(found, place, strict=True))


def test_across_an_edge_the_place_is_right_on_the_ground(row_of_three: SceneSet) -> None:
    """Anchor at the west scene's east border: no window straddles it, so a gap of 8 px is left."""
    radius = 300.0
    scene, row, col = draw(neighbours_of(row_of_three, radius), 0, 36, 72)
    easting, northing = 500_000 + 800 * scene + 10 * col, 3_400_000 - 10 * row
    away = torch.hypot(easting - 500_720.0, northing - 3_399_640.0)
    assert away.max() <= radius + 8  # half a pixel along each axis
    assert set(scene.tolist()) == {0, 1}
    # West of the anchor the half disc; east of it what lies 8 px further, in the next scene.
    beyond = radius**2 * math.acos(80 / radius) - 80 * math.sqrt(radius**2 - 80**2)
    expected = beyond / (beyond + math.pi * radius**2 / 2)
    assert (scene == 1).double().mean() == pytest.approx(expected, abs=0.03)


def test_a_scene_that_does_not_train_lends_no_ground(row_of_three: SceneSet) -> None:
    scene, *_ = draw(neighbours_of(row_of_three, 300), 1, 36, 72)
    assert set(scene.tolist()) <= {0, 1}  # the test scene touches on the east
    ground = neighbours_of(row_of_three, 300).ground
    assert ground.plane.tolist() == [0, 0, 2]
    assert ground.origin.tolist() == [[0, 0], [0, 80], [0, 0]]


@pytest.mark.parametrize("georeferenced", [True, False])
def test_sheets_touch_by_their_coordinates_or_by_their_names(
    tmp_path: Path, georeferenced: bool
) -> None:
    south = "NH49E002013"
    grids: dict[str, Any] = {}
    for name in (WEST, EAST, south, "place", TEST):
        sheet = sheet_of(name)
        step = (
            Affine(0.25 / 80, 0, sheet.west_deg, 0, -1 / 6 / 80, sheet.north_deg) if sheet else None
        )
        known = georeferenced and step is not None
        grids[name] = ("EPSG:4326", step) if known else (None, Affine.identity())
    scenes = make_set(tmp_path, 80, grids)
    ground = lay_out(scenes, 7.0)
    at = {r.name: i for i, r in enumerate(scenes.records)}
    planes = [int(ground.plane[at[name]]) for name in (WEST, EAST, south)]
    assert len(set(planes)) == 1 and int(ground.plane[at["place"]]) not in planes
    assert ground.origin[at[EAST]].tolist() == [0, 80]
    assert ground.origin[at[south]].tolist() == [80, 0]
    height, width = ground.pixel_m[at[WEST]].tolist()
    latitude = math.radians(32 - 1 / 12)
    meridian_m = parallel_m = 6371e3  # by names on a sphere, by coordinates on the ellipsoid WGS 84
    if georeferenced:
        flat = 1 - 0.00669438 * math.sin(latitude) ** 2
        meridian_m, parallel_m = 6378137 * (1 - 0.00669438) / flat**1.5, 6378137 / flat**0.5
    assert height == pytest.approx(math.radians(1 / 6 / 80) * meridian_m, rel=1e-4)
    width_m = math.radians(1 / 4 / 80) * parallel_m * math.cos(latitude)
    assert width == pytest.approx(width_m, rel=1e-4)
    assert ground.pixel_m[at["place"]].tolist() == [7.0, 7.0]


def test_scenes_of_another_pixel_size_or_system_lie_on_another_plane(tmp_path: Path) -> None:
    names = [f"NH49E00101{k}" for k in range(4)]
    fine, coarse = Affine(10, 0, 5e5, 0, -10, 34e5), Affine(20, 0, 5e5 - 1600, 0, -20, 34e5)
    slightly = Affine(10.002, 0, 5e5 + 800, 0, -10.002, 34e5)  # as tiles warped one by one are
    systems = (UTM, UTM, UTM, "EPSG:32651")
    places = dict(
        zip(names, zip(systems, (fine, coarse, slightly, fine), strict=True), strict=True)
    )
    ground = lay_out(make_set(tmp_path, 80, places), 1.0)
    assert ground.plane.tolist() == [0, 1, 0, 3]
    assert ground.origin.tolist() == [[0, 0], [0, 0], [0, 80], [0, 0]]
    assert ground.pixel_m[1].numpy() == pytest.approx(2 * ground.pixel_m[0].numpy(), rel=1e-3)


def two_halves() -> np.ndarray:
    """Dark west, bright east, with some spread inside."""
    image = np.random.default_rng(0).integers(90, 110, (4, 80, 80))
    image[:, :, 40:] += 100
    return image


def test_the_filter_keeps_neighbours_on_their_side_of_a_border(tmp_path: Path) -> None:
    grids = {name: (UTM, METRES) for name in (WEST, TEST)}
    scenes = make_set(tmp_path, 80, grids, **{WEST: two_halves()})
    for roles in (("optical", "sar"), ("optical",)):
        config = replace(PretrainConfig(), neighbour_m=150.0)
        every = Neighbours(scenes, roles, SIZE, config)
        chosen = Neighbours(scenes, roles, SIZE, replace(config, homogeneity=0.5))
        for near, crossing in ((every, True), (chosen, False)):
            _, _, col = draw(near, 0, 36, 30, 1000)  # the window ends 2 px west of the border
            assert bool((col > 40).any()) == crossing
            assert 30 - 15 - 1 <= int(col.min()) < 20  # the disc is used on the own side


def test_windows_as_large_as_their_scenes_are_said_to_have_no_neighbours(tmp_path: Path) -> None:
    scenes = make_set(tmp_path, SIZE, {name: (UTM, METRES) for name in (WEST, TEST)})
    with pytest.warns(UserWarning, match=f"larger than a window of {SIZE} px.*views.window_px"):
        near = Neighbours(scenes, ("optical",), SIZE, PretrainConfig())
    assert set(map(int, torch.cat(draw(near, 0, 0, 0, 20)))) == {0}


def test_alike_is_an_effect_size() -> None:
    generator = np.random.default_rng(3)
    pixels = generator.normal(size=(2, 3, 64)) + generator.normal(size=(2, 3, 1))  # window, band
    a, b = (torch.tensor([1.0, x.var(axis=1).mean(), *x.mean(axis=1)]) for x in pixels)
    squares, spread = [], []
    for band in range(3):
        squares.append((pixels[0, band].mean() - pixels[1, band].mean()) ** 2)
        spread.append((pixels[0, band].var() + pixels[1, band].var()) / 2)
    effect = math.sqrt(np.mean(squares) / np.mean(spread))
    assert alike(a, b, effect * 1.001) and not alike(a, b, effect * 0.999)
    assert alike(a, a, 1e-6)


def test_the_table_holds_what_a_window_shows(whu: SceneSet) -> None:
    """Windows of 16 px, looked at every second pixel; entries lie a quarter of a window apart."""
    near = Neighbours(whu, ("optical",), 16, PretrainConfig())
    scene = whu.indices("train")[1]
    record = whu.records[scene]
    mean, std = (np.array(table["optical"])[:, None, None] for table in (record.mean, record.std))
    for corner in ((0, 0), (4, 8), (24, 20)):
        here = slice(corner[0] + 1, corner[0] + 16, 2), slice(corner[1] + 1, corner[1] + 16, 2)
        valid = whu.plane("valid", scene)[here]
        values = ((whu.plane("optical", scene) - mean) / std)[:, here[0], here[1]][:, valid]
        entry = near.looks.at(torch.tensor(scene), torch.tensor(corner))
        expected = [valid.mean(), values.var(axis=1).mean(), *values.mean(axis=1)]
        assert entry.numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_half_valid_windows_only(tmp_path: Path) -> None:
    image = np.full((4, 80, 80), 100)
    image[:, :, 20:] = 0  # nodata
    grids = {name: (UTM, METRES) for name in (WEST, TEST)}
    scenes = make_set(tmp_path, 80, grids, **{WEST: image})
    _, _, col = draw(neighbours_of(scenes, 400), 0, 36, 4, 2000)
    assert int(col.max()) in (16, 17)  # 4 of 8 columns; the table is 2 px coarse
