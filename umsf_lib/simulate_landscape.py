"""Synthetic land, made the way land comes about rather than by thresholding noise.

Relief first; water runs off it (rivers) and fills its hollows (lakes); forest stays on the slopes;
the flat rest is parcelled into fields; settlements stand on open ground, roads join them. The
radar and the camera then look at this one land (``simulate_sensors``), which is why both images
of a scene are registered. A pixel is 5 m.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from scipy.special import ndtr

from .config import ConfigError

FloatMap = NDArray[np.float32]
Mask = NDArray[np.bool_]
Shape = tuple[int, int]

FARMLAND, CITY, VILLAGE, WATER, FOREST, ROAD, OTHERS = range(7)  # label classes, WHU order
ORCHARD = 7  # a cover only: labelled farmland, but woody
NUM_COVERS = 8

# Pixel shares measured over all WHU-OPT-SAR scenes; one scene departs from them.
SHARES = {FARMLAND: 0.404, CITY: 0.038, VILLAGE: 0.057, WATER: 0.064, FOREST: 0.407}
SHARES |= {ROAD: 0.010, OTHERS: 0.019}

SMALLEST_PX = 96  # below it there is no room for a village and a field
PIXEL_M = 5.0
CELL_PX = 8  # drainage is solved on cells of this size
BLOCK_PX = 96  # ground between two ditches or tracks, parcelled in one direction
IDS_PER_BLOCK = 1024
CITY_PX2, VILLAGE_PX2 = 10_000, 1_100  # mean ground of one settlement

# Share of each labelled class whose ground is in truth something else: groves and ponds in
# fields, clearings in forest, gardens in villages. Annotators draw outlines around the whole.
HIDDEN: dict[str, dict[int, dict[int, float]]] = {
    "easy": {
        FARMLAND: {FOREST: 0.01},
        FOREST: {FARMLAND: 0.01},
        VILLAGE: {FARMLAND: 0.04, FOREST: 0.04},
        CITY: {FOREST: 0.04, OTHERS: 0.04},
    },
    "realistic": {
        FARMLAND: {FOREST: 0.12, WATER: 0.03, VILLAGE: 0.02, OTHERS: 0.03},
        FOREST: {FARMLAND: 0.14, OTHERS: 0.03, ORCHARD: 0.05},
        VILLAGE: {FARMLAND: 0.20, FOREST: 0.12, OTHERS: 0.05},
        CITY: {FOREST: 0.10, OTHERS: 0.15, VILLAGE: 0.08},
        WATER: {FARMLAND: 0.15, FOREST: 0.08, OTHERS: 0.05},
        ROAD: {FARMLAND: 0.35, FOREST: 0.10},
        OTHERS: {FARMLAND: 0.30, FOREST: 0.15, CITY: 0.05},
    },
}
ORCHARD_SHARE = {"easy": 0.08, "realistic": 0.15}  # of the fields
RAGGED = {"easy": 0.3, "realistic": 5.0}  # weight of the fine outline of forests and lakes


@dataclass(frozen=True)
class Landscape:
    """What lies on the ground; every field is an array (H, W).

    Attributes:
        label: class ids 0..6 (farmland, city, village, water, forest, road, others), uint8.
        cover: what reflects there, uint8: class ids or ``ORCHARD``; differs from the label where
            an annotator would not have drawn it.
        elevation: metres, float32.
        parcel: field number, int32; numbers of one block share ``parcel // IDS_PER_BLOCK``.
        row_direction: of the rows of a field, or the streets of a settlement, float32 radians
            from the row axis (south) towards the column axis (east).
        building: height of the building on this pixel in metres, float32; 0 where there is none.
        vigour: of the vegetation, float32 of unit variance: one value per field, patchy elsewhere.
    """

    label: NDArray[np.uint8]
    cover: NDArray[np.uint8]
    elevation: FloatMap
    parcel: NDArray[np.int32]
    row_direction: FloatMap
    building: FloatMap
    vigour: FloatMap


def landscape(height: int, width: int, seed: int, *, difficulty: str = "easy") -> Landscape:
    """Make the land of one scene.

    Args:
        height: rows, at least 96.
        width: columns, at least 96.
        seed: decides everything.
        difficulty: "easy" (smooth outlines, labels nearly true) or "realistic".

    Raises:
        ConfigError: unknown difficulty, or a side below 96 px.
    """
    check_request(height, width, difficulty)
    rng = np.random.default_rng([seed, 0])
    shape = (height, width)
    share = {c: s * float(np.exp(rng.normal(0, 0.15))) for c, s in SHARES.items()}
    elevation = _relief(shape, rng)
    label = _natural_cover(elevation, share, RAGGED[difficulty], rng)
    parcel, row_direction = _parcels(shape, rng)
    building, tracks = _settle(label, row_direction, share, rng)
    _scatter_others(label, share[OTHERS], rng)
    cover = _true_cover(label, parcel, difficulty, rng)
    if difficulty != "easy":
        cover[tracks & (label == FARMLAND)] = ROAD
    vigour = vary(np.isin(cover, (FARMLAND, ORCHARD)), parcel, rng)
    return Landscape(label, cover, elevation, parcel, row_direction, building, vigour)


def check_request(height: int, width: int, difficulty: str) -> None:
    """Refuse sizes and difficulties that cannot be made.

    Raises:
        ConfigError: with the value and what is possible.
    """
    if difficulty not in HIDDEN:
        known = ", ".join(HIDDEN)
        raise ConfigError(f"difficulty is {difficulty!r}, but it must be one of {known}.")
    if min(height, width) < SMALLEST_PX:
        size = f"{height} x {width} px"
        raise ConfigError(f"a synthetic scene of {size} is too small: use {SMALLEST_PX} or more.")


def smooth_noise(shape: Shape, scale_px: float, rng: np.random.Generator) -> FloatMap:
    """Unit-variance Gaussian noise (H, W) float32 with features of about `scale_px`.

    Random values on a coarse grid, interpolated with cubic B-splines: its cost does not grow
    with the scale, as that of a Gaussian filter would.
    """
    rows, cols = (_spline(n, scale_px) for n in shape)
    grid = rng.standard_normal((rows.shape[1], cols.shape[1]), dtype=np.float32)
    across = np.ascontiguousarray((cols @ grid.T).T)  # (coarse rows, W)
    smooth: FloatMap = np.asarray(rows @ across, np.float32) / np.float32(0.479)
    return smooth  # divided by the root of the mean squared weight


def _spline(length: int, scale_px: float) -> csr_array:
    position = np.arange(length) / scale_px
    first, t = position.astype(int), position % 1
    basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    weights = (np.stack(basis, 1) / 6).astype(np.float32)  # (length, 4)
    columns = first[:, None] + np.arange(4)
    size = (length, int(first[-1]) + 4)
    return csr_array((weights.ravel(), columns.ravel(), np.arange(0, 4 * length + 1, 4)), size)


def fractal(
    shape: Shape, scale_px: float, rng: np.random.Generator, *, octaves: int, decay: float = 0.5
) -> FloatMap:
    """Unit-variance sum (H, W) of noises, each of half the scale and `decay` times the size."""
    total = np.zeros(shape, np.float32)
    for k in range(octaves):
        total += np.float32(decay**k) * smooth_noise(shape, scale_px / 2**k, rng)
    return total / np.float32(np.sqrt(sum(decay ** (2 * k) for k in range(octaves))))


def vary(fields: Mask, parcel: NDArray[np.int32], rng: np.random.Generator) -> FloatMap:
    """Unit-variance variation (H, W): by district and parcel in fields, in patches elsewhere."""
    own = 0.4 * rng.standard_normal(int(parcel.max()) + 1, np.float32)[parcel]
    own += 0.75 * smooth_noise(parcel.shape, 60, rng)
    within = np.float32(0.53) * fractal(parcel.shape, 5, rng, octaves=2, decay=1)
    return np.where(fields, own, 0.85 * smooth_noise(parcel.shape, 50, rng)) + within


def _relief(shape: Shape, rng: np.random.Generator) -> FloatMap:
    hills = fractal(shape, 190, rng, octaves=4, decay=0.4) + smooth_noise(shape, 700, rng)
    return 90 * np.logaddexp(0, 1.8 * hills).astype(np.float32)  # plains below, mountains above


def drainage(elevation: FloatMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where water goes: for each cell (flat index) its receiver, and how many cells drain through.

    Priority-flood: flood inwards from the border, lowest cell first; each cell drains to the one
    from which it was flooded, so hollows overflow and no water is lost (Barnes et al. 2014).
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
    """Draw the largest streams until they fill `share` of the scene."""
    coarse = elevation[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
    receiver, area = drainage(coarse)
    place = np.stack(np.unravel_index(np.arange(coarse.size), coarse.shape), 1) * CELL_PX + 4.0
    place += rng.uniform(-4, 4, place.shape)
    for _ in range(4):
        place = (place + place[receiver]) / 2  # takes the stair steps of the grid out
    width = np.clip(0.35 * np.sqrt(area), 3, 22)
    largest = np.argsort(-area, kind="stable")
    ground = np.cumsum(width[largest]) * CELL_PX
    chosen = largest[: int(np.searchsorted(ground, share * elevation.size))]
    water = np.zeros(elevation.shape, bool)
    steps = np.linspace(0, 1, 2 * CELL_PX)[:, None, None]
    points = place[chosen] + steps * (place[receiver[chosen]] - place[chosen])
    stamp(water, points.reshape(-1, 2), np.tile(width[chosen] / 2, len(steps)))
    return water


def stamp(mask: Mask, points: NDArray[np.float64], radius_px: NDArray[np.float64]) -> None:
    """Set the discs around `points` (n, 2) row, column in `mask`; radii are rounded to 1/2 px."""
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


def _natural_cover(
    elevation: FloatMap, share: dict[int, float], ragged: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Farmland everywhere, then forest on the high and steep ground, then rivers and lakes."""
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


