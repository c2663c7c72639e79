"""Tokens against scipy.ndimage, NumPy and scikit-learn, from the files on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.decomposition import PCA
from torch import Tensor

from umsf_lib.clustering.smoothing import NODATA_WEIGHT, Ground, valid_weight
from umsf_lib.clustering.tokens import (
    PrincipalTokens,
    StatisticTokens,
    draw_tokens,
    local_statistics,
    moments,
    pixel_bands,
    token_validity,
)
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore

from ..conftest import CPU
from ..fakes import bands, truth, write_fake

SIGMAS = (1.5, 3.0)


def pooled(plane: np.ndarray, stride: int) -> np.ndarray:
    """Mean of each block of pixels; those at the far edges may be smaller."""
    rows, cols = (math.ceil(n / stride) for n in plane.shape)
    blocks = [
        [
            plane[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean()
            for j in range(cols)
        ]
        for i in range(rows)
    ]
    return np.array(blocks)


def only(store: PixelStore, scenes: SceneSet, role: str) -> PixelStore:
    return PixelStore(scenes, {role: scenes.statistics[role]}, store.device)


# Bands and indices


@pytest.mark.parametrize("name", ["whu", "terramesh"])
def test_indices_are_those_of_the_source_values(name: str, request) -> None:
    scenes = request.getfixturevalue(name)
    store, names = request.getfixturevalue(f"{name}_store"), scenes.layout.optical.bands
    for scene in (0, 4):
        values, labels = pixel_bands(store, scene)
        found, valid = truth(scenes, scene), truth(scenes, scene)["valid"]
        band = {
            b: found["optical"][names.index(b)].astype(float)[valid]
            for b in ("red", "green", "nir")
        }
        expected = {
            "ndvi": (band["nir"] - band["red"]) / (band["nir"] + band["red"]),
            "ndwi": (band["green"] - band["nir"]) / (band["green"] + band["nir"]),
        }
        for index, by_hand in expected.items():
            plane = values[labels.index(index)].numpy()
            np.testing.assert_allclose(plane[valid], by_hand, atol=1e-4)


def test_bands_come_in_order_with_their_names(whu, whu_store, terramesh_store, pairs) -> None:
    values, names = pixel_bands(whu_store, 0)
    assert names == ["blue", "green", "red", "nir", "ndvi", "ndwi", "sar"]
    found = truth(whu, 0)
    ground, scale = found["valid"], whu.statistics  # on the scale of all scenes
    for role, part in (("optical", values[:4]), ("sar", values[6:])):
        mean, std = (np.array(scale[role][key])[:, None] for key in ("mean", "std"))
        source = found["optical" if role == "optical" else "ln_sar"][:, ground]
        np.testing.assert_allclose(part[:, ground], (source - mean) / std, atol=1e-4)
    values, names = pixel_bands(terramesh_store, 0)
    assert len(names) == len(values) == 16 and names[12:] == ["ndvi", "ndwi", "vv", "vh"]
    batch = terramesh_store.scene(0)  # on that scale already, to the last digit
    assert torch.equal(values[:12], batch["optical"][0])
    assert torch.equal(values[14:], batch["sar"][0])
    values, names = pixel_bands(PixelStore(pairs, pairs.statistics, CPU), 0)
    assert names == ["red", "green", "blue", "vh"]  # no near infrared, no index
    assert pixel_bands(only(whu_store, whu, "sar"), 0)[1] == ["sar"]
    assert pixel_bands(only(whu_store, whu, "optical"), 0)[1][-1] == "ndwi"


def test_negative_reflectance_does_not_blow_up_an_index(tmp_path) -> None:
    layout = load_layout("terramesh")
    optical = bands(layout, "optical")
    for band in ("red", "nir", "green"):
        optical[layout.optical.bands.index(band), :20] -= 2000
    optical[layout.optical.bands.index("red"), 30] = -optical[layout.optical.bands.index("nir"), 30]
    write_fake(tmp_path / "data", "terramesh", optical=optical)
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    store = PixelStore(scenes, scenes.statistics, CPU)
    values, names = pixel_bands(store, 0)
    for index in ("ndvi", "ndwi"):
        assert values[names.index(index)].abs().max() <= 1


# Local statistics


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(24, 32, 4), (23, 30, 4), (9, 7, 1), (17, 21, 8)]
)
def test_local_statistics_equal_slow_ones(height: int, width: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 1 + 2 * torch.randn(3, height, width, generator=generator)
    found = local_statistics(Ground(images), SIGMAS, stride).numpy()
    expected = []
    for sigma in SIGMAS:
        means, stds = [], []
        for plane in images.double().numpy():
            options = {"mode": "nearest", "radius": math.ceil(3 * sigma)}
            mean = ndimage.gaussian_filter(plane, sigma, **options)
            squares = ndimage.gaussian_filter(plane**2, sigma, **options)
            means.append(pooled(mean, stride))
            stds.append(pooled(np.log(np.sqrt(np.maximum(squares - mean**2, 1e-4))), stride))
        expected += means + stds
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_nodata_takes_no_part_in_local_statistics() -> None:
    """Against the Gaussian mean of the valid pixels alone, one pixel at a time."""
    rng, side, sigma = np.random.default_rng(0), 20, 1.5
    plane, valid = rng.normal(3, 2, (side, side)), np.ones((side, side), bool)
    valid[:9, 3:] = False
    weight = torch.from_numpy(np.where(valid, 1, NODATA_WEIGHT)).float()[None]
    filled = np.where(valid, plane, 0)
    image = torch.from_numpy(filled).float()[None]
    found = local_statistics(Ground(image, weight), [sigma], 1).numpy()
    reach = math.ceil(3 * sigma)
    for i, j in [(9, 5), (10, 12), (12, 7), (3, 1), (15, 15)]:  # beside the border and far from it
        rows, cols = (np.arange(n - reach, n + reach + 1).clip(0, side - 1) for n in (i, j))
        away = (np.arange(-reach, reach + 1) ** 2)[:, None] + np.arange(-reach, reach + 1) ** 2
        share = np.exp(-away / (2 * sigma**2)) * valid[np.ix_(rows, cols)]
        share, values = share / share.sum(), plane[np.ix_(rows, cols)]
        mean = (share * values).sum()
        std = math.sqrt((share * values**2).sum() - mean**2)
        np.testing.assert_allclose(found[:, i, j], [mean, math.log(std)], atol=0.01)


def test_local_statistics_of_flat_ground_are_finite() -> None:
    found = local_statistics(Ground(torch.full((1, 12, 12), 3.0)), SIGMAS, 4)
    assert torch.allclose(found[0::2], torch.full((2, 3, 3), 3.0), atol=1e-5)
    assert found[1::2].max() < math.log(0.02) and found.isfinite().all()


def test_a_token_is_valid_when_half_of_its_pixels_are(whu: SceneSet, whu_store) -> None:
    for scene in range(len(whu.records)):
        valid = truth(whu, scene)["valid"]
        for stride in (1, 4, 5):
            expected = pooled(valid.astype(float), stride) >= 0.5
            found = token_validity(whu_store, scene, stride).numpy()
            np.testing.assert_array_equal(found, expected)


# Standardised tokens


def raw(store: PixelStore, scene: int, stride: int) -> np.ndarray:
    ground = Ground(pixel_bands(store, scene)[0], valid_weight(store, scene))
    return local_statistics(ground, SIGMAS, stride).numpy()


def ruled(scenes: SceneSet, optical: str, sar: str) -> PixelStore:
    """The store of scenes whose layout standardises like this."""
    rules = {"optical": optical, "sar": sar}
    sensors: dict[str, Any] = {
        role: replace(scenes.layout.sensor(role), standardise=rule) for role, rule in rules.items()
    }
    layout = replace(scenes.layout, **sensors)
    return PixelStore(replace(scenes, layout=layout), scenes.statistics, CPU)


@pytest.mark.parametrize(
    ("optical", "sar", "own"),
    [
        ("shrunken", "shrunken", [0.5] * 7),
        ("scene", "scene", [1] * 7),
        ("set", "scene", [0] * 6 + [1]),  # four bands and two indices, then SAR
        ("shrunken", "set", [0.5] * 6 + [0]),
    ],
)
def test_statistics_are_standardised_as_their_sensor(whu: SceneSet, optical, sar, own) -> None:
    """A half-way mix of scene and set is one of the statistics, not twice one of the bands."""
    store, share = ruled(whu, optical, sar), np.tile(own, 4)[:, None]  # of 2 scales, mean and std
    tokens = StatisticTokens(store, [0, 1], SIGMAS, 4)
    plain = PixelStore(replace(whu, layout=ruled(whu, "set", "set").layout), whu.statistics, CPU)
    valid = {scene: token_validity(store, scene, 4).numpy() for scene in (0, 1, 3)}
    inside = {scene: raw(plain, scene, 4)[:, ground] for scene, ground in valid.items()}
    train = np.concatenate([inside[0], inside[1]], axis=1)
    for scene in (0, 3):
        found = tokens(scene).numpy()
        assert found.shape == (2 * 2 * 7, *valid[scene].shape)
        mean, std = (
            share * getattr(inside[scene], name)(1)[:, None]
            + (1 - share) * getattr(train, name)(1)[:, None]
            for name in ("mean", "std")
        )
        np.testing.assert_allclose(found[:, valid[scene]], (inside[scene] - mean) / std, atol=2e-3)


def test_one_sensor_alone_is_standardised_as_with_both(whu: SceneSet) -> None:
    store = ruled(whu, "scene", "set")
    both = StatisticTokens(store, [0, 1], (2.0,), 4)(0)
    optical, sar = (
        StatisticTokens(
            PixelStore(replace(whu, layout=store.layout), {role: whu.statistics[role]}, CPU),
            [0, 1],
            (2.0,),
            4,
        )(0)
        for role in ("optical", "sar")
    )
    assert torch.allclose(optical, both[[*range(6), *range(7, 13)]], atol=1e-4)
    assert torch.allclose(sar, both[[6, 13]], atol=1e-4)


def test_calibrated_statistics_share_one_scale(terramesh: SceneSet, terramesh_store) -> None:
    train = [0, 2]
    tokens = StatisticTokens(terramesh_store, train, SIGMAS, 4)
    inside = [
        raw(terramesh_store, scene, 4)[:, token_validity(terramesh_store, scene, 4).numpy()]
        for scene in train
    ]
    together = np.concatenate(inside, axis=1)
    mean, std = together.mean(1)[:, None, None], together.std(1)[:, None, None]
    for scene in (0, 4):
        expected = (raw(terramesh_store, scene, 4) - mean) / std
        np.testing.assert_allclose(tokens(scene).numpy(), expected, atol=1e-3)


def test_principal_tokens_equal_scikit_learn(whu_store: PixelStore) -> None:
    tokens = StatisticTokens(whu_store, [0, 1], SIGMAS, 4)
    sample = draw_tokens(tokens, whu_store, [0, 1], 4, 150, seed=0)
    found = PrincipalTokens(tokens, sample, 5)(3)
    assert found.shape[0] == 5 and found.dtype == torch.float32
    flat = tokens(3).flatten(1).T.double().numpy()
    expected = PCA(5, svd_solver="full").fit(sample).transform(flat)
    sign = np.sign((found.flatten(1).T.numpy() * expected).sum(0))  # the solver chooses the sign
    np.testing.assert_allclose(found.flatten(1).T.numpy() * sign, expected, atol=1e-3)


# Drawing


def numbered(store: PixelStore, stride: int):
    """Token map whose tokens are (scene, row, col)."""

    def token_map(scene: int) -> Tensor:
        rows, cols = token_validity(store, scene, stride).shape
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        return torch.stack([torch.full_like(row, scene), row, col]).float()

    return token_map


def test_tokens_are_drawn_evenly_from_valid_ground_without_repeats(whu_store) -> None:
    stride, scenes = 4, [1, 3, 4]
    drawn = draw_tokens(numbered(whu_store, stride), whu_store, scenes, stride, 181, seed=3)
    assert drawn.dtype == np.float64 and len(np.unique(drawn, axis=0)) == len(drawn)
    assert np.unique(drawn[:, 0], return_counts=True)[1].tolist() == [60, 60, 60]
    for scene, row, col in drawn.astype(int):
        assert token_validity(whu_store, scene, stride)[row, col]
    every = draw_tokens(numbered(whu_store, stride), whu_store, scenes, stride, 10**6, seed=3)
    valid = sum(int(token_validity(whu_store, scene, stride).sum()) for scene in scenes)
    assert len(every) == valid  # a small set is taken whole


def test_draws_follow_the_seed(whu_store: PixelStore) -> None:
    token_map = numbered(whu_store, 4)
    first, again, other = (draw_tokens(token_map, whu_store, [0], 4, 30, s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_moments_of_parts_are_those_of_all() -> None:
    parts = [200 + torch.randn(3, n) * torch.tensor([[0.1], [1.0], [9.0]]) for n in (5, 400, 37)]
    mean, std = moments(iter(parts))
    together = torch.cat(parts, dim=1).double()
    assert torch.allclose(mean.double(), together.mean(dim=1), rtol=1e-6)
    assert torch.allclose(std.double(), together.std(dim=1, correction=0), rtol=1e-5)
    assert (moments([torch.ones(2, 4)])[1] > 0).all()  # a constant band divides by more than 0
