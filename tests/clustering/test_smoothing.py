"""The guided filter against a slow regression, and what it must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umsf_lib.clustering.smoothing import (
    GRAIN_PX,
    NODATA_WEIGHT,
    RIDGE,
    Ground,
    gaussian_blur,
    guide_of,
    linear_fits,
    smooth_pixels,
    smooth_tokens,
)
from umsf_lib.data.windows import PixelStore


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_fits_are_weighted_ridge_regressions() -> None:
    """Place by place, by normal equations in float64."""
    maps, bands, sigma = drawn(3, 9, 8).softmax(0), drawn(2, 9, 8, seed=1), 1.5
    reach = math.ceil(3 * sigma)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    line /= line.sum()
    pad = ((0, 0), (reach, reach), (reach, reach))
    wide = [np.pad(x.double().numpy(), pad, mode="edge") for x in (maps, bands)]
    weight = np.outer(line, line).ravel()
    slopes, offsets = np.zeros((2, 3, 9, 8)), np.zeros((3, 9, 8))
    for row in range(9):
        for col in range(8):
            here = (slice(None), slice(row, row + len(line)), slice(col, col + len(line)))
            y, x = (plane[here].reshape(len(plane), -1) for plane in wide)
            y_mean, x_mean = y @ weight, x @ weight
            residue = (x - x_mean[:, None]) * weight
            normal = residue @ (x - x_mean[:, None]).T + RIDGE * np.eye(2)
            slopes[..., row, col] = np.linalg.solve(normal, residue @ (y - y_mean[:, None]).T)
            offsets[:, row, col] = y_mean - slopes[..., row, col].T @ x_mean
    expected = [
        gaussian_blur(torch.from_numpy(x).float().reshape(1, -1, 9, 8), sigma)[0]
        for x in (slopes, offsets)
    ]
    found = linear_fits(maps, Ground(bands), sigma)
    torch.testing.assert_close(found[0].flatten(0, 1), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stride", "sigma_px"), [(1, 0.0), (1, 6.0), (2, 8.0), (4, 0.0), (4, 16.0), (8, 16.0)]
)
def test_pixels_keep_sums_and_constants(stride: int, sigma_px: float) -> None:
    height, width = 37, 51
    guide = Ground(drawn(3, height, width, seed=1))
    shape = (6, math.ceil(height / stride), math.ceil(width / stride))
    found = smooth_pixels(drawn(*shape).softmax(0), guide, stride, sigma_px)
    assert found.shape == (6, height, width) and found.min() >= 0
    torch.testing.assert_close(found.sum(0), torch.ones(height, width))
    flat = smooth_pixels(torch.full(shape, 1 / 6), guide, stride, sigma_px)
    torch.testing.assert_close(flat, torch.full((6, height, width), 1 / 6))
    tokens = smooth_tokens(torch.full(shape, 1 / 6), guide, stride, sigma_px)
    torch.testing.assert_close(tokens, torch.full(shape, 1 / 6))


def test_pixels_lie_between_token_centres() -> None:
    """Without smoothing: bilinear along each axis, token centres at (k + .5) stride."""
    stride, height, width = 4, 22, 17
    tokens = drawn(3, 6, 5)
    found = smooth_pixels(tokens, Ground(torch.zeros(1, height, width)), stride, 0).numpy()
    centres = [(np.arange(n) + 0.5) * stride for n in (6, 5)]
    pixels = [np.arange(n) + 0.5 for n in (height, width)]
    for channel, plane in enumerate(tokens.double().numpy()):
        tall = np.array([np.interp(pixels[0], centres[0], column) for column in plane.T]).T
        both = np.array([np.interp(pixels[1], centres[1], row) for row in tall])
        np.testing.assert_allclose(found[channel], both, atol=1e-5)


def test_noise_goes_and_a_strip_narrower_than_the_reach_stays() -> None:
    """A Gaussian of that reach swallows it."""
    column = torch.arange(96)
    strip = ((column >= 46) & (column < 58)).float().expand(64, 96)
    guide, truth = 4 * strip[None] + 0.2 * drawn(1, 64, 96), torch.stack([1 - strip, strip])
    noisy = (F.avg_pool2d(truth, 4) + 0.4 * drawn(2, 16, 24, seed=2)).softmax(0)
    found = smooth_pixels(noisy, Ground(guide), 4, 16.0).argmax(0)
    blurred = gaussian_blur(noisy[None], 4.0)[0].argmax(0)
    assert (found == strip).float().mean() > 0.99
    assert not blurred.any()


def test_even_ground_is_a_plain_average() -> None:
    posteriors = drawn(3, 16, 16).softmax(0)
    expected = gaussian_blur(gaussian_blur(posteriors[None], 2.0), 2.0)[0]
    found = smooth_tokens(posteriors, Ground(torch.ones(2, 64, 64)), 4, 8.0)
    torch.testing.assert_close(found, expected)


def test_an_answer_linear_in_the_bands_is_kept() -> None:
    bands = 10 * drawn(1, 64, 64)  # so varied that the ridge does not count
    bands = gaussian_blur(bands[None], GRAIN_PX)[0]
    share = (bands - bands.min()) / (bands.max() - bands.min())
    posteriors = torch.cat([share, 1 - share])
    torch.testing.assert_close(
        smooth_tokens(posteriors, Ground(bands), 1, 4.0), posteriors, atol=0.01, rtol=0
    )


def test_the_guide_is_every_band_of_every_sensor(whu_store: PixelStore) -> None:
    windows = whu_store.scene(3)
    planes = [plane.clone() for role in whu_store.roles for plane in windows[role][0]]
    torch.testing.assert_close(guide_of(whu_store, 3).bands, torch.stack(planes))


def test_nodata_takes_no_part_in_smoothing() -> None:
    """Other posteriors and other bands on nodata change nothing on valid ground."""
    valid = torch.ones(1, 48, 48)
    valid[:, :20] = NODATA_WEIGHT
    guide, posteriors = drawn(2, 48, 48), drawn(3, 12, 12).softmax(0)
    found = [], []
    for level in (0.0, 1.0):
        posteriors[:, :5] = torch.tensor([level, 1 - level, 0.0])[:, None, None]
        guide[:, :20] = 3 * level
        found[0].append(smooth_tokens(posteriors, Ground(guide, valid), 4, 8.0)[:, 5:])
        found[1].append(smooth_pixels(posteriors, Ground(guide, valid), 4, 8.0)[:, 24:])
    for before, after in found:
        assert torch.allclose(before, after, atol=0.02)
    mixed = smooth_tokens(posteriors, Ground(guide), 4, 8.0)[:, 5:]
    assert not torch.allclose(mixed, found[0][1], atol=0.05)
