"""Compare statistics of simulated scenes with those of real imagery.

The targets were measured on WHU-OPT-SAR: on whole scenes for levels, spreads and class shares; on
eleven 256-px tiles, stretched and resampled, for classes and texture, so these are only a guide.
The near infrared of a class was never measured and has no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = ("blue", "green", "red", "nir", "sar")
CLASSES = ("farmland", "city", "village", "water", "forest", "road", "others")
SCENE_MEAN = (104.7, 96.7, 79.1, 100.8, 54.0)  # DN, of BANDS
SCENE_STD = (14.6, 16.5, 19.7, 29.9, 48.3)
SHARES = (40.4, 3.8, 5.7, 6.4, 40.7, 1.0, 1.9)  # %, of CLASSES
# Rows: CLASSES. Columns: class mean minus tile mean in blue, green, red, SAR; std in the same (DN).
CONTRASTS = {
    "farmland": (-0.8, -0.2, 0.7, -0.1, 15, 15, 18, 37),
    "city": (10, 13, 20, 6, 17, 19, 24, 59),
    "village": (5, 4, 6, 20, 22, 23, 28, 58),
    "water": (-4, -5, -10, -16, 18, 21, 23, 42),
    "forest": (-8, -10, -14, 0, 15, 17, 20, 37),
    "road": (7, 7, 6, -13, 16, 18, 26, 40),
    "others": (6, 6, 7, 6, 24, 26, 29, 47),
}
CONTRAST_BANDS = (0, 1, 2, 4)  # of BANDS: no near infrared
LAGS = (1, 2, 4, 8, 16)  # px
AUTOCORRELATION = {"optical": (0.87, 0.67, 0.48, 0.33, 0.21), "sar": (0.73, 0.42, 0.24, 0.14, 0.07)}
BOUNDARY_DENSITY = 0.058  # of horizontal steps from pixel to pixel cross a label's border
VARIATION = {"fields and forest": ((0, 4), 0.52), "water": ((3,), 0.89)}  # SAR std / mean, 8 x 8 px
CV_SIDE = 8
TILE_PX = 256


@dataclass(frozen=True)
class Comparison:
    """One statistic of the simulator, its target, and the tolerated difference."""

    group: str  # of statistics of one kind, "class shares"
    name: str  # "road share %"
    target: float
    value: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the tolerance; NaN is not."""
        return bool(abs(self.value - self.target) <= self.tolerance)

    @property
    def deviation(self) -> float:
        """Distance from the target in tolerances, negative below it."""
        return (self.value - self.target) / self.tolerance


def compare(images: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]]) -> list:
    """Compute all statistics of some scenes.

    Args:
        images: ``(5, H, W)`` DN in the order of ``BANDS``, one per scene; sides of 256 px or more.
        labels: ``(H, W)`` class ids in the order of ``CLASSES``.

    Returns:
        One ``Comparison`` per statistic.
    """
    rows = levels(images) + class_shares(labels)
    images, labels = ([t for array in arrays for t in tiles(array)] for arrays in (images, labels))
    rows += class_contrasts(images, labels) + autocorrelations(images) + variations(images, labels)
    density = float(np.mean([boundary_density(t) for t in labels if np.ptp(t)]))  # mixed tiles
    name = "label boundaries"
    return [*rows, _relative(name, name, BOUNDARY_DENSITY, density, 0.3)]


def _relative(group: str, name: str, target: float, value: float, share: float) -> Comparison:
    return Comparison(group, name, target, float(value), share * abs(target))


