"""Views: geometry by coordinate images, speckle by the Gamma law, filters by scipy.ndimage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, special, stats
from torch import Tensor

from umsf_lib.clustering.smoothing import gaussian_blur
from umsf_lib.config import ViewConfig
from umsf_lib.models.speckle import draw_speckle
from umsf_lib.pretraining.augmentations import (
    View,
    apply_affine,
    blur,
    draw_geometry,
    draw_matches,
    invert_affine,
    make_view,
    photometric_optical,
    photometric_sar,
    resample,
    sample_tokens,
)

from ..conftest import CPU

STILL = ViewConfig(gain=0, offset=0, blur=0, speckle_looks=0, sar_gain=0)  # geometry only


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(batch: int, size: int) -> Tensor:
    """Image ``(B, 2, size, size)`` whose pixels hold their own x and y in [-1, 1]."""
    line = (2 * torch.arange(size) + 1) / size - 1
    x, y = line[None, :].expand(size, size), line[:, None].expand(size, size)
    return torch.stack([x, y]).expand(batch, 2, size, size).clone()


def through(theta: Tensor, points: Tensor) -> np.ndarray:
    """Points through an affine map, one after another in NumPy."""
    out = np.empty(points.shape)
    for b, matrix in enumerate(theta.double().numpy()):
        for n, point in enumerate(points[b].double().numpy()):
            out[b, n] = matrix[:, :2] @ point + matrix[:, 2]
    return out


# Geometry


def test_crops_stay_inside_the_window() -> None:
    theta = draw_geometry(500, 0.4, seeded())
    assert theta.shape == (500, 2, 3)
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]).expand(500, 4, 2)
    assert apply_affine(theta, corners).abs().max() <= 1 + 1e-6
    scale = torch.linalg.det(theta[:, :, :2]).abs().sqrt()
    assert 0.4 <= scale.min() < 0.43 and 0.97 < scale.max() <= 1
    assert stats.kstest(scale.numpy(), stats.uniform(0.4, 0.6).cdf).pvalue > 0.01


def test_all_eight_orientations_come_equally_often() -> None:
    theta = draw_geometry(4000, 0.5, seeded())
    linear = theta[:, :, :2]
    signs = torch.sign(linear.round(decimals=4)).reshape(-1, 4)
    kinds, counts = signs.unique(dim=0, return_counts=True)
    assert len(kinds) == 8 and stats.chisquare(counts.numpy()).pvalue > 0.01
    gram = linear @ linear.transpose(1, 2)  # a similarity: scale^2 times the identity
    scale = torch.linalg.det(linear).abs()
    assert torch.allclose(gram, scale[:, None, None] * torch.eye(2), atol=1e-6)


def turn_and_flip(images: Tensor, index: int) -> Tensor:
    """Apply symmetry ``index`` (0 to 7, 0 = identity) of the square to images ``(B, C, h, w)``."""
    turned = torch.rot90(images, index % 4, (2, 3))
    return turned.flip(3) if index >= 4 else turned


def undo_turn_and_flip(images: Tensor, index: int) -> Tensor:
    """Apply the inverse of ``turn_and_flip``."""
    images = images.flip(3) if index >= 4 else images
    return torch.rot90(images, -(index % 4), (2, 3))


def test_the_whole_window_is_a_turn_and_flip_of_it() -> None:
    images = torch.randn(64, 3, 8, 8, generator=seeded())
    theta = draw_geometry(64, 1.0, seeded(1))
    found = resample(images, theta)
    kinds = set()
    for before, after in zip(images, found, strict=True):
        every = [turn_and_flip(before[None], k)[0] for k in range(8)]
        same = [k for k, turned in enumerate(every) if torch.allclose(turned, after, atol=1e-5)]
        assert len(same) == 1
        kinds |= set(same)
    assert kinds == set(range(8))


def test_affine_maps_and_their_inverse() -> None:
    theta = draw_geometry(20, 0.3, seeded())
    points = 2 * torch.rand(20, 7, 2, generator=seeded(1)) - 1
    np.testing.assert_allclose(
        apply_affine(theta, points).numpy(), through(theta, points), atol=1e-6
    )
    assert torch.allclose(invert_affine(theta, apply_affine(theta, points)), points, atol=1e-5)
    assert torch.allclose(apply_affine(theta, invert_affine(theta, points)), points, atol=1e-5)


def test_both_sensors_see_the_same_ground() -> None:
    """Coordinates painted into both sensors come out alike, and where theta says."""
    size = 32
    ground = coordinates(16, size)
    windows = {"optical": ground, "sar": ground.clone(), "sar_log_std": torch.ones(1, 2, 1, 1)}
    view = make_view(windows, STILL, seeded())
    assert torch.equal(view.images["optical"], view.images["sar"])
    centres = ground.flatten(2).transpose(1, 2)  # (B, n, 2) view coordinates of the pixels
    expected = through(view.theta, centres)
    found = view.images["sar"].flatten(2).transpose(1, 2).numpy()
    inside = np.abs(expected).max(axis=2) <= 1 - 1 / size  # beyond, the edge is mirrored
    assert inside.mean() > 0.9
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)


def test_two_views_differ_and_follow_the_generator_alone() -> None:
    windows = {"optical": torch.randn(4, 3, 16, 16), "sar": torch.randn(4, 1, 16, 16)}
    windows["sar_log_std"] = torch.ones(4, 1, 1, 1)

    def views(seed: int) -> list[View]:
        generator = seeded(seed)
        return [make_view(windows, ViewConfig(), generator) for _ in range(2)]

    torch.manual_seed(1)
    first = views(5)
    torch.manual_seed(2)
    for one, again in zip(first, views(5), strict=True):
        assert torch.equal(one.theta, again.theta)
        for role in ("optical", "sar"):
            assert torch.equal(one.images[role], again.images[role])
    assert not torch.equal(first[0].theta, first[1].theta)


@pytest.mark.parametrize("role", ["optical", "sar"])
def test_a_single_sensor_has_views_too(role: str) -> None:
    windows = {role: torch.randn(2, 2, 16, 16), "valid": torch.ones(2, 1, 16, 16, dtype=torch.bool)}
    units = {"sar_log_std": torch.ones(2, 2, 1, 1)} if role == "sar" else {}
    view = make_view(windows | units, ViewConfig(), seeded())
    assert set(view.images) == {role, *units} and view.images[role].isfinite().all()


# Matches


def test_matched_positions_show_the_same_ground() -> None:
    size, count = 32, 200
    ground = coordinates(24, size)
    generator = seeded(3)
    windows = {"sar": ground, "sar_log_std": torch.ones(1, 2, 1, 1)}
    first, second = (make_view(windows, STILL, generator) for _ in range(2))
    points_a, points_b, visible = draw_matches(first, second, count, generator)
    assert points_a.shape == points_b.shape == (24, count, 2) and visible.shape == (24, count)
    place = torch.from_numpy(through(first.theta, points_a)).float()
    assert points_a.abs().max() <= 1 and place.abs().max() <= 1 + 1e-6
    left = sample_tokens(first.images["sar"], points_a)
    right = sample_tokens(second.images["sar"], points_b)
    rim = 1 - 1.01 / size  # nearer to a border than half a pixel nothing can be interpolated
    inner = visible & (points_a.abs() < rim).all(2) & (points_b.abs() < rim).all(2)
    inner &= (place.abs() < 1 - 2 / size).all(2)
    assert inner.float().mean() > 0.5
    assert torch.allclose(left[inner], place[inner], atol=1e-4)
    assert torch.allclose(right[inner], place[inner], atol=1e-4)


def test_seen_means_inside_the_second_view() -> None:
    generator = seeded(4)
    first, second = (View({}, draw_geometry(50, 0.3, generator)) for _ in range(2))
    points_a, points_b, visible = draw_matches(first, second, 40, generator)
    place = through(first.theta, points_a)
    for b in range(50):
        corners = through(second.theta[[b]], torch.tensor([[[-1.0, -1], [1, 1]]]))[0]
        low, high = corners.min(axis=0), corners.max(axis=0)
        expected = ((place[b] > low) & (place[b] < high)).all(axis=1)
        np.testing.assert_array_equal(visible[b].numpy(), expected)
    np.testing.assert_allclose(through(second.theta, points_b), place, atol=1e-5)
    assert 0.05 < visible.float().mean() < 0.95


def test_sampling_at_a_token_centre_gives_that_token() -> None:
    maps = torch.randn(2, 5, 6, 8, generator=seeded())
    x, y = (2 * torch.arange(8) + 1) / 8 - 1, (2 * torch.arange(6) + 1) / 6 - 1
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2).reshape(1, 48, 2)
    values = sample_tokens(maps, points.expand(2, 48, 2))
    assert torch.allclose(values, maps.flatten(2).transpose(1, 2), atol=1e-5)


def test_sampling_is_grid_sample_with_its_gradient() -> None:
    points = 2.4 * torch.rand(2, 30, 2, generator=seeded()) - 1.2  # some beyond the border
    pull = torch.randn(2, 30, 5, generator=seeded(1))
    maps = torch.randn(2, 5, 6, 8, generator=seeded(2)).requires_grad_()
    usual = F.grid_sample(maps, points[:, :, None], align_corners=False, padding_mode="border")
    usual = usual[..., 0].transpose(1, 2)
    values = sample_tokens(maps, points)
    assert torch.allclose(values, usual, atol=1e-5)
    gradients = [torch.autograd.grad((v * pull).sum(), maps)[0] for v in (usual, values)]
    assert torch.allclose(*gradients, atol=1e-5)


# Photometry


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("looks", [1, 2, 4])
def test_speckle_has_the_moments_of_the_gamma_law(looks: int, correlated: bool) -> None:
    field = draw_speckle((4, 2, 160, 160), looks, seeded(looks), CPU, correlated=correlated)
    values = field.double().numpy()
    assert values.shape == (4, 2, 160, 160) and values.min() > 0
    assert abs(values.mean() - 1) < 0.01
    assert abs(values.var() * looks - 1) < 0.04
    logs = np.log(values)
    assert abs(logs.mean() - (special.digamma(looks) - math.log(looks))) < 0.02
    assert abs(logs.var() / special.polygamma(1, looks) - 1) < 0.04


@pytest.mark.parametrize("correlated", [True, False])
def test_speckle_is_gamma_and_not_only_its_moments(correlated: bool) -> None:
    field = draw_speckle((2, 1, 200, 200), 3, seeded(), CPU, correlated=correlated)
    apart = field[:, :, ::4, ::4].flatten().numpy()  # independent also when correlated
    assert stats.kstest(apart, stats.gamma(3, scale=1 / 3).cdf).pvalue > 0.01


def test_speckle_correlates_as_its_field_squared() -> None:
    """The field's lag-1 correlation is 2/3 by its kernel; intensities have its square."""
    for correlated, expected in ((True, 4 / 9), (False, 0.0)):
        field = draw_speckle((4, 2, 160, 160), 2, seeded(), CPU, correlated=correlated).numpy() - 1
        for a, b in ((field[..., 1:], field[..., :-1]), (field[..., 1:, :], field[..., :-1, :])):
            assert abs((a * b).mean() / field.var() - expected) < 0.02
        images = field.reshape(8, -1)
        assert abs(np.corrcoef(images)[np.triu_indices(8, 1)]).max() < 0.05


