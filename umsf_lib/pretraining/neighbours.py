"""Neighbours: windows a short way off on the ground, the positives of spatial contrast.

The first law of geography (Tobler 1970): near things are more related than distant things. So a
window beside another one may stand for it, as a second view does (Jean et al. 2019, Tile2Vec; Kang
et al. 2021, SauMoCo). SauMoCo draws each axis by itself, from a square of pixels; here the farthest
neighbour is a distance on the ground, so the place is drawn evenly from a disc.
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

CANDIDATES = 32  # places drawn per neighbour; the first that serves is taken
SAMPLES = 8  # pixels looked at along each side of a window to tell whether two are alike
SAME_STEP = 1e-3  # relative difference of pixel sizes that still count as one grid

Corners = tuple[Tensor, Tensor, Tensor]  # scene, row, col of windows' first pixels, (B,) int64


@dataclass(frozen=True)
class ScenePlane:
    """Where scenes lie on planes of pixels, so that ground goes on beyond a scene's edge.

    Attributes:
        plane: ``(S,)`` int64; scenes of the same number share one grid.
        origin: ``(S, 2)`` int64 row, col of a scene's first pixel on its plane.
        pixel_m: ``(S, 2)`` float64 ground height and width of a pixel, metres.
    """

    plane: Tensor
    origin: Tensor
    pixel_m: Tensor

    def corner(self, scene: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """``(B, 2)`` float32 row, col on the plane of places ``(B,)`` in scenes."""
        return (self.origin[scene] + torch.stack([row, col], dim=1)).float()

    @classmethod
    def apart(cls, count: int, pixel_m: float = 1.0) -> ScenePlane:
        """Each scene on a plane of its own."""
        origin = torch.zeros(count, 2, dtype=torch.int64)
        return cls(torch.arange(count), origin, torch.full((count, 2), pixel_m).double())


def lay_out(scenes: SceneSet, pixel_m: float) -> ScenePlane:
    """Lay the training scenes out by their coordinates, else by the map sheet they are named after.

    Scenes join a plane when CRS and pixel size are the same; those with neither CRS nor sheet stay
    apart, as do all that do not train: a neighbour from a test scene would leak.

    Args:
        scenes: prepared.
        pixel_m: side of a pixel of scenes that do not tell, metres.
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
    # Counted from the first scene of a plane, numbers are small enough for float32.
    index, far = found.plane[:, None].expand(-1, 2), torch.iinfo(torch.int64).max
    least = torch.full_like(found.origin, far).scatter_reduce(0, index, found.origin, "amin")
    found.origin.sub_(least[found.plane])
    return found


def _place(grid: Grid, name: str) -> tuple[str, np.ndarray, np.ndarray, tuple[float, float]] | None:
    """CRS, upper left corner (y, x) and step of a row and a column in its units, pixel in metres.

    A scene without CRS that is named after a sheet covers this sheet, as those of WHU-OPT-SAR do.
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
    """Draws a neighbour for each of a batch of windows."""

    def __init__(self, scenes: SceneSet, roles: tuple[str, ...], size: int, config: PretrainConfig):
        """Lay out the training scenes and look at them coarsely, once.

        Args:
            scenes: prepared.
            roles: sensors to compare windows by.
            size: of a window, px.
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
        """A window near each of ``windows``: uniform in the disc, as far as there is ground.

        A place serves if the whole window lies in one scene and at least half of it is valid;
        with ``homogeneity`` it must also look alike (see ``alike``). A window without any such
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
        """Scene ``(n, B)`` that holds the whole window at ``target``, -1 for none; corner in it.

        Where scenes overlap, the window's own scene comes first.
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
    """Offsets ``(count, batch, 2)`` float64, uniform over the area of a disc."""
    u = torch.rand(2, count, batch, generator=generator, dtype=torch.float64)
    distance, angle = radius * u[0].sqrt(), 2 * math.pi * u[1]
    return torch.stack([distance * angle.sin(), distance * angle.cos()], dim=2)


def _beside(ground: ScenePlane, sides: Tensor, reach: int) -> Tensor:
    """``(S, N)`` int64: of each scene those within ``reach`` px; itself first, and as padding."""
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
    """Band means, spread and valid share of every training window, from a coarse grid of pixels.

    Kept at a quarter of a window, so that comparing two windows is reading a table on the CPU: the
    choice of a neighbour waits for no device, and is the same in every process of a training.
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
        """``(2 + C, h, w)`` float64: valid share, variance within (mean of bands), band means."""
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
        """Entries ``(..., 2 + C)`` nearest to windows of ``scene (...)`` at ``corner (..., 2)``."""
        place = ((corner + self.pitch // 2) // self.pitch).clamp(min=0)
        place = torch.minimum(place, self.shape[scene] - 1)
        index = self.first[scene] + place[..., 0] * self.shape[scene][..., 1] + place[..., 1]
        return self.table[index]

    def serve(
        self, anchors: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], homogeneity: float
    ) -> Tensor:
        """Whether windows are half valid and, with ``homogeneity`` > 0, like their anchors."""
        entry = self.at(*others)
        half_valid = entry[..., 0] >= 0.5
        if homogeneity == 0:
            return half_valid
        return half_valid & alike(self.at(*anchors), entry, homogeneity)


def alike(a: Tensor, b: Tensor, homogeneity: float) -> Tensor:
    """Whether the band means of two windows differ by less than their pixels do.

    The root mean square difference over the bands is at most ``homogeneity`` times the pooled
    standard deviation within both windows: an effect size (Cohen 1988), free of labels. The papers
    have no such filter; it keeps a neighbour across a shore or a forest's edge from being taken
    for the same.

    Args:
        a: entries ``(..., 2 + C)`` of a ``WindowDescriptors`` table.
        b: others, of a shape that broadcasts.
        homogeneity: in standard deviations.
    """
    between = (a[..., 2:] - b[..., 2:]).square().mean(-1)
    within = (a[..., 1] + b[..., 1]) / 2
    return between <= homogeneity**2 * within