def _parcels(shape: Shape, rng: np.random.Generator) -> tuple[NDArray[np.int32], FloatMap]:
    """Cut the ground into bent blocks, and each block into fields along its own direction."""
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


@dataclass(frozen=True)
class _Sites:
    """Settlements: centre (n, 2) px, radius (n,) px, class (n,), street direction (n,) rad."""

    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    kind: NDArray[np.uint8]
    street: NDArray[np.float32]


def _settle(
    label: NDArray[np.uint8],
    row_direction: FloatMap,
    share: dict[int, float],
    rng: np.random.Generator,
) -> tuple[FloatMap, Mask]:
    """Build settlements, then roads between them; returns building heights and narrow tracks."""
    sites = _choose_sites(label, share, rng)
    inside, owner = _outlines(label.shape, sites, rng)
    main, tracks = _roads(inside, sites, share[ROAD], rng)
    label[main] = ROAD
    label[inside] = sites.kind[owner[inside]]
    row_direction[inside] = sites.street[owner[inside]]
    return _buildings(inside, owner, sites, rng), tracks


def _choose_sites(
    label: NDArray[np.uint8], share: dict[int, float], rng: np.random.Generator
) -> _Sites:
    """Spread cities, then villages, over open ground, none within the reach of another."""
    open_ground = np.argwhere(label[::4, ::4] == FARMLAND) * 4.0
    if not len(open_ground):
        open_ground = np.argwhere(np.ones_like(label[::4, ::4])) * 4.0
    centre, radius, kind = np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.uint8)
    for what, ground in ((CITY, CITY_PX2), (VILLAGE, VILLAGE_PX2)):
        count = max(1, round(share[what] * label.size / ground))
        typical = np.sqrt(share[what] * label.size / (np.pi * count))
        sizes = typical * np.exp(rng.normal(0, 0.25, count) - 0.06)
        for size in sizes:
            tries = open_ground[rng.integers(len(open_ground), size=30)]
            room = (cdist(tries, centre) - radius).min(1, initial=1e9) - 1.3 * size
            best = int(np.argmax(np.minimum(room, rng.uniform(0, 60, 30))))
            centre, radius = np.vstack([centre, tries[best]]), np.append(radius, size)
            kind = np.append(kind, np.uint8(what))
    street = rng.uniform(0, np.pi / 2, len(radius)).astype(np.float32)
    return _Sites(centre, radius, kind, street)