def test_optical_photometry_is_one_gain_and_offset_per_band() -> None:
    x = torch.randn(300, 3, 8, 8, generator=seeded())
    config = ViewConfig(gain=0.2, offset=0.1, blur=0)
    y = photometric_optical(x, config, seeded(1)).flatten(2)
    x = x.flatten(2)
    centred_x, centred_y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    gain = (centred_x * centred_y).sum(2) / centred_x.square().sum(2)
    assert torch.allclose(centred_y, gain[:, :, None] * centred_x, atol=1e-5)
    offset = (y.mean(2) - gain * x.mean(2)).numpy()
    assert abs(gain.mean() - 1) < 0.03 and abs(gain.std() - 0.2) < 0.02
    haze = np.cov(offset.T)  # bands share the haze, each has its own offset
    np.testing.assert_allclose(haze, 0.01 * (np.eye(3) + 1), atol=0.004)


def test_blur_is_binomial_and_comes_as_often_as_asked() -> None:
    x = torch.randn(400, 2, 9, 7, generator=seeded())
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = np.array(
        [[ndimage.convolve(b, kernel, mode="mirror") for b in i] for i in x.numpy()]
    )
    np.testing.assert_allclose(blur(x).numpy(), expected, atol=1e-5)
    y = photometric_optical(x, ViewConfig(gain=0, offset=0, blur=0.3), seeded(1)).numpy()
    blurred = np.isclose(y, expected, atol=1e-5).all(axis=(1, 2, 3))
    kept = np.isclose(y, x.numpy(), atol=1e-6).all(axis=(1, 2, 3))
    assert (blurred ^ kept).all() and abs(blurred.mean() - 0.3) < 0.07


