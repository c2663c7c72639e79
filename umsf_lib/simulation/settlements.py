"""The built part of synthetic land: settlements on open ground and roads between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from .terrain import CITY, FARMLAND, ROAD, VILLAGE, FloatMap, Mask, Shape, fractal, stamp

CITY_PX2, VILLAGE_PX2 = 10_000, 1_100  # mean area of one settlement


@dataclass(frozen=True)
class _Sites:
    """Settlements: centre (n, 2) px, radius (n,) px, class (n,), street direction (n,) rad."""

    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    kind: NDArray[np.uint8]
    street: NDArray[np.float32]


def settle(
    label: NDArray[np.uint8],
    row_direction: FloatMap,
    share: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[FloatMap, Mask]:
    """Add settlements and the roads between them to ``label`` and ``row_direction``, in place.

    ``share`` is the wanted share of the scene per class id.

    Returns:
        Building heights ``(H, W) float32`` in metres, and a mask ``(H, W) bool`` of tracks, which
        no annotator would draw.
    """
    sites = _choose_sites(label, share, rng)
    inside, owner = _outlines(label.shape, sites, rng)
    main, tracks = _roads(inside, sites, share[ROAD], rng)
    label[main] = ROAD
    label[inside] = sites.kind[owner[inside]]
    row_direction[inside] = sites.street[owner[inside]]
    return _buildings(inside, owner, sites, rng), tracks


def _choose_sites(
    label: NDArray[np.uint8], share: NDArray[np.float64], rng: np.random.Generator
) -> _Sites:
    """Place cities, then villages, on open ground, at a distance from each other."""
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
    """Draw ragged outlines: which pixels are settled, and which site they belong to."""
    strength, owner = np.full(shape, -9, np.float32), np.zeros(shape, np.int32)
    rough = 0.22 * fractal(shape, 20, rng, octaves=2)
    for i, (centre, radius) in enumerate(zip(sites.centre, sites.radius, strict=True)):
        top, left = np.maximum(centre - 1.8 * radius, 0).astype(int)
        bottom, right = np.minimum((centre + 1.8 * radius).astype(int) + 1, shape)
        near = np.s_[top:bottom, left:right]
        rows, cols = np.ogrid[near]
        closeness = 1 - np.hypot(rows - centre[0], cols - centre[1]) / radius
        stronger = closeness > strength[near]
        strength[near][stronger], owner[near][stronger] = closeness[stronger], i
    return strength + rough > 0, owner


def _roads(
    settled: Mask, sites: _Sites, share: float, rng: np.random.Generator
) -> tuple[Mask, Mask]:
    """Connect settlements and scene borders by a spanning tree of winding roads and tracks.

    The busiest edges become roads until these cover ``share`` of the scene outside the
    settlements; the other edges become tracks. Roads inside settlements are not visible.
    """
    exits = rng.uniform(0, 1, (4, 2))
    exits[[0, 1, 2, 3], [0, 0, 1, 1]] = [0, 1, 0, 1]
    nodes = np.vstack([sites.centre, exits * np.array(settled.shape)])
    tree = minimum_spanning_tree(cdist(nodes, nodes)).tocoo()
    busy = np.append(sites.radius, np.full(len(exits), 40.0))
    main, tracks = np.zeros_like(settled), np.zeros_like(settled)
    seen_px = 0
    for edge in np.argsort(-(busy[tree.row] + busy[tree.col])):
        start, stop = nodes[tree.row[edge]], nodes[tree.col[edge]]
        along = stop - start
        across = np.array([-along[1], along[0]])
        t = np.linspace(0, 1, int(np.hypot(*along)) + 2)  # points about a pixel apart
        waves = [np.sin(k * np.pi * t) * rng.normal(0, 0.12 / k) for k in (1, 2, 3)]
        path = start + t[:, None] * along + np.sum(waves, 0)[:, None] * across
        if seen_px < share * settled.size:
            stamp(main, path, np.full(len(path), 1.0))
            seen_px = int(np.count_nonzero(main & ~settled))
        else:
            stamp(tracks, path, np.full(len(path), 0.5))
    return main, tracks


def _buildings(
    inside: Mask, owner: NDArray[np.int32], sites: _Sites, rng: np.random.Generator
) -> FloatMap:
    """Return heights (m) of rectangular buildings on the street grids; some plots stay empty."""
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