def _outlines(
    shape: Shape, sites: _Sites, rng: np.random.Generator
) -> tuple[Mask, NDArray[np.int32]]:
    """Ragged outlines: which pixels are settled, and by which site."""
    strength, owner = np.full(shape, -9, np.float32), np.zeros(shape, np.int32)
    rough = 0.22 * fractal(shape, 20, rng, octaves=2)
    for i in range(len(sites.radius)):
        top, left = np.maximum(sites.centre[i] - 1.8 * sites.radius[i], 0).astype(int)
        bottom, right = (sites.centre[i] + 1.8 * sites.radius[i]).astype(int) + 1
        near = np.s_[top:bottom, left:right]
        r, c = np.ogrid[near]
        r, c = r[: strength[near].shape[0]], c[:, : strength[near].shape[1]]
        away = np.hypot(r - sites.centre[i, 0], c - sites.centre[i, 1]) / sites.radius[i]
        stronger = 1 - away > strength[near]
        strength[near][stronger], owner[near][stronger] = (1 - away)[stronger], i
    return strength + rough > 0, owner


def _roads(
    settled: Mask, sites: _Sites, share: float, rng: np.random.Generator
) -> tuple[Mask, Mask]:
    """Join settlements and scene borders by a spanning tree: roads where busy, else tracks.

    Roads are built until `share` of the scene is road outside the settlements, which hide theirs.
    """
    exits = rng.uniform(0, 1, (4, 2))
    exits[[0, 1, 2, 3], [0, 0, 1, 1]] = [0, 1, 0, 1]
    nodes = np.vstack([sites.centre, exits * np.array(settled.shape)])
    tree = minimum_spanning_tree(cdist(nodes, nodes)).tocoo()
    busy = np.append(sites.radius, np.full(len(exits), 40.0))
    main, tracks = np.zeros_like(settled), np.zeros_like(settled)
    seen_px = 0
    for edge in np.argsort(-(busy[tree.row] + busy[tree.col])):
        path = _bent_path(nodes[tree.row[edge]], nodes[tree.col[edge]], rng)
        if seen_px < share * settled.size:
            stamp(main, path, np.full(len(path), 1.0))
            seen_px = np.count_nonzero(main & ~settled)
        else:
            stamp(tracks, path, np.full(len(path), 0.5))
    return main, tracks


