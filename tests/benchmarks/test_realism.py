"""Statistics of the simulator, on fields whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from benchmarks.realism import (
    CONTRASTS,
    SCENE_MEAN,
    SCENE_STD,
    SHARES,
    Comparison,
    autocorrelation,
    boundary_density,
    class_contrasts,
    class_shares,
    compare,
    levels,
    tiles,
    variation,
)
from umsf_lib.simulation.sensors import simulate_scene

RNG = np.random.default_rng(0)


def test_autocorrelation_of_a_first_order_process() -> None:
    noise = RNG.normal(size=(400, 2000))
    field = lfilter([1.0], [1.0, -0.8], noise, axis=1)[:, 200:]  # rho(lag) = 0.8 ** lag
    band = np.clip(128 + 20 * field, 0, 255).astype(np.uint8)
    expected = [0.8**lag for lag in (1, 2, 4, 8)]
    np.testing.assert_allclose(autocorrelation(band, (1, 2, 4, 8)), expected, atol=0.02)


@pytest.mark.parametrize("width", [1, 4, 25])
def test_stripes_cross_a_border_once_a_stripe(width: int) -> None:
    label = (np.arange(200) // width % 2).astype(np.uint8)[None].repeat(3, axis=0)
    assert boundary_density(label) == pytest.approx((200 // width - 1) / 199)


def test_variation_of_speckle_inside_the_mask_only() -> None:
    amplitude = np.sqrt(RNG.gamma(1.0, 1.0, (800, 800))) * 40  # Rayleigh: sqrt(4 / pi - 1)
    inside = np.zeros((800, 800), bool)
    inside[:403, :] = True
    found = variation(np.clip(amplitude, 0, 255).astype(np.uint8), inside)
    assert len(found) == 50 * 100
    assert np.median(found) == pytest.approx(np.sqrt(4 / np.pi - 1), abs=0.02)


def painted() -> tuple[np.ndarray, np.ndarray]:
    """A tile of seven stripes, whose values lie as far from a common level as the targets say."""
    label = (np.arange(256) * 7 // 256).astype(np.uint8)[None].repeat(256, axis=0)
    table = np.array([[*row[:3], 0, row[3]] for row in CONTRASTS.values()])  # (7, 5)
    mean, share = table[label].mean(axis=(0, 1)), 100 + table[label]
    return np.round(share - mean).astype(np.uint8).transpose(2, 0, 1), label


def test_contrasts_are_relative_to_the_tile() -> None:
    image, label = painted()
    brighter = [(image, label), (image + 40, label)]  # another level, the same contrasts
    rows = {row.name: row for row in class_contrasts(*zip(*brighter, strict=True))}
    assert len(rows) == 7 * 4 * 2
    shift = np.mean(
        [row.value - row.target for n, row in rows.items() if n.endswith("red contrast")]
    )
    for name, row in rows.items():
        if name.endswith("red contrast"):
            assert row.value - row.target == pytest.approx(shift, abs=1.0), name  # both rounded
        if name.endswith("std"):
            assert row.value == pytest.approx(0, abs=1e-3) and not row.passed


def test_shares_and_levels_that_hit_their_targets_pass() -> None:
    counts = np.round(np.array(SHARES) * 100).astype(int)
    label = np.repeat(np.arange(7, dtype=np.uint8), counts).reshape(1, -1)
    assert all(row.passed for row in class_shares([label]))
    assert not class_shares([np.zeros((4, 4), np.uint8)])[1].passed
    image = np.stack(
        [RNG.normal(m, s, (300, 300)) for m, s in zip(SCENE_MEAN, SCENE_STD, strict=True)]
    )
    rows = levels([np.clip(image, 0, 255).astype(np.uint8)])
    assert len(rows) == 10 and all(row.passed for row in rows)
    assert not any(row.passed for row in levels([np.full((5, 9, 9), 255, np.uint8)]))


def test_tiles_cut_the_last_two_axes() -> None:
    array = np.arange(2 * 600 * 520, dtype=np.int64).reshape(2, 600, 520)
    found = tiles(array)
    assert [t.shape for t in found] == [(2, 256, 256)] * 4
    assert np.array_equal(found[3], array[:, 256:512, 256:512])


def test_a_missing_class_fails_instead_of_passing_silently() -> None:
    image, label = painted()
    rows = {row.name: row for row in compare([image], [np.minimum(label, 5)])}
    assert np.isnan(rows["others red contrast"].value) and not rows["others red contrast"].passed
    near, far = (Comparison("", "x", 1.0, value, 0.2) for value in (1.1, 0.7))
    assert near.passed and not far.passed
    assert (near.deviation, far.deviation) == pytest.approx((0.5, -1.5))


def test_realistic_scenes_are_like_real_imagery_and_easy_ones_are_not() -> None:
    """Few small scenes, so rare classes may miss; the benchmark takes twenty large ones."""
    passed = {}
    for difficulty in ("easy", "realistic"):
        made = [simulate_scene(100 + k, 384, 384, difficulty) for k in range(6)]
        images = [np.concatenate([scene["optical"], scene["sar"]]) for scene in made]
        rows = compare(images, [scene["label"] // 10 - 1 for scene in made])
        assert len(rows) == 86
        passed[difficulty] = {row.name for row in rows if row.passed}
        if difficulty == "realistic":
            missed = [row for row in rows if not row.passed]
            common = ("band", "autocorrelations", "SAR variation", "label boundaries")
            assert [row for row in missed if row.group.startswith(common)] == []
    assert len(passed["easy"]) < 50 and len(passed["realistic"]) > 65
