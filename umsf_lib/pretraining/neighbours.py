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
from ..data.rasters import DEGREE_M, Grid, pixel_size_m
from ..data.scene_set import SceneSet, physical, standardisation

CANDIDATES = 32  # places drawn per neighbour; the first suitable one is taken
SAMPLES = 8  # pixels looked at along each side of a window to tell whether two are alike
SAME_STEP = 1e-3  # relative difference of pixel sizes that still count as one grid

Corners = tuple[Tensor, Tensor, Tensor]  # scene, row, col of windows' first pixels, (B,) int64


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

    Args:
        scenes: prepared scenes.
        pixel_m: side of a pixel in metres, for scenes that do not give it.
    """
    found = ScenePlane.apart(len(scenes.records), pixel_m)
    planes: list[tuple[str, np.ndarray, int]] = []  # CRS, step of a row and a column, number
    for scene in scenes.indices("train"):
        record = scenes.records[scene]
        placed = _place(scenes.sources[record.name].profile(), record.name)
        if placed is None:
            continue
        crs, corner, step, size_m = placed
        found.pixel_m[scene] = torch.tensor(size_m)
        same = (p for p in planes if p[0] == crs and (abs(step / p[1] - 1) < SAME_STEP).all())
        plane = next(same, None)
        if plane is None:
            plane = crs, step, scene
            planes.append(plane)
        found.plane[scene] = plane[2]
        found.origin[scene] = torch.from_numpy((corner / plane[1]).round().astype(np.int64))
    # Counted from the smallest row and column of a plane, numbers are small enough for float32.
    index, far = found.plane[:, None].expand(-1, 2), torch.iinfo(torch.int64).max
    least = torch.full_like(found.origin, far).scatter_reduce(0, index, found.origin, "amin")
    found.origin.sub_(least[found.plane])
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


class Neighbours:
    """Sampler of a neighbour for each window of a batch."""

    def __init__(self, scenes: SceneSet, roles: tuple[str, ...], size: int, config: PretrainConfig):
        """Lay out the training scenes and describe their windows, once.

        Args:
            scenes: prepared scenes.
            roles: sensors to compare windows by.
            size: side of a window, px.
            config: ``neighbour_m``, ``homogeneity``, ``pixel_m``.
        """
        self.size, self.config = size, config
        self.ground = lay_out(scenes, config.pixel_m)
        self.sides = torch.tensor([(r.height, r.width) for r in scenes.records])  # (S, 2)
        self.beside = _beside(self.ground, self.sides, self._reach_px() + size)
        self.looks = WindowDescriptors(scenes, roles, size)
        train = scenes.indices("train")
        alone = all((self.beside[i] == i).all() and self.sides[i].max() <= size for i in train)
        if alone:
            warnings.warn(
                f"No training scene is larger than a window of {size} px or lies beside another, "
                "so every window is its own neighbour; set a smaller views.window_px.",
                stacklevel=2,
            )

    def _reach_px(self) -> int:
        return math.ceil(self.config.neighbour_m / float(self.ground.pixel_m.min()))

    def draw(self, windows: Corners, generator: torch.Generator) -> Corners:
        """Draw a window near each of ``windows``, uniformly from the part of the disc with data.

        A place is suitable if the whole window lies in one scene and at least half of it is valid;
        with ``homogeneity`` it must also look alike (see ``alike``). A window without a suitable
        place among ``CANDIDATES`` is its own neighbour.
        """
        scene, row, col = windows
        offset = draw_in_disc(CANDIDATES, len(scene), self.config.neighbour_m, generator)
        offset = (offset / self.ground.pixel_m[scene]).round().long()  # (n, B, 2) px
        corner = torch.stack([row, col], dim=1)  # (B, 2)
        target = self.ground.origin[scene] + corner + offset  # (n, B, 2) on the plane
        found, place = self._scene_at(scene, target)
        serves = (found >= 0) & self.looks.serve(
            (scene, corner), (found.clamp(min=0), place), self.config.homogeneity
        )
        first = serves.int().argmax(0)  # (B,)
        every = torch.arange(len(scene))
        any_serves = serves[first, every]
        scene = torch.where(any_serves, found[first, every], scene)
        corner = torch.where(any_serves[:, None], place[first, every], corner)
        return scene, corner[:, 0], corner[:, 1]

    def _scene_at(self, scene: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Find the scene ``(n, B)`` that holds the whole window at ``target``; corner in it.

        The scene is -1 if there is none. Where scenes overlap, the window's own scene comes first.
        """
        found = torch.full(target.shape[:2], -1)
        place = torch.zeros_like(target)
        for other in self.beside[scene].T:  # (B,) each
            local = target - self.ground.origin[other]
            inside = ((local >= 0) & (local <= self.sides[other] - self.size)).all(2) & (found < 0)
            found = torch.where(inside, other, found)
            place = torch.where(inside[:, :, None], local, place)
        return found, place


