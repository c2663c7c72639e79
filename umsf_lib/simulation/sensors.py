"""Synthetic sensors: a four-band camera and a radar that see the same simulated land.

The optical image starts from a mean spectrum per cover. Brightness and greenness vary from parcel
to parcel; hill shading, building shadows, haze, a blur, and a gain and offset per scene follow.
The SAR image is the backscatter of each cover, multiplied by the effects of slopes, field rows and
buildings, and by speckle. Values are DN of 8-bit stretched imagery, as in WHU-OPT-SAR.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import gammaincinv, gammaln, ndtr

from .difficulty import ORCHARD, Difficulty, difficulty_of
from .landscape import Landscape, make_landscape, vary
from .terrain import FARMLAND, PIXEL_M, WATER, FloatMap, fractal, smooth_noise

BRIGHTER = (0.8, 0.9, 0.9, 1.1)  # DN per unit of brightness in each band
GREENER = (-0.6, -0.7, -1.2, 1.3)
HAZE = (9.0, 6.0, 4.0, 1.5)  # DN per band; short wavelengths scatter most
INCIDENCE = np.float32(np.deg2rad(35))


def simulate_scene(
    seed: int, height: int, width: int, difficulty: str = "easy"
) -> dict[str, NDArray[np.uint8]]:
    """Simulate one scene in the format of WHU-OPT-SAR.

    Args:
        seed: decides everything.
        height: rows, at least 96.
        width: columns, at least 96.
        difficulty: "easy", "mild" or "realistic" (see ``difficulty.py``).

    Returns:
        ``optical (4, H, W) uint8``, ``sar (1, H, W) uint8`` and ``label (H, W) uint8`` with codes
        10..70.

    Raises:
        ConfigError: the difficulty is unknown, or a side is below 96 px.
    """
    level = difficulty_of(difficulty)
    land = make_landscape(height, width, seed, level)
    return {
        "optical": optical_image(land, seed, level),
        "sar": sar_image(land, seed, level),
        "label": (10 * (land.label + 1)).astype(np.uint8),
    }


def optical_image(land: Landscape, seed: int, level: Difficulty) -> NDArray[np.uint8]:
    """Return the optical image ``(4, H, W) uint8``, DN 1..254: blue, green, red, near infrared."""
    rng, cover = np.random.default_rng([seed, 1]), land.cover
    *spectrum, brightness, greenness, texture = np.array(level.covers, np.float32).T[:7]
    bright = brightness[cover] * vary(np.isin(cover, (FARMLAND, ORCHARD)), land.parcel, rng)
    bright += texture[cover] * fractal(cover.shape, level.optical_texture_px, rng, octaves=2)
    bright += _roofs_and_shadows(land.building, rng)
    south, east = np.gradient(land.elevation, np.float32(PIXEL_M))
    bright -= level.relief * np.clip(10 * (south + east), -12, 12)  # the sun is in the south-east
    green = greenness[cover] * land.vigour
    haze = 0.5 * level.haze * smooth_noise(cover.shape, 300, rng)
    gain, offset = rng.normal(1, 0.05), rng.normal(0, level.scene_dn) + rng.normal(0, 2, 4)
    image = np.empty((4, *cover.shape), np.uint8)
    for band in range(4):
        value = spectrum[band][cover] + np.float32(BRIGHTER[band]) * bright
        value += np.float32(GREENER[band]) * green
        value = gaussian_filter(value, 0.7, truncate=3) + np.float32(HAZE[band]) * haze
        value += 2.5 * rng.standard_normal(value.shape, np.float32)
        image[band] = np.clip((value - 100) * gain + 100 + offset[band], 1, 254)
    return image


def _roofs_and_shadows(building: FloatMap, rng: np.random.Generator) -> FloatMap:
    """Return the brightness (DN) of roofs, one value per building, and of their shadows (NW)."""
    roofs = rng.normal(4, 9, 1024).astype(np.float32)[(building * 64).astype(int) & 1023]
    roofs[building == 0] = 0
    roofs[(building == 0) & (np.roll(building, (-1, -1), (0, 1)) > 0)] -= 12
    return roofs


def sar_image(land: Landscape, seed: int, level: Difficulty) -> NDArray[np.uint8]:
    """Return the SAR amplitude ``(1, H, W) uint8``, DN 1..248."""
    rng, cover = np.random.default_rng([seed, 2]), land.cover
    look = int(rng.choice([-1, 1]))  # towards east (ascending orbit) or west
    mean, vigour, parcels, texture, rows = np.array(level.covers, np.float32).T[7:]
    level_db = vigour[cover] * land.vigour
    level_db += parcels[cover] * vary(np.isin(cover, (FARMLAND, ORCHARD)), land.parcel, rng)
    level_db += texture[cover] * fractal(cover.shape, level.sar_texture_px, rng, octaves=2)
    # Field rows across the look direction (the column axis) reflect more.
    level_db += rows[cover] * np.cos(2 * land.row_direction)
    level_db += level.relief * _slope_db(land, look)
    scene = rng.normal(1, level.scene_dn / 60)
    amplitude = mean[cover] * scene / mean_amplitude(level.looks)
    intensity = amplitude**2 * 10 ** (level_db / 10) * _wall_factor(land, look)
    intensity *= gamma_speckle(intensity.shape, level.looks, rng, level.speckle_px)
    return np.clip(np.sqrt(intensity), 1, 248).astype(np.uint8)[None]


def _slope_db(land: Landscape, look: int) -> FloatMap:
    """Return the slope effect (dB): slopes facing the radar are brighter, the others darker."""
    slope = np.arctan(look * np.gradient(land.elevation, np.float32(PIXEL_M), axis=1))
    seen = np.sin(INCIDENCE) / np.maximum(np.sin(INCIDENCE - slope), 0.15)
    change = np.maximum(10 * np.log10(seen), -8)
    return np.where(land.cover == WATER, 0, change).astype(np.float32)


def _wall_factor(land: Landscape, look: int) -> FloatMap:
    """Return the factor of buildings: double bounce where a wall faces the radar, and shadow.

    Double bounce is strongest where the street grid is aligned with the look direction.
    """
    before = np.roll(land.building, look, 1)  # one pixel nearer to the radar
    behind = np.roll(land.building, -look, 1)
    aligned = 0.2 + 0.8 * np.exp(-((np.sin(2 * land.row_direction) / 0.5) ** 2))
    factor = np.ones(land.building.shape, np.float32)
    wall = (land.building > 0) & (before == 0)
    factor[wall] += (aligned * (8 + land.building))[wall]
    foot = (land.building == 0) & (behind > 0)
    factor[foot] += 0.5 * (aligned * (8 + behind))[foot]
    factor[(land.building == 0) & (before > 4)] *= 0.3  # radar shadow
    return factor


def mean_amplitude(looks: float) -> float:
    """Return the mean of the square root of unit-mean Gamma speckle; .886 for one look."""
    return float(np.exp(gammaln(looks + 0.5) - gammaln(looks)) / np.sqrt(looks))


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
    return np.interp(noise, knots, gammaincinv(looks, ndtr(knots)) / looks).astype(np.float32)
