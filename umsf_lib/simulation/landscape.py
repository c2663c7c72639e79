"""Synthetic land that imitates how real land forms, instead of thresholding noise.

Relief, water and forest come first (``terrain``), then settlements and roads on open ground
(``settlements``). This module divides the land into fields, adds bare ground, and lets the true
cover differ from what an annotator would draw. Radar and camera see the same land (``sensors``),
so both images of a scene are co-registered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.special import ndtr

from ..config import ConfigError
from .difficulty import ORCHARD, Difficulty
from .settlements import settle
from .terrain import (
    CITY,
    FARMLAND,
    FOREST,
    OTHERS,
    ROAD,
    WATER,
    FloatMap,
    Mask,
    Shape,
    fractal,
    natural_cover,
    relief,
    smooth_noise,
)

SMALLEST_PX = 96  # smaller scenes have no room for a village and a field
BLOCK_PX = 96  # side of a block of fields with a common direction
IDS_PER_BLOCK = 1024


@dataclass(frozen=True)
class Landscape:
    """The simulated ground; every field is an array ``(H, W)``."""

    label: NDArray[np.uint8]  # farmland, city, village, water, forest, road, others: 0..6
    cover: NDArray[np.uint8]  # true cover: class ids or ``ORCHARD``
    elevation: FloatMap  # m
    parcel: NDArray[np.int32]  # field; those of one block share ``parcel // IDS_PER_BLOCK``
    row_direction: FloatMap  # of field rows or streets; radians from south towards east
    building: FloatMap  # height of the building on this pixel, m; 0: no building
    vigour: FloatMap  # of vegetation, unit variance: by field on farmland, in patches elsewhere


def make_landscape(height: int, width: int, seed: int, level: Difficulty) -> Landscape:
    """Make the land of one scene; ``seed`` decides everything.

    Raises:
        ConfigError: a side is below 96 px.
    """
    if min(height, width) < SMALLEST_PX:
        size = f"{height} x {width} px"
        raise ConfigError(f"a synthetic scene of {size} is too small: use {SMALLEST_PX} or more.")
    shape, rng = (height, width), np.random.default_rng([seed, 0])
    share = np.array(level.share) * np.exp(rng.normal(0, 0.15, len(level.share)))
    elevation = relief(shape, rng)
    label = natural_cover(elevation, share, level.ragged, rng)
    parcel, row_direction = _parcels(shape, rng)
    building, tracks = settle(label, row_direction, share, rng)
    _scatter_others(label, share[OTHERS], rng)
    cover = _true_cover(label, parcel, level, rng)
    if level.hidden_tracks:
        cover[tracks & (label == FARMLAND)] = ROAD
    vigour = vary(np.isin(cover, (FARMLAND, ORCHARD)), parcel, rng)
    return Landscape(label, cover, elevation, parcel, row_direction, building, vigour)


def _parcels(shape: Shape, rng: np.random.Generator) -> tuple[NDArray[np.int32], FloatMap]:
    """Cut the ground into curved blocks, and each block into fields along its own direction."""
    row, column = np.ogrid[: shape[0], : shape[1]]
    block = np.zeros(shape, np.int32)
    for axis in (row, column):
        bent = ((axis + 35 * smooth_noise(shape, 140, rng)) / BLOCK_PX).astype(np.int32) + 2
        block = block * (int(bent.max()) + 1) + np.maximum(bent, 0)
    count = int(block.max()) + 1
    angle = rng.uniform(0, np.pi, count).astype(np.float32)
    fields = []
    for side, turn in (((10, 20), 0.0), ((5, 9), np.pi / 2)):
        size = rng.uniform(*side, count)
        down, right = ((f(angle + turn) / size).astype(np.float32) for f in (np.cos, np.sin))
        fields.append(np.floor(row * down[block] + column * right[block]).astype(np.int32) & 31)
    return block * IDS_PER_BLOCK + fields[0] * 32 + fields[1], angle[block]


def _scatter_others(label: NDArray[np.uint8], share: float, rng: np.random.Generator) -> None:
    """Add patches of bare ground (sand, quarries, building sites), mostly near water and cities."""
    patches = smooth_noise(label.shape, 26, rng)
    coarse = binary_dilation(np.isin(label[::4, ::4], (WATER, CITY)), iterations=5)
    patches += 0.8 * np.repeat(np.repeat(coarse, 4, 0), 4, 1)[: label.shape[0], : label.shape[1]]
    patches[~np.isin(label, (FARMLAND, FOREST))] = -9
    label[patches > np.quantile(patches[::4, ::4], 1 - share)] = OTHERS


def _true_cover(
    label: NDArray[np.uint8], parcel: NDArray[np.int32], level: Difficulty, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the true cover: adds orchards and small objects that no annotator would draw."""
    cover = label.copy()
    estate = parcel >> 7  # a few fields side by side
    orchard = rng.random(int(estate.max()) + 1) < level.orchard_share
    cover[(label == FARMLAND) & orchard[estate]] = ORCHARD
    place = ndtr(fractal(label.shape, level.hidden_px, rng, octaves=2))  # uniform in [0, 1]
    for drawn, hidden in level.hidden.items():
        low = 0.0
        for what, part in hidden.items():
            cover[(label == drawn) & (place >= low) & (place < low + part)] = what
            low += part
    return cover


def vary(fields: Mask, parcel: NDArray[np.int32], rng: np.random.Generator) -> FloatMap:
    """Return unit-variance variation ``(H, W) float32`` of a property of the ground.

    In ``fields`` it varies by district and parcel, elsewhere in patches.
    """
    own = 0.4 * rng.standard_normal(int(parcel.max()) + 1, np.float32)[parcel]
    own += 0.75 * smooth_noise(parcel.shape, 60, rng)
    within = np.float32(0.53) * fractal(parcel.shape, 5, rng, octaves=2, decay=1)
    return np.where(fields, own, 0.85 * smooth_noise(parcel.shape, 50, rng)) + within