def draw_in_disc(count: int, batch: int, radius: float, generator: torch.Generator) -> Tensor:
    """Draw offsets ``(count, batch, 2)`` float64, uniform over the area of a disc."""
    u = torch.rand(2, count, batch, generator=generator, dtype=torch.float64)
    distance, angle = radius * u[0].sqrt(), 2 * math.pi * u[1]
    return torch.stack([distance * angle.sin(), distance * angle.cos()], dim=2)


def _beside(ground: ScenePlane, sides: Tensor, reach: int) -> Tensor:
    """List each scene's neighbours within ``reach`` px, ``(S, N)``: itself first and as padding."""
    lists: list[list[int]] = [[scene] for scene in range(len(sides))]
    numbers, counts = ground.plane.unique(return_counts=True)
    for number in numbers[counts > 1].tolist():
        members = (ground.plane == number).nonzero()[:, 0]
        first, last = ground.origin[members], (ground.origin + sides)[members]
        gap = torch.maximum(first[:, None] - last[None], first[None] - last[:, None])  # (m, m, 2)
        for scene, near in zip(members.tolist(), (gap.amax(2) < reach), strict=True):
            lists[scene] += [i for i in members[near].tolist() if i != scene]
    longest = max(map(len, lists))
    return torch.tensor([row + [row[0]] * (longest - len(row)) for row in lists])


class WindowDescriptors:
    """Table of band means, variance and valid share of training windows, from a coarse pixel grid.

    There is an entry every quarter of a window. Comparing two windows is then a table lookup on the
    CPU, so choosing a neighbour waits for no device and gives the same result in every process.
    """

    def __init__(self, scenes: SceneSet, roles: tuple[str, ...], size: int) -> None:
        self.step = max(1, size // SAMPLES)  # px between pixels that are looked at
        self.pitch = 2 * self.step  # px between entries of the table
        count = len(scenes.records)
        self.first, self.shape = torch.zeros(count, dtype=torch.int64), torch.ones(count, 2)
        self.shape = self.shape.long()
        parts, total = [], 0
        scales = standardisation(scenes, scenes.statistics)
        for scene in scenes.indices("train"):
            look = self._look(scenes, scene, {role: scales[role] for role in roles})
            self.first[scene], self.shape[scene] = total, torch.tensor(look.shape[1:])
            parts.append(look.flatten(1).T)  # (places, 2 + C)
            total += len(parts[-1])
        self.table = torch.cat(parts).float()

    def _look(
        self, scenes: SceneSet, scene: int, scales: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> Tensor:
        """Describe a scene: valid share, mean variance within, band means; ``(2 + C, h, w)``."""
        start, step = self.step // 2, self.step
        thin = (..., slice(start, None, step), slice(start, None, step))
        valid = torch.from_numpy(np.array(scenes.plane("valid", scene)[thin])).double()[None]
        bands = []
        for role, (mean, std) in scales.items():
            values = physical(np.array(scenes.plane(role, scene)[thin]), role, scenes.layout)
            bands.append((values - mean[scene][:, None, None]) / std[scene][:, None, None])
        x = torch.from_numpy(np.concatenate(bands)).masked_fill(valid == 0, 0)  # (C, h, w)
        n = min(SAMPLES, *x.shape[1:])
        share, first, second = (
            F.avg_pool2d(values, n, stride=2) for values in (valid, x, x.square())
        )
        means = first / share.clamp(min=1e-9)
        within = (second / share.clamp(min=1e-9) - means.square()).clamp(min=0)
        return torch.cat([share, within.mean(0, keepdim=True), means])

    def at(self, scene: Tensor, corner: Tensor) -> Tensor:
        """Return the entries ``(..., 2 + C)`` nearest to ``corner (..., 2)`` of ``scene (...)``."""
        place = ((corner + self.pitch // 2) // self.pitch).clamp(min=0)
        place = torch.minimum(place, self.shape[scene] - 1)
        index = self.first[scene] + place[..., 0] * self.shape[scene][..., 1] + place[..., 1]
        return self.table[index]

    def serve(
        self, anchors: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], homogeneity: float
    ) -> Tensor:
        """Mark windows that are half valid and, with ``homogeneity`` > 0, like their anchors."""
        entry = self.at(*others)
        half_valid = entry[..., 0] >= 0.5
        if homogeneity == 0:
            return half_valid
        return half_valid & alike(self.at(*anchors), entry, homogeneity)


def alike(a: Tensor, b: Tensor, homogeneity: float) -> Tensor:
    """Mark pairs of windows whose band means differ by less than their pixels do.

    The root mean square difference over the bands is at most ``homogeneity`` times the pooled
    standard deviation within both windows: an effect size (Cohen 1988), which needs no labels. The
    papers have no such filter. It rejects neighbours across a shore or a forest edge.

    Args:
        a: entries ``(..., 2 + C)`` of a ``WindowDescriptors`` table.
        b: other entries, of a shape that broadcasts.
        homogeneity: limit in standard deviations.
    """
    between = (a[..., 2:] - b[..., 2:]).square().mean(-1)
    within = (a[..., 1] + b[..., 1]) / 2
    return between <= homogeneity**2 * within
