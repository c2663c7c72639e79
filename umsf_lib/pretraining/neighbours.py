"""Neighbours: windows a short distance away on the ground, the positives of spatial contrast.

The first law of geography (Tobler 1970) says that near things are more related than distant things.
So a nearby window can serve as a positive, as a second view does (Jean et al. 2019, Tile2Vec; Kang
et al. 2021, SauMoCo). SauMoCo draws each axis separately, from a square of pixels. Here the limit
is a distance on the ground, so the place is drawn uniformly from a disc.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import PretrainConfig
from ..data.map_sheets import SHEET_DEGREES, sheet_of
from ..data.rasters import Grid, pixel_size_m
from ..data.scene_set import SceneSet, physical, standardisation

CANDIDATES = 32  # places drawn per neighbour; the first suitable one is taken
SAMPLES = 8  # pixels looked at along each side of a window to tell whether two are alike
DEGREE_M = 111_195.0  # one degree of a map sheet, on a sphere of radius 6371 km
SAME_STEP = 1e-3  # relative difference of pixel sizes that still count as one grid

Corners = tuple[Tensor, Tensor, Tensor]  # scene, row, col of windows' first pixels, (B,) int64


class Neighbours:
    """Sampler of a neighbour for each window of a batch."""

    def __init__(self, scenes: SceneSet, roles: tuple[str, ...], size: int, config: PretrainConfig):
        """Lay out the training scenes and describe their windows of ``size`` px, once.

        The ``roles`` are the sensors by which windows are compared.
        """
        self.size, self.config = size, config
        self.ground = lay_out(scenes, config.pixel_m)
        self.sides = torch.tensor([(r.height, r.width) for r in scenes.records])  # (S, 2)
        reach = math.ceil(config.neighbour_m / float(self.ground.pixel_m.min())) + size
        self.beside = _beside(self.ground, self.sides, reach)
        self.looks = WindowDescriptors(scenes, roles, size)
        train = scenes.indices("train")
        if (self.beside[train, :] == self.beside[train, :1]).all() and self.sides[
            train
        ].max() <= size:
            warnings.warn(
                f"No training scene is larger than a window of {size} px or lies beside another, "
                "so every window is its own neighbour; set a smaller views.window_px.",
                stacklevel=2,
            )

    def draw(self, windows: Corners, generator: torch.Generator) -> Corners:
        """Draw a window near each of ``windows``, uniformly from the part of the disc with data.

        A place is suitable if the whole window lies in one scene and at least half of it is valid;
        with ``homogeneity`` it must also look alike (see ``alike``). A window without a suitable
        place among ``CANDIDATES`` is its own neighbour.
        """
        scene, corner = windows[0], torch.stack(windows[1:], dim=1)  # (B,), (B, 2)
        offset = draw_in_disc(CANDIDATES, len(scene), self.config.neighbour_m, generator)
        offset = (offset / self.ground.pixel_m[scene]).round().long()  # (n, B, 2) px
        target = self.ground.origin[scene] + corner + offset  # (n, B, 2) on the plane
        found, place = self._scene_at(scene, target)
        entry = self.looks.at(found.clamp(min=0), place)  # (n, B, 2 + C)
        serves = (found >= 0) & (entry[..., 0] >= 0.5)  # (n, B)
        if self.config.homogeneity > 0:
            serves &= alike(self.looks.at(scene, corner), entry, self.config.homogeneity)
        first, every = serves.int().argmax(0), torch.arange(len(scene))  # (B,)
        any_serves = serves[first, every]
        scene = torch.where(any_serves, found[first, every], scene)
        corner = torch.where(any_serves[:, None], place[first, every], corner)
        return scene, corner[:, 0], corner[:, 1]

    def _scene_at(self, scene: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Find the scene ``(n, B)`` that holds the whole window at ``target``; corner in it.

        The scene is -1 if there is none. Where scenes overlap, the window's own scene comes first.
        """
        found, place = torch.full(target.shape[:2], -1), torch.zeros_like(target)
        for other in self.beside[scene].T:  # (B,) each
            local = target - self.ground.origin[other]  # (n, B, 2)
            inside = ((local >= 0) & (local <= self.sides[other] - self.size)).all(2) & (found < 0)
            found = torch.where(inside, other, found)
            place = torch.where(inside[:, :, None], local, place)
        return found, place


