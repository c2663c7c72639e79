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
from .settlements import settle
from .terrain import (
    CITY,
    FARMLAND,
    FOREST,
    OTHERS,
    ROAD,
    VILLAGE,
    WATER,
    FloatMap,
    Mask,
    Shape,
    fractal,
    natural_cover,
    relief,
    smooth_noise,
)

ORCHARD = 7  # a cover, not a class: labelled as farmland, but woody

# Pixel shares measured over all WHU-OPT-SAR scenes; those of a single scene vary.
MEASURED = {FARMLAND: 0.404, CITY: 0.038, VILLAGE: 0.057, WATER: 0.064, FOREST: 0.407}
MEASURED |= {ROAD: 0.010, OTHERS: 0.019}
# To study the effect of class imbalance: as "easy", but rare classes are less rare.
MILD = {FARMLAND: 0.29, CITY: 0.09, VILLAGE: 0.11, WATER: 0.13, FOREST: 0.30}
MILD |= {ROAD: 0.02, OTHERS: 0.06}
SHARES = {"easy": MEASURED, "mild": MILD, "realistic": MEASURED}

SMALLEST_PX = 96  # smaller scenes have no room for a village and a field
BLOCK_PX = 96  # side of a block of fields with a common direction
IDS_PER_BLOCK = 1024

# Share of each labelled class whose true cover is something else: groves and ponds in fields,
# clearings in forest, gardens in villages. Annotators draw one outline around all of it.
HIDDEN: dict[str, dict[int, dict[int, float]]] = {
    "easy": {
        FARMLAND: {FOREST: 0.01},
        FOREST: {FARMLAND: 0.01},
        VILLAGE: {FARMLAND: 0.04, FOREST: 0.04},
        CITY: {FOREST: 0.04, OTHERS: 0.04},
    },
    "realistic": {
        FARMLAND: {FOREST: 0.20, WATER: 0.02, VILLAGE: 0.02, OTHERS: 0.02},
        FOREST: {FARMLAND: 0.23, OTHERS: 0.02, ORCHARD: 0.02},
        VILLAGE: {FARMLAND: 0.12, FOREST: 0.06, OTHERS: 0.05},
        CITY: {FOREST: 0.10, OTHERS: 0.15, VILLAGE: 0.08},
        WATER: {FARMLAND: 0.10, FOREST: 0.06, OTHERS: 0.04},
        ROAD: {FARMLAND: 0.35, FOREST: 0.10},
        OTHERS: {FARMLAND: 0.30, FOREST: 0.15, CITY: 0.05},
    },
}
HIDDEN["mild"] = HIDDEN["easy"]
HIDDEN_PX = {"easy": 9.0, "mild": 9.0, "realistic": 40.0}  # scale of the patches
ORCHARD_SHARE = {"easy": 0.08, "mild": 0.08, "realistic": 0.06}  # of the fields
RAGGED = {"easy": 0.3, "mild": 0.3, "realistic": 8.0}  # fine detail in outlines


@dataclass(frozen=True)
class Landscape:
    """The simulated ground; every field is an array ``(H, W)``.

    Attributes:
        label: class ids 0..6 (farmland, city, village, water, forest, road, others), uint8.
        cover: true cover, uint8: class ids or ``ORCHARD``; differs from the label where an
            annotator would not draw it.
        elevation: metres, float32.
        parcel: field number, int32; fields of one block share ``parcel // IDS_PER_BLOCK``.
        row_direction: direction of field rows or streets, float32, radians from the row axis
            (south) towards the column axis (east).
        building: height of the building on this pixel in metres, float32; 0: no building.
        vigour: vigour of the vegetation, float32, unit variance; varies by field on farmland and
            in patches elsewhere.
    """

    label: NDArray[np.uint8]
    cover: NDArray[np.uint8]
    elevation: FloatMap
    parcel: NDArray[np.int32]
    row_direction: FloatMap
    building: FloatMap
    vigour: FloatMap