def test_sar_photometry_adds_log_speckle_in_units_of_each_scene() -> None:
    x = torch.randn(6, 2, 64, 64, generator=seeded())
    log_std = torch.linspace(0.5, 3, 12).view(6, 2, 1, 1)
    config = ViewConfig(speckle_looks=4, sar_gain=0)
    added = (photometric_sar(x, log_std, config, seeded(1)) - x) * log_std
    apart = added[:, :, ::4, ::4].exp().flatten().numpy()
    assert stats.kstest(apart, stats.gamma(4, scale=1 / 4).cdf).pvalue > 0.01
    variance = added.flatten(2).var(2).numpy()
    np.testing.assert_allclose(variance, special.polygamma(1, 4), rtol=0.15)
    same = photometric_sar(x, torch.ones(1, 2, 1, 1), config, seeded(1))  # one std for all scenes
    assert torch.allclose(same - x, added, atol=1e-3)


def test_sar_gain_is_one_number_per_band_and_window() -> None:
    x = torch.zeros(500, 2, 4, 4)
    y = photometric_sar(
        x, torch.ones(1, 2, 1, 1), ViewConfig(speckle_looks=0, sar_gain=0.3), seeded()
    )
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    assert abs(y.std() - 0.3) < 0.03 and abs(np.corrcoef(y[:, :, 0, 0].T)[0, 1]) < 0.1


