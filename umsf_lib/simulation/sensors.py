"""Synthetic sensors: a four-band camera and a radar that see the same simulated land.

The optical image starts from a mean spectrum per cover. Brightness and greenness vary from parcel
to parcel; hill shading, building shadows, haze, a blur, and a gain and offset per scene follow.
The SAR image is the backscatter of each cover, multiplied by the effects of slopes, field rows and
buildings, and by speckle. Values are DN of 8-bit stretched imagery, as in WHU-OPT-SAR. The
difficulty "realistic" is calibrated to measurements on that data set
(``benchmarks/simulator_realism.py``), except for the near infrared of the classes, which is
assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import gammaincinv, gammaln, ndtr

from .landscape import ORCHARD, Landscape, make_landscape, vary
from .terrain import FARMLAND, PIXEL_M, WATER, FloatMap, fractal, smooth_noise

# Rows: farmland, city, village, water, forest, road, others, orchard.
# Columns: blue, green, red, near infrared; spread of brightness, of greenness; fine texture (DN).
OPTICAL = {
    "easy": (
        (106, 98, 82, 107, 6, 8, 4),
        (120, 118, 107, 84, 6, 3, 12),
        (109, 102, 87, 98, 5, 4, 5),
        (101, 93, 72, 52, 4, 3, 3),
        (101, 92, 73, 117, 5, 5, 4),
        (119, 117, 106, 85, 4, 2, 3),
        (110, 103, 88, 98, 5, 4, 4),
        (101, 93, 74, 115, 5, 5, 5),
    ),
    "realistic": (
        (105.2, 97.2, 85.9, 104, 7, 9, 16),
        (118, 114, 119, 88, 11, 8, 16),
        (108, 97.5, 86.5, 95, 15, 13, 19),
        (96.3, 86.3, 68, 60, 18, 11, 11),
        (90.6, 79.5, 62, 107, 7, 9, 16),
        (116, 107.5, 92.5, 90, 20, 14, 15),
        (113, 104.5, 91, 96, 24, 14, 20),
        (100, 90, 75, 110, 7, 9, 16),
    ),
}
BRIGHTER = (0.8, 0.9, 0.9, 1.1)  # DN per unit of brightness in each band
GREENER = (-0.6, -0.7, -1.2, 1.3)
HAZE = (9.0, 6.0, 4.0, 1.5)  # DN per band; short wavelengths scatter most

# Columns: mean amplitude (DN); effect of vigour, spread between parcels, fine texture, effect of
# field rows (dB). Real fields and forest have the same mean and spread, but forest has a lower
# median: its spread is texture (tree crowns), that of fields lies between parcels.
SAR = {
    "easy": (
        (40, -2.9, 0.6, 0.5, 0.5),
        (66, 0.0, 1.0, 2.5, 0.0),
        (50, 0.0, 1.0, 1.5, 0.0),
        (18, 0.0, 1.0, 0.5, 0.0),
        (56, -0.7, 0.8, 0.5, 0.0),
        (19, 0.0, 1.0, 0.5, 0.0),
        (36, 0.0, 1.5, 1.0, 0.0),
        (46, -1.0, 1.0, 1.0, 0.5),
    ),
    "realistic": (
        (54, -0.5, 1.6, 0.0, 0.5),
        (43, 0.0, 1.5, 3.0, 0.0),
        (65, 0.0, 1.5, 3.0, 0.0),
        (17, 0.0, 3.0, 10.0, 0.0),
        (41.8, 0.0, 0.5, 5.0, 0.0),
        (32, 0.0, 2.5, 4.0, 0.0),
        (62, 0.0, 2.0, 3.0, 0.0),
        (48, 0.0, 1.0, 2.5, 0.5),
    ),
}


@dataclass(frozen=True)
class Setting:
    """What makes scenes of one difficulty easy or hard to classify."""

    looks: float  # WHU-OPT-SAR's amplitude statistics fit 1; easy scenes are multi-looked
    scene_dn: float  # spread of the offsets between scenes, for both sensors
    haze: float  # 1: 9 DN in blue at two standard deviations of its thickness
    relief: float  # 1: full hill shading and layover; below 1: partly corrected
    optical_texture_px: float  # scale of the fine texture
    sar_texture_px: float
    speckle_px: float  # correlation of speckle over one or two pixels, left by resampling


SETTINGS = {
    "easy": Setting(
        looks=3.0,
        scene_dn=4.0,
        haze=0.4,
        relief=0.2,
        optical_texture_px=2.5,
        sar_texture_px=4.0,
        speckle_px=1.0,
    ),
    "realistic": Setting(
        looks=1.0,
        scene_dn=7.0,
        haze=1.0,
        relief=0.5,
        optical_texture_px=1.4,
        sar_texture_px=4.5,
        speckle_px=0.88,
    ),
}
# Mild scenes differ in their class shares, not in their appearance.
OPTICAL["mild"], SAR["mild"], SETTINGS["mild"] = OPTICAL["easy"], SAR["easy"], SETTINGS["easy"]
INCIDENCE = np.float32(np.deg2rad(35))


def gamma_speckle(
    shape: tuple[int, ...], looks: float, rng: np.random.Generator, correlation_px: float = 0.0
) -> FloatMap:
    """Draw multiplicative speckle for intensities: Gamma noise with mean 1, float32.

    Correlated speckle uses a Gaussian copula: the normal distribution function and then the inverse
    Gamma distribution function are applied to correlated normal noise. The marginal distribution
    therefore stays exact.

    Args:
        shape: shape of the result.
        looks: equivalent number of looks, > 0; the variance is 1 / looks.
        rng: NumPy generator.
        correlation_px: sigma of the Gaussian kernel that correlates neighbours; 0: white noise.
    """
    if correlation_px == 0:
        return rng.standard_gamma(looks, shape, np.float32) / np.float32(looks)
    impulse = np.zeros(8 * int(np.ceil(correlation_px)) + 9)
    impulse[len(impulse) // 2] = 1
    kernel = gaussian_filter(impulse, correlation_px)
    noise = rng.standard_normal(shape, np.float32)
    # Wrapping, not reflecting: mirrored samples would count twice near the border.
    noise = gaussian_filter(noise, correlation_px, mode="wrap")
    noise /= np.float32(np.sqrt((kernel**2).sum()) ** len(shape))
    knots = np.linspace(-6, 6, 2001)
    table = gammaincinv(looks, ndtr(knots)) / looks
    return np.interp(noise, knots, table).astype(np.float32)


def mean_amplitude(looks: float) -> float:
    """Return the mean of the square root of unit-mean Gamma speckle; .886 for one look."""
    return float(np.exp(gammaln(looks + 0.5) - gammaln(looks)) / np.sqrt(looks))


def optical_image(land: Landscape, seed: int, difficulty: str = "easy") -> NDArray[np.uint8]:
    """Return the optical image ``(4, H, W) uint8``, DN 1..254: blue, green, red, near infrared."""
    rng, setting = np.random.default_rng([seed, 1]), SETTINGS[difficulty]
    table = np.array(OPTICAL[difficulty], np.float32).T
    fields = np.isin(land.cover, (FARMLAND, ORCHARD))
    bright = table[4][land.cover] * vary(fields, land.parcel, rng)
    bright += table[6][land.cover] * fractal(
        land.cover.shape, setting.optical_texture_px, rng, octaves=2
    )
    bright += _roofs_and_shadows(land, rng)
    south, east = np.gradient(land.elevation, np.float32(PIXEL_M))
    bright -= setting.relief * np.clip(
        10 * (south + east), -12, 12
    )  # the sun stands in the south-east
    green = table[5][land.cover] * land.vigour
    haze = 0.5 * setting.haze * smooth_noise(land.cover.shape, 300, rng)
    gain, offset = rng.normal(1, 0.05), rng.normal(0, setting.scene_dn) + rng.normal(0, 2, 4)
    image = np.empty((4, *land.cover.shape), np.uint8)
    for band in range(4):
        value = table[band][land.cover] + np.float32(BRIGHTER[band]) * bright
        value += np.float32(GREENER[band]) * green
        value = gaussian_filter(value, 0.7, truncate=3) + np.float32(HAZE[band]) * haze
        value += 2.5 * rng.standard_normal(value.shape, np.float32)
        image[band] = np.clip((value - 100) * gain + 100 + offset[band], 1, 254)
    return image


def _roofs_and_shadows(land: Landscape, rng: np.random.Generator) -> FloatMap:
    """Return the brightness (DN) of roofs, one value per building, and of their shadows (NW)."""
    roofs = rng.normal(4, 9, 1024).astype(np.float32)[(land.building * 64).astype(int) & 1023]
    roofs[land.building == 0] = 0
    shaded = (land.building == 0) & (_shift(land.building, -1, -1) > 0)
    roofs[shaded] -= 12
    return roofs


def _shift(values: FloatMap, down: int, right: int) -> FloatMap:
    """Move an image (H, W) by whole pixels; the border wraps."""
    return np.roll(values, (down, right), (0, 1))


def sar_image(land: Landscape, seed: int, difficulty: str = "easy") -> NDArray[np.uint8]:
    """Return the SAR amplitude ``(1, H, W) uint8``, DN 1..248."""
    rng, setting = np.random.default_rng([seed, 2]), SETTINGS[difficulty]
    look = int(rng.choice([-1, 1]))  # towards east (ascending orbit) or west
    table = np.array(SAR[difficulty], np.float32).T
    fields = np.isin(land.cover, (FARMLAND, ORCHARD))
    level_db = table[1][land.cover] * land.vigour
    level_db += table[2][land.cover] * vary(fields, land.parcel, rng)
    level_db += table[3][land.cover] * fractal(
        land.cover.shape, setting.sar_texture_px, rng, octaves=2
    )
    # Field rows across the look direction (the column axis) reflect more.
    level_db += table[4][land.cover] * np.cos(2 * land.row_direction)
    level_db += setting.relief * _slope_db(land, look)
    scene = rng.normal(1, setting.scene_dn / 60)
    amplitude = table[0][land.cover] * scene / mean_amplitude(setting.looks)
    intensity = amplitude**2 * 10 ** (level_db / 10) * _wall_factor(land, look)
    intensity *= gamma_speckle(intensity.shape, setting.looks, rng, setting.speckle_px)
    return np.clip(np.sqrt(intensity), 1, 248).astype(np.uint8)[None]


def _slope_db(land: Landscape, look: int) -> FloatMap:
    """Return the slope effect (dB): slopes facing the radar are brighter, the others darker."""
    slope = np.arctan(look * np.gradient(land.elevation, np.float32(PIXEL_M), axis=1))
    seen = np.sin(INCIDENCE) / np.maximum(np.sin(INCIDENCE - slope), 0.15)
    level = 10 * np.log10(seen)
    return np.where(land.cover == WATER, 0, np.maximum(level, -8)).astype(np.float32)


def _wall_factor(land: Landscape, look: int) -> FloatMap:
    """Return the factor of buildings: double bounce where a wall faces the radar, and shadow.

    Double bounce is strongest where the street grid is aligned with the look direction.
    """
    before = _shift(land.building, 0, look)  # one pixel nearer to the radar
    behind = _shift(land.building, 0, -look)
    aligned = 0.2 + 0.8 * np.exp(-((np.sin(2 * land.row_direction) / 0.5) ** 2))
    factor = np.ones(land.building.shape, np.float32)
    wall = (land.building > 0) & (before == 0)
    factor[wall] += (aligned * (8 + land.building))[wall]
    foot = (land.building == 0) & (behind > 0)
    factor[foot] += 0.5 * (aligned * (8 + behind))[foot]
    factor[(land.building == 0) & (before > 4)] *= 0.3  # radar shadow
    return factor


def simulate_scene(
    seed: int, height: int, width: int, difficulty: str = "easy"
) -> dict[str, NDArray[np.uint8]]:
    """Simulate one scene in the format of WHU-OPT-SAR.

    Args:
        seed: decides everything.
        height: rows, at least 96.
        width: columns, at least 96.
        difficulty: "easy", "mild" or "realistic" (see ``make_landscape``).

    Returns:
        ``optical (4, H, W) uint8``, ``sar (1, H, W) uint8`` and ``label (H, W) uint8`` with codes
        10..70.

    Raises:
        ConfigError: the difficulty is unknown, or a side is below 96 px.
    """
    land = make_landscape(height, width, seed, difficulty=difficulty)
    return {
        "optical": optical_image(land, seed, difficulty),
        "sar": sar_image(land, seed, difficulty),
        "label": (10 * (land.label + 1)).astype(np.uint8),
    }
