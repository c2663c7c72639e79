"""The natural part of synthetic land: relief, rivers and lakes, and forest on the slopes.

Water runs off the relief (rivers) and fills its hollows (lakes). The pixel size is 5 m.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

FloatMap = NDArray[np.float32]
Mask = NDArray[np.bool_]
Shape = tuple[int, int]

FARMLAND, CITY, VILLAGE, WATER, FOREST, ROAD, OTHERS = range(7)  # label classes, WHU order

PIXEL_M = 5.0
CELL_PX = 8  # drainage is computed on cells of this size


def smooth_noise(shape: Shape, scale_px: float, rng: np.random.Generator) -> FloatMap:
    """Return unit-variance Gaussian noise ``(H, W) float32`` with features of about ``scale_px``.

    Cubic B-splines interpolate random values on a coarse grid. Unlike that of a Gaussian filter,
    the cost does not grow with the scale.
    """
    splines = []  # for rows and for columns: (length, coarse length)
    for length in shape:
        position = np.arange(length) / scale_px
        knots = np.arange(-3.0, int(position[-1]) + 5)
        splines.append(BSpline.design_matrix(position, knots, 3).astype(np.float32))
    rows, cols = splines
    grid = rng.standard_normal((rows.shape[1], cols.shape[1]), dtype=np.float32)
    across = np.ascontiguousarray((cols @ grid.T).T)  # (coarse rows, W)
    smooth: FloatMap = np.asarray(rows @ across, np.float32) / np.float32(0.479)
    return smooth  # 0.479: root of the mean sum of squared weights


def fractal(
    shape: Shape, scale_px: float, rng: np.random.Generator, *, octaves: int, decay: float = 0.5
) -> FloatMap:
    """Return unit-variance fractal noise ``(H, W) float32``: a sum of several smooth noises.

    From one octave to the next, the scale is halved and the amplitude multiplied by ``decay``.
    """
    total = np.zeros(shape, np.float32)
    for k in range(octaves):
        total += np.float32(decay**k) * smooth_noise(shape, scale_px / 2**k, rng)
    return total / np.float32(np.sqrt(sum(decay ** (2 * k) for k in range(octaves))))


def stamp(mask: Mask, points: NDArray[np.float64], radius_px: NDArray[np.float64]) -> None:
    """Set discs in ``mask (H, W)``, in place.

    Their centres are ``points (n, 2)``, row and column; radii ``(n,)`` are rounded to half a pixel.
    """
    halves = np.maximum(np.round(2 * radius_px), 1)
    for half in np.unique(halves):
        reach = int(half // 2)
        centre = np.round(points[halves == half]).astype(int)
        for dr, dc in np.ndindex(2 * reach + 1, 2 * reach + 1):
            if (dr - reach) ** 2 + (dc - reach) ** 2 > half**2 / 4:
                continue
            r, c = centre[:, 0] + dr - reach, centre[:, 1] + dc - reach
            inside = (r >= 0) & (r < mask.shape[0]) & (c >= 0) & (c < mask.shape[1])
            mask[r[inside], c[inside]] = True


def relief(shape: Shape, rng: np.random.Generator) -> FloatMap:
    """Return elevations ``(H, W) float32`` in metres, with plains and mountains."""
    hills = fractal(shape, 190, rng, octaves=4, decay=0.4) + smooth_noise(shape, 700, rng)
    return 90 * np.logaddexp(0, 1.8 * hills).astype(np.float32)


def drainage(elevation: FloatMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute for each cell the cell that it drains to, and the number of cells upstream.

    The method is priority-flood (Barnes et al. 2014). It floods ``elevation (h, w)`` inwards from
    the border, lowest cell first. Each cell drains to the cell from which it was flooded, so
    hollows overflow and no water is lost.

    Returns:
        Flat index of each cell's receiver (its own on the border), and the number of cells that
        drain through it, itself included; both ``(h * w,) int64``.
    """
    h, w = elevation.shape
    level = elevation.ravel().tolist()
    receiver = np.full((h, w), -1)
    border = np.ones((h, w), bool)
    border[1:-1, 1:-1] = False
    receiver[border] = np.flatnonzero(border)
    # Steps off the grid land on border cells, which have a receiver, or on this padding.
    reached = receiver.ravel().tolist() + [0] * (w + 2)
    heap = [(level[i], i) for i in np.flatnonzero(border).tolist()]
    heapq.heapify(heap)
    order, steps = [], (-w - 1, -w, -w + 1, -1, 1, w - 1, w, w + 1)
    while heap:
        height, here = heapq.heappop(heap)
        order.append(here)
        for near in (here + step for step in steps):
            if reached[near] < 0:
                reached[near] = here
                heapq.heappush(heap, (max(height, level[near]), near))
    area = [1] * (h * w)
    for here in reversed(order):
        if reached[here] != here:
            area[reached[here]] += area[here]
    return np.array(reached[: h * w]), np.array(area)


def _rivers(elevation: FloatMap, share: float, rng: np.random.Generator) -> Mask:
    """Draw the largest streams until they fill ``share`` of the scene."""
    coarse = elevation[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
    receiver, area = drainage(coarse)
    place = np.stack(np.unravel_index(np.arange(coarse.size), coarse.shape), 1) * CELL_PX + 4.0
    place += rng.uniform(-4, 4, place.shape)
    for _ in range(4):
        place = (place + place[receiver]) / 2  # smooths the stair steps of the grid
    width = np.clip(0.35 * np.sqrt(area), 3, 22)
    largest = np.argsort(-area, kind="stable")
    ground = np.cumsum(width[largest]) * CELL_PX
    chosen = largest[: int(np.searchsorted(ground, share * elevation.size))]
    water = np.zeros(elevation.shape, bool)
    steps = np.linspace(0, 1, 2 * CELL_PX)[:, None, None]
    points = place[chosen] + steps * (place[receiver[chosen]] - place[chosen])
    stamp(water, points.reshape(-1, 2), np.tile(width[chosen] / 2, len(steps)))
    return water


def natural_cover(
    elevation: FloatMap, share: NDArray[np.float64], ragged: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return class ids ``(H, W) uint8``: forest on high, steep ground; water; farmland elsewhere.

    ``share`` is the wanted share of the scene per class id, ``ragged`` the weight of the fine
    detail in the outlines of forests and lakes.
    """
    label = np.full(elevation.shape, FARMLAND, np.uint8)
    fine = fractal(elevation.shape, 48, rng, octaves=4, decay=0.9)
    south, east = np.gradient(elevation, PIXEL_M)
    height = np.log1p(elevation / 60)
    wooded = height / height.std() + 4 * np.hypot(south, east) + ragged * fine
    label[wooded > np.quantile(wooded[::4, ::4], 1 - 1.12 * share[FOREST])] = FOREST
    river = _rivers(elevation, share[WATER] * rng.uniform(0.2, 0.6), rng)
    hollow = smooth_noise(elevation.shape, 70, rng) - height / height.std() + ragged * fine / 2
    lakes = share[WATER] - river.mean()
    label[river | (hollow > np.quantile(hollow[::4, ::4], 1 - max(lakes, 0.002)))] = WATER
    return label