def make_landscape(height: int, width: int, seed: int, *, difficulty: str = "easy") -> Landscape:
    """Make the land of one scene.

    Args:
        height: rows, at least 96.
        width: columns, at least 96.
        seed: decides everything.
        difficulty: "easy" (smooth outlines, almost correct labels), "mild" (as easy, but rare
            classes are less rare) or "realistic".

    Raises:
        ConfigError: the difficulty is unknown, or a side is below 96 px.
    """
    check_request(height, width, difficulty)
    rng = np.random.default_rng([seed, 0])
    shape = (height, width)
    share = {c: s * float(np.exp(rng.normal(0, 0.15))) for c, s in SHARES[difficulty].items()}
    elevation = relief(shape, rng)
    label = natural_cover(elevation, share, RAGGED[difficulty], rng)
    parcel, row_direction = _parcels(shape, rng)
    building, tracks = settle(label, row_direction, share, rng)
    _scatter_others(label, share[OTHERS], rng)
    cover = _true_cover(label, parcel, difficulty, rng)
    if difficulty == "realistic":
        cover[tracks & (label == FARMLAND)] = ROAD
    vigour = vary(np.isin(cover, (FARMLAND, ORCHARD)), parcel, rng)
    return Landscape(label, cover, elevation, parcel, row_direction, building, vigour)


def check_request(height: int, width: int, difficulty: str) -> None:
    """Refuse sizes and difficulties that cannot be simulated.

    Raises:
        ConfigError: the difficulty is unknown, or a side is below 96 px.
    """
    if difficulty not in SHARES:
        known = ", ".join(SHARES)
        raise ConfigError(f"difficulty is {difficulty!r}, but it must be one of {known}.")
    if min(height, width) < SMALLEST_PX:
        size = f"{height} x {width} px"
        raise ConfigError(f"a synthetic scene of {size} is too small: use {SMALLEST_PX} or more.")


def vary(fields: Mask, parcel: NDArray[np.int32], rng: np.random.Generator) -> FloatMap:
    """Return unit-variance variation ``(H, W) float32`` of a property of the ground.

    In ``fields`` it varies by district and parcel, elsewhere in patches.
    """
    own = 0.4 * rng.standard_normal(int(parcel.max()) + 1, np.float32)[parcel]
    own += 0.75 * smooth_noise(parcel.shape, 60, rng)
    within = np.float32(0.53) * fractal(parcel.shape, 5, rng, octaves=2, decay=1)
    return np.where(fields, own, 0.85 * smooth_noise(parcel.shape, 50, rng)) + within


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
    coarse = binary_dilation((label[::4, ::4] == WATER) | (label[::4, ::4] == CITY), iterations=5)
    patches += 0.8 * np.repeat(np.repeat(coarse, 4, 0), 4, 1)[: label.shape[0], : label.shape[1]]
    free = (label == FARMLAND) | (label == FOREST)
    patches[~free] = -9
    label[patches > np.quantile(patches[::4, ::4], 1 - share)] = OTHERS


def _true_cover(
    label: NDArray[np.uint8],
    parcel: NDArray[np.int32],
    difficulty: str,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return the true cover: adds orchards and small objects that no annotator would draw."""
    cover = label.copy()
    estate = parcel >> 7  # a few fields side by side
    orchard = rng.random(int(estate.max()) + 1) < ORCHARD_SHARE[difficulty]
    cover[(label == FARMLAND) & orchard[estate]] = ORCHARD
    place = ndtr(fractal(label.shape, HIDDEN_PX[difficulty], rng, octaves=2))  # uniform in [0, 1]
    for drawn, hidden in HIDDEN[difficulty].items():
        here = label == drawn
        low = 0.0
        for what, part in hidden.items():
            cover[here & (place >= low) & (place < low + part)] = what
            low += part
    return cover