def tiles(array: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut ``(..., H, W)`` into tiles of 256 px, like the real ones; the rest is dropped."""
    height, width = array.shape[-2:]
    rows, cols = (range(0, side - TILE_PX + 1, TILE_PX) for side in (height, width))
    return [array[..., r : r + TILE_PX, c : c + TILE_PX] for r in rows for c in cols]


def levels(images: Sequence[NDArray[np.uint8]]) -> list[Comparison]:
    """Compare mean (within 10 %) and std (30 %) of each band over all scenes."""
    pixels = [image.reshape(len(BANDS), -1).astype(np.float32) for image in images]
    mean = np.mean([p.mean(axis=1) for p in pixels], axis=0)
    square = np.mean([np.square(p).mean(axis=1) for p in pixels], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    rows = [
        _relative("band means", f"{b} mean", t, m, 0.1)
        for b, t, m in zip(BANDS, SCENE_MEAN, mean, strict=True)
    ]
    return rows + [
        _relative("band stds", f"{b} std", t, s, 0.3)
        for b, t, s in zip(BANDS, SCENE_STD, std, strict=True)
    ]


def class_shares(labels: Sequence[NDArray[np.uint8]]) -> list[Comparison]:
    """Compare the share of each class over all scenes in percent, within 30 % of the target."""
    counts = sum(np.bincount(label.ravel(), minlength=len(CLASSES)) for label in labels)
    shares = 100 * np.asarray(counts) / np.sum(counts)
    pairs = zip(CLASSES, SHARES, shares, strict=True)
    return [
        _relative("class shares", f"{name} share %", target, share, 0.3)
        for name, target, share in pairs
    ]


def class_contrasts(
    images: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]]
) -> list[Comparison]:
    """Compare class mean minus tile mean (within 50 % or 3 DN) and std within the class (25 %).

    The pixels of all tiles are pooled, after the mean of each tile was subtracted.
    """
    relative = [_own_mean_removed(image[list(CONTRAST_BANDS)]) for image in images]
    rows = []
    for index, (name, table) in enumerate(CONTRASTS.items()):
        parts = [x[:, label == index] for x, label in zip(relative, labels, strict=True)]
        pixels = np.concatenate(parts, axis=1)  # (4, n)
        for k, band in enumerate(CONTRAST_BANDS):
            title, wanted = f"{name} {BANDS[band]}", table[k]
            sensor = "SAR" if BANDS[band] == "sar" else "optical"
            mean = float(pixels[k].mean()) if pixels.size else np.nan
            std = float(pixels[k].std()) if pixels.size else np.nan
            near, group = max(3.0, 0.5 * abs(wanted)), f"class contrasts, {sensor}"
            rows.append(Comparison(group, f"{title} contrast", wanted, mean, near))
            group = f"stds within a class, {sensor}"
            rows.append(_relative(group, f"{title} std", table[k + 4], std, 0.25))
    return rows


def _own_mean_removed(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = image.astype(np.float32)
    centred: NDArray[np.float32] = values - values.mean(axis=(1, 2), keepdims=True)
    return centred


def autocorrelations(images: Sequence[NDArray[np.uint8]]) -> list[Comparison]:
    """Compare autocorrelation along rows at several lags, within 0.08.

    The optical value is the mean over blue, green and red.
    """
    found = np.mean([[autocorrelation(band, LAGS) for band in image] for image in images], axis=0)
    values = {"optical": found[:3].mean(axis=0), "sar": found[4]}
    return [
        Comparison(
            "autocorrelations", f"{sensor} autocorrelation at {lag} px", target, float(value), 0.08
        )
        for sensor, targets in AUTOCORRELATION.items()
        for lag, target, value in zip(LAGS, targets, values[sensor], strict=True)
    ]


def autocorrelation(band: NDArray[np.uint8], lags: Sequence[int]) -> list[float]:
    """Correlate a band ``(H, W)`` with itself, shifted along its rows by each lag (px)."""
    values = band.astype(np.float32)
    values = values - values.mean()
    power = float(np.square(values).mean()) or np.nan  # a constant band correlates with nothing
    return [float((values[:, lag:] * values[:, :-lag]).mean()) / power for lag in lags]


def variations(
    images: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]]
) -> list[Comparison]:
    """Compare the median coefficient of variation of SAR in 8 x 8 px of one cover, within 15 %."""
    rows = []
    for name, (classes, target) in VARIATION.items():
        pairs = zip(images, labels, strict=True)
        found = np.concatenate([variation(i[4], np.isin(label, classes)) for i, label in pairs])
        value = float(np.median(found)) if found.size else np.nan
        rows.append(_relative("SAR variation", f"SAR variation on {name}", target, value, 0.15))
    return rows


def variation(band: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compute std / mean ``(n,)`` of windows of 8 x 8 px that lie inside a mask ``(H, W)``."""
    height, width = (side // CV_SIDE * CV_SIDE for side in band.shape)
    shape = (height // CV_SIDE, CV_SIDE, width // CV_SIDE, CV_SIDE)
    windows = band[:height, :width].reshape(shape).astype(np.float32)
    whole = inside[:height, :width].reshape(shape).all(axis=(1, 3))
    mean, std = windows.mean(axis=(1, 3)), windows.std(axis=(1, 3))
    found: NDArray[np.float32] = (std / np.maximum(mean, 1e-6))[whole]
    return found


def boundary_density(label: NDArray[np.uint8]) -> float:
    """Return the share of horizontal steps from pixel to pixel that change the class."""
    return float((label[:, 1:] != label[:, :-1]).mean())