def _bent_path(
    start: NDArray[np.float64], stop: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points (n, 2) about a pixel apart on a slightly winding line."""
    along = stop - start
    t = np.linspace(0, 1, int(np.hypot(*along)) + 2)
    waves = [np.sin(k * np.pi * t) * rng.normal(0, 0.12 / k) for k in (1, 2, 3)]
    across = np.array([-along[1], along[0]])
    return start + t[:, None] * along + np.sum(waves, 0)[:, None] * across


def _buildings(
    inside: Mask, owner: NDArray[np.int32], sites: _Sites, rng: np.random.Generator
) -> FloatMap:
    """Heights in metres: rectangles on each settlement's street grid, some plots left empty."""
    place = np.argwhere(inside)
    site = owner[inside]
    city = sites.kind[site] == CITY
    pitch = np.where(city, 9, 5).astype(np.float32)  # 45 m blocks, 25 m yards
    away = (place - sites.centre[site]).astype(np.float32)
    cos, sin = np.cos(sites.street[site]), np.sin(sites.street[site])
    u = (away[:, 0] * cos + away[:, 1] * sin) / pitch
    v = (away[:, 1] * cos - away[:, 0] * sin) / pitch
    plot = np.floor(u).astype(np.int64) * 73 + np.floor(v).astype(np.int64) * 179 + site * 283
    height = rng.lognormal(0, 0.5, 4096).astype(np.float32)[plot & 4095]
    empty = rng.random(4096)[plot & 4095] < np.where(city, 0.2, 0.3)
    covered = (u % 1 < 0.62) & (v % 1 < 0.62) & ~empty
    building = np.zeros(inside.shape, np.float32)
    building[inside] = np.where(covered, height * np.where(city, 16, 5), 0)
    return building


def _scatter_others(label: NDArray[np.uint8], share: float, rng: np.random.Generator) -> None:
    """Bare ground (sand, quarries, building sites) in patches, mostly beside water and cities."""
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
    """What really lies there: orchards among fields, and the small things no annotator draws."""
    cover = label.copy()
    estate = parcel >> 7  # a few fields side by side
    orchard = rng.random(int(estate.max()) + 1) < ORCHARD_SHARE[difficulty]
    cover[(label == FARMLAND) & orchard[estate]] = ORCHARD
    place = ndtr(fractal(label.shape, 9, rng, octaves=2))  # uniform in [0, 1], patchy
    for drawn, hidden in HIDDEN[difficulty].items():
        here = label == drawn
        low = 0.0
        for what, part in hidden.items():
            cover[here & (place >= low) & (place < low + part)] = what
            low += part
    return cover