def draw_in_disc(count: int, batch: int, radius: float, generator: torch.Generator) -> Tensor:
    """Draw offsets ``(count, batch, 2)`` float64, uniform over the area of a disc."""
    u = torch.rand(2, count, batch, generator=generator, dtype=torch.float64)
    distance, angle = radius * u[0].sqrt(), 2 * math.pi * u[1]
    return torch.stack([distance * angle.sin(), distance * angle.cos()], dim=2)


@dataclass(frozen=True)
class ScenePlane:
    """Positions of scenes on planes of pixels, so that a neighbour may lie in another scene.

    Attributes:
        plane: ``(S,)`` int64 number of the plane; scenes on the same plane share one pixel grid.
        origin: ``(S, 2)`` int64 row, col of a scene's first pixel on its plane.
        pixel_m: ``(S, 2)`` float64 ground height and width of a pixel, metres.
    """

    plane: Tensor
    origin: Tensor
    pixel_m: Tensor

    def corner(self, scene: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Convert places ``(B,)`` in scenes to row, col on the plane, ``(B, 2)`` float32."""
        return (self.origin[scene] + torch.stack([row, col], dim=1)).float()

    @classmethod
    def apart(cls, count: int, pixel_m: float = 1.0) -> ScenePlane:
        """Put each scene on its own plane."""
        origin = torch.zeros(count, 2, dtype=torch.int64)
        return cls(torch.arange(count), origin, torch.full((count, 2), pixel_m).double())


def lay_out(scenes: SceneSet, pixel_m: float) -> ScenePlane:
    """Lay out the training scenes by their coordinates, or else by the map sheet in their name.

    Scenes share a plane if CRS and pixel size are the same. Scenes with neither CRS nor sheet stay
    apart. So do scenes outside the training split, since a neighbour from a test scene would leak.
    The pixels of scenes that do not give their size have sides of ``pixel_m`` metres.
    """
    found = ScenePlane.apart(len(scenes.records), pixel_m)
    planes: list[tuple[str, np.ndarray, int]] = []  # CRS, step of a row and a column, number
    for scene in scenes.indices("train"):
        name = scenes.records[scene].name
        placed = _place(scenes.sources[name].profile(), name)
        if placed is None:
            continue
        crs, corner, step, size_m = placed
        same = (p for p in planes if p[0] == crs and np.allclose(step, p[1], SAME_STEP, atol=0))
        plane = next(same, (crs, step, scene))
        if plane[2] == scene:
            planes.append(plane)
        found.plane[scene], found.pixel_m[scene] = plane[2], torch.tensor(size_m)
        found.origin[scene] = torch.from_numpy((corner / plane[1]).round().astype(np.int64))
    # Counted from the smallest row and column of a plane, numbers are small enough for float32.
    for _, _, number in planes:
        members = found.plane == number
        found.origin[members] -= found.origin[members].amin(0)
    return found


def _place(grid: Grid, name: str) -> tuple[str, np.ndarray, np.ndarray, tuple[float, float]] | None:
    """Return CRS, upper left corner (y, x) and pixel step (y, x) in CRS units, and pixel metres.

    A scene without CRS that is named after a map sheet covers this sheet, as in WHU-OPT-SAR.
    """
    t, size_m = grid.transform, pixel_size_m(grid)
    if size_m is not None and t.b == t.d == 0:
        return str(grid.crs), np.array([t.f, t.c]), np.array([t.e, t.a]), size_m
    sheet = sheet_of(name)
    if grid.crs is not None or sheet is None:
        return None
    height, width = SHEET_DEGREES
    step = np.array([-height / grid.height, width / grid.width])
    middle = math.radians(sheet.north_deg - height / 2)
    size_m = (-step[0] * DEGREE_M, step[1] * DEGREE_M * math.cos(middle))
    return "sheets", np.array([sheet.north_deg, sheet.west_deg]), step, size_m


def _beside(ground: ScenePlane, sides: Tensor, reach: int) -> Tensor:
    """List each scene's neighbours within ``reach`` px, ``(S, N)``: itself first and as padding."""
    lists, last = [], ground.origin + sides
    for scene in range(len(sides)):
        gap = torch.maximum(ground.origin - last[scene], ground.origin[scene] - last)  # (S, 2)
        near = (ground.plane == ground.plane[scene]) & (gap.amax(1) < reach)
        lists.append([scene, *(i for i in near.nonzero()[:, 0].tolist() if i != scene)])
    longest = max(map(len, lists))
    return torch.tensor([row + [row[0]] * (longest - len(row)) for row in lists])


class WindowDescriptors:
    """Table of valid share, variance and band means of training windows, from a coarse pixel grid.

    There is an entry every quarter of a window. Comparing two windows is then a table lookup on the
    CPU, so choosing a neighbour waits for no device and gives the same result in every process.
    """

    def __init__(self, scenes: SceneSet, roles: tuple[str, ...], size: int) -> None:
        self.step = max(1, size // SAMPLES)  # px between pixels that are looked at
        self.pitch = 2 * self.step  # px between entries of the table
        self.first = torch.zeros(len(scenes.records), dtype=torch.int64)  # row of a scene's first
        self.shape = torch.ones(len(scenes.records), 2, dtype=torch.int64)  # entries down, across
        scales, parts, total = standardisation(scenes, scenes.statistics), [], 0
        for scene in scenes.indices("train"):
            look = self._look(scenes, scene, {role: scales[role] for role in roles})
            self.first[scene], self.shape[scene] = total, torch.tensor(look.shape[1:])
            parts.append(look.flatten(1).T)  # (2 + C, h, w) -> (h w, 2 + C)
            total += len(parts[-1])
        self.table = torch.cat(parts).float()

    def _look(
        self, scenes: SceneSet, scene: int, scales: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> Tensor:
        """Describe a scene: valid share, mean variance within, band means; ``(2 + C, h, w)``."""
        thin = slice(self.step // 2, None, self.step)
        valid = torch.from_numpy(np.array(scenes.plane("valid", scene)[thin, thin])).double()[None]
        bands = []
        for role, (mean, std) in scales.items():
            thinned = np.array(scenes.plane(role, scene)[:, thin, thin])
            values = physical(thinned, role, scenes.layout)
            bands.append((values - mean[scene][:, None, None]) / std[scene][:, None, None])
        x = torch.from_numpy(np.concatenate(bands)).masked_fill(valid == 0, 0)  # (C, h, w)
        n = min(SAMPLES, *x.shape[1:])
        share, first, second = (F.avg_pool2d(v, n, stride=2) for v in (valid, x, x.square()))
        means = first / share.clamp(min=1e-9)
        within = (second / share.clamp(min=1e-9) - means.square()).clamp(min=0)
        return torch.cat([share, within.mean(0, keepdim=True), means])

    def at(self, scene: Tensor, corner: Tensor) -> Tensor:
        """Return the entries ``(..., 2 + C)`` nearest to ``corner (..., 2)`` of ``scene (...)``."""
        place = ((corner + self.pitch // 2) // self.pitch).clamp(min=0)
        row, col = torch.minimum(place, self.shape[scene] - 1).unbind(-1)
        return self.table[self.first[scene] + row * self.shape[scene][..., 1] + col]


def alike(a: Tensor, b: Tensor, homogeneity: float) -> Tensor:
    """Mark pairs of windows whose band means differ by less than their pixels do.

    The root mean square difference over the bands is at most ``homogeneity`` times the pooled
    standard deviation within both windows: an effect size (Cohen 1988), which needs no labels. The
    papers have no such filter. It rejects neighbours across a shore or a forest edge.

    ``a`` and ``b`` are entries ``(..., 2 + C)`` of ``WindowDescriptors``; their shapes broadcast.
    """
    between = (a[..., 2:] - b[..., 2:]).square().mean(-1)
    within = (a[..., 1] + b[..., 1]) / 2
    return between <= homogeneity**2 * within