# Symmetries and smoothing


def test_turns_and_flips_are_the_eight_symmetries() -> None:
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    visible = set()
    for index in range(8):
        turned = turn_and_flip(images, index)
        expected = np.rot90(images.numpy(), index % 4, (2, 3))
        expected = expected[..., ::-1] if index >= 4 else expected
        np.testing.assert_array_equal(turned.numpy(), expected)
        assert torch.equal(undo_turn_and_flip(turned, index), images)
        visible.add(tuple(turned.flatten().tolist()))
    assert len(visible) == 8 and torch.equal(turn_and_flip(images, 0), images)
    oblong = torch.randn(1, 1, 3, 5)
    for index in range(8):
        assert torch.equal(undo_turn_and_flip(turn_and_flip(oblong, index), index), oblong)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.0, 1.5, 5.0])
@pytest.mark.parametrize("shape", [(40, 31), (6, 9)])
def test_gaussian_blur_equals_scipy(sigma: float, shape: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *shape, generator=seeded())
    radius = math.ceil(3 * sigma)
    expected = images.double().numpy()
    for axis in (2, 3):
        expected = ndimage.gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=radius)
    np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-5)


def test_gaussian_blur_keeps_sums_of_posteriors() -> None:
    posteriors = torch.randn(1, 5, 12, 10, generator=seeded()).softmax(1)
    assert torch.allclose(gaussian_blur(posteriors, 2.0).sum(1), torch.ones(1, 12, 10), atol=1e-5)


def test_views_are_made_in_float32_whatever_autocast_does() -> None:
    windows = {
        "optical": torch.rand(3, 4, 32, 32, generator=seeded()),
        "sar": torch.rand(3, 1, 32, 32, generator=seeded(1)),
        "sar_log_std": torch.ones(3, 1, 1, 1),
    }
    plain, inside = [], []
    for views, enabled in ((plain, False), (inside, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            view = make_view(windows, ViewConfig(blur=1.0), seeded(2))
        views += [view.images["optical"], view.images["sar"]]
    for usual, same in zip(plain, inside, strict=True):
        assert same.dtype == torch.float32 and torch.equal(usual, same)


def test_resampling_is_affine_grid_and_grid_sample() -> None:
    theta = draw_geometry(6, 0.5, seeded())
    images = torch.rand(6, 2, 24, 40, generator=seeded(1))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    usual = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    assert torch.allclose(resample(images, theta), usual, atol=1e-4)
