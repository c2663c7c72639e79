"""The simulator: its form, its laws, and that it takes both sensors to read the land."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.special import digamma, polygamma
from scipy.stats import gamma, kstest
from sklearn.ensemble import RandomForestClassifier

from umsf_lib.clustering.tokens import StatisticTokens
from umsf_lib.config import ConfigError, DataError, load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import valid_labels
from umsf_lib.data.stage import prepare
from umsf_lib.data.synthetic import scene_names, sheet_transform, write_scenes
from umsf_lib.data.windows import PixelStore
from umsf_lib.simulation.difficulty import EASY
from umsf_lib.simulation.landscape import make_landscape, vary
from umsf_lib.simulation.sensors import gamma_speckle, mean_amplitude, simulate_scene
from umsf_lib.simulation.terrain import (
    CITY,
    FARMLAND,
    FOREST,
    OTHERS,
    VILLAGE,
    WATER,
    drainage,
    smooth_noise,
    stamp,
)

from ..conftest import CPU


def test_a_scene_has_the_form_of_whu_and_follows_its_seed() -> None:
    scene = simulate_scene(5, 120, 152)
    assert {k: (v.shape, v.dtype) for k, v in scene.items()} == {
        "optical": ((4, 120, 152), np.uint8),
        "sar": ((1, 120, 152), np.uint8),
        "label": ((120, 152), np.uint8),
    }
    assert scene["optical"].min() >= 1 and scene["sar"].min() >= 1  # 0 means no data
    assert set(np.unique(scene["label"])) <= set(range(10, 71, 10))
    again, other = simulate_scene(5, 120, 152), simulate_scene(6, 120, 152)
    for role, values in scene.items():
        assert np.array_equal(values, again[role])
        assert not np.array_equal(values, other[role])


def test_written_scenes_are_read_back_in_place_with_colours(tmp_path: Path) -> None:
    names = scene_names(2)
    write_scenes(tmp_path, names, 3, 96, 100, difficulty="easy")
    layout = load_layout("whu-opt-sar")
    for name in names:
        for folder, bands in (("optical", 4), ("sar", 1), ("lbl", 1)):
            with rasterio.open(tmp_path / folder / name) as file:
                assert file.count == bands and file.shape == (96, 100)
                assert file.crs.to_epsg() == 4326
                assert file.transform.almost_equals(sheet_transform(name))
        with rasterio.open(tmp_path / "lbl" / name) as file:
            colors = file.colormap(1)
        assert all(colors[c.code][:3] == c.rgb for c in layout.classes)
    # A scene depends on its own name and the seed, not on which others are written.
    write_scenes(tmp_path / "one", names[1:], 3, 96, 100, difficulty="easy")
    first, second = (p / "sar" / names[1] for p in (tmp_path, tmp_path / "one"))
    assert first.read_bytes() == second.read_bytes()


def test_sheets_lie_where_their_names_say() -> None:
    """NH49: 28-32 N, 108-114 E; sheets of 10' by 15' (METHODS 1.1.4)."""
    first, below = sheet_transform("NH49E001001.tif"), sheet_transform("NH49E002002.tif")
    assert (first.c, first.f) == (108, 32)
    assert below.c - first.c == pytest.approx(0.25)
    assert first.f - below.f == pytest.approx(1 / 6)
    assert first.a * 3600 == pytest.approx(0.16199, abs=1e-5)
    names = scene_names(100)
    assert len(set(names)) == 100
    with pytest.raises(DataError, match="288"):
        scene_names(289)


def test_land_has_the_measured_shares() -> None:
    counts = sum(
        np.bincount(make_landscape(512, 512, s, EASY).label.ravel(), minlength=7) for s in range(8)
    )
    shares = counts / counts.sum()
    for land, wanted in enumerate(EASY.share):
        tolerance = 0.5 if land in (CITY, VILLAGE, OTHERS) else 0.3  # few sites per scene
        assert shares[land] == pytest.approx(wanted, rel=tolerance), land


def test_land_comes_about_by_processes() -> None:
    land = make_landscape(512, 512, 3, EASY)
    south, east = np.gradient(land.elevation, 5.0)
    slope = np.hypot(south, east)
    assert slope[land.label == FOREST].mean() > 2 * slope[land.label == FARMLAND].mean()
    assert (land.building[np.isin(land.label, (CITY, VILLAGE))] > 0).mean() > 0.1
    assert not land.building[np.isin(land.label, (FOREST, WATER, FARMLAND))].any()
    for parcel in np.unique(land.parcel)[:50]:  # rows of a field have one direction
        here = (land.parcel == parcel) & np.isin(land.label, (FARMLAND, FOREST))
        assert here.sum() < 2 or np.ptp(land.row_direction[here]) == 0
    boundary = (land.label[:, 1:] != land.label[:, :-1]).mean()
    assert 0.01 < boundary < 0.06  # drawn areas, not salt and pepper


def test_drainage_equals_a_plain_flood() -> None:
    """Each cell drains to where the lowest flood from the border came from."""
    elevation = smooth_noise((14, 17), 4, np.random.default_rng(0))
    receiver, area = drainage(elevation)
    flat, (height, width) = elevation.ravel(), elevation.shape
    heap = [
        (flat[r * width + c], r * width + c, r * width + c)
        for r in range(height)
        for c in range(width)
        if r in (0, height - 1) or c in (0, width - 1)
    ]
    heapq.heapify(heap)
    level = {cell: value for value, cell, _ in heap}
    while heap:
        value, cell, _ = heapq.heappop(heap)
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                r, c = cell // width + dr, cell % width + dc
                near = r * width + c
                if 0 <= r < height and 0 <= c < width and near not in level:
                    level[near] = max(value, flat[near])
                    heapq.heappush(heap, (level[near], near, cell))
    for cell, to in enumerate(receiver):
        assert level[to] <= level[cell]  # water never climbs, not even out of a hollow
        assert max(abs(cell // width - to // width), abs(cell % width - to % width)) <= 1
    outlets = receiver == np.arange(len(receiver))
    assert area[outlets].sum() == elevation.size  # and none is lost
    passed = np.ones_like(area)
    for start in range(len(receiver)):  # count by walking every drop
        here = start
        while receiver[here] != here:
            here = receiver[here]
            passed[here] += 1
    assert np.array_equal(area, passed)


def test_stamps_are_discs() -> None:
    mask = np.zeros((30, 40), bool)
    stamp(mask, np.array([[10.0, 12.0], [0.0, 39.0]]), np.array([3.0, 2.0]))
    rows, cols = np.indices(mask.shape)
    expected = np.hypot(rows - 10, cols - 12) <= 3
    expected |= np.hypot(rows, cols - 39) <= 2
    assert np.array_equal(mask, expected)


def test_noise_has_unit_variance_and_its_scale() -> None:
    rng = np.random.default_rng(0)
    for scale in (3, 20):
        noise = np.concatenate([smooth_noise((300, 300), scale, rng).ravel() for _ in range(6)])
        assert noise.std() == pytest.approx(1, abs=0.1)
    parcel = (np.indices((200, 200)).sum(0) // 20).astype(np.int32)
    fields = np.ones((200, 200), bool)
    values = [vary(fields, parcel, np.random.default_rng(s)).std() for s in range(12)]
    assert np.mean(values) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("looks", "correlation_px"), [(1, 0.0), (4, 0.0), (1, 1.0), (3, 1.5)])
def test_speckle_follows_the_gamma_law(looks: float, correlation_px: float) -> None:
    noise = gamma_speckle((600, 600), looks, np.random.default_rng(1), correlation_px)
    assert noise.mean() == pytest.approx(1, abs=0.03)
    assert noise.var() == pytest.approx(1 / looks, rel=0.06)
    assert np.log(noise).mean() == pytest.approx(digamma(looks) - np.log(looks), abs=0.03)
    assert np.log(noise).var() == pytest.approx(polygamma(1, looks), rel=0.06)
    apart = noise[::12, ::12].ravel()  # far enough to be independent
    assert kstest(apart, gamma(looks, scale=1 / looks).cdf).pvalue > 0.01
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.01 if correlation_px == 0 else neighbours > 0.5


def test_mean_amplitude_has_the_known_values() -> None:
    found = [round(mean_amplitude(looks), 4) for looks in (1, 2, 3, 4)]
    assert found == [0.8862, 0.9400, 0.9594, 0.9693]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 40}, "40 x 96 px.*use 96"),
        ({"difficulty": "hard"}, "'hard'.*easy, mild, realistic"),
    ],
)
def test_what_cannot_be_made_is_refused(change: dict[str, object], message: str) -> None:
    request = {"seed": 0, "height": 96, "width": 96, "difficulty": "easy"} | change
    with pytest.raises(ConfigError, match=message):
        simulate_scene(**request)  # type: ignore[arg-type]


def test_mild_scenes_are_easy_ones_with_rare_classes_less_rare() -> None:
    def shares(difficulty: str) -> np.ndarray:
        labels = [simulate_scene(k, 256, 256, difficulty)["label"] // 10 - 1 for k in range(6)]
        return np.bincount(np.ravel(labels), minlength=7) / np.size(labels)

    easy, mild = shares("easy"), shares("mild")
    rare = [1, 2, 3, 5, 6]
    assert (mild[rare] > 1.2 * easy[rare]).all() and (mild[[0, 4]] < easy[[0, 4]]).all()


def test_both_sensors_together_read_what_neither_reads_alone(tmp_path: Path) -> None:
    """A random forest with labels on the statistics of unseen scenes (DESIGN 7)."""
    names = scene_names(8)
    write_scenes(tmp_path, names, 100, 384, 384, difficulty="easy")
    parts = ["train:", *names[:5], "test:", *names[5:]]
    (tmp_path / "split.txt").write_text("\n".join(parts) + "\n")
    scenes = prepare(tmp_path, load_layout("whu-opt-sar"), tmp_path / "prepared")
    sigmas = load_config("quick").cluster.sigmas_px
    correct = {}
    for sensors in ("optical,sar", "optical", "sar"):
        moments = {role: scenes.statistics[role] for role in sensors.split(",")}
        store = PixelStore(scenes, moments, CPU)
        tokens = StatisticTokens(store, scenes.indices("train"), sigmas, stride=4)
        x, y = {}, {}
        for part in ("train", "test"):
            which = scenes.indices(part)
            x[part] = np.concatenate([tokens(s).flatten(1).T.numpy() for s in which])
            y[part] = np.concatenate([valid_labels(scenes, s)[2::4, 2::4].ravel() for s in which])
        forest = RandomForestClassifier(30, min_samples_leaf=5, random_state=0, n_jobs=2)
        forest.fit(x["train"][::3], y["train"][::3])
        correct[sensors] = (forest.predict(x["test"]) == y["test"]).mean()
    assert correct["optical,sar"] > correct["optical"] + 0.05
    assert correct["optical,sar"] > correct["sar"] + 0.1
    assert 0.8 < correct["optical,sar"] < 0.95
    assert np.bincount(y["test"]).max() / len(y["test"]) < 0.6
