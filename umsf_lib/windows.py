"""Windows gathered from the flat arrays, and the tiling that decides which.

A batch of windows is one index operation, whether the array is a memory map or a tensor on the
GPU; no patch is ever written to disk.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .config import Config, ConfigError, DataError
from .prepare import SceneSet, standardisation, training_statistics
from .scenes import to_log_intensity


class PixelStore:
    """The flat arrays as tensors, with standardisation: windows are gathered from here.

    On the GPU when they fit in half of its free memory, else memory-mapped on the CPU and copied
    batch by batch.
    """

    def __init__(
        self,
        scenes: SceneSet,
        statistics: dict[str, dict[str, list[float]]],
        device: torch.device,
    ) -> None:
        self.device, self.layout, self.records = device, scenes.layout, scenes.records
        self.roles = tuple(statistics)
        flats = {role: torch.from_numpy(_torch_dtype(scenes.flat(role))) for role in self.roles}
        flats["valid"] = torch.from_numpy(scenes.flat("valid"))
        home = device if _fits(flats, device) else torch.device("cpu")
        self.flats = {role: flat.to(home) for role, flat in flats.items()}
        self.places = torch.tensor(
            [(r.offset, r.height, r.width) for r in scenes.records]
        )  # (S, 3)
        self.mean, self.std = {}, {}  # sensor -> (S, C)
        for role, (mean, std) in standardisation(scenes, statistics).items():
            self.mean[role] = torch.from_numpy(mean).to(device)
            self.std[role] = torch.from_numpy(std).to(device)

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: int | tuple[int, int]) -> dict:
        """Gather standardised windows.

        Args:
            scene: ``(B,)`` int64 scene indices.
            row: ``(B,)`` int64 top rows, px.
            col: ``(B,)`` int64 left columns, px.
            size: side, or (height, width), px.

        Returns:
            ``optical (B, Co, h, w)`` and/or ``sar (B, Cs, h, w)`` float32 standardised, 0 where
            invalid; ``valid (B, 1, h, w)`` bool; all on the device.
        """
        shape = (size, size) if isinstance(size, int) else size
        at = torch.stack([scene, row, col]).cpu()  # (3, B); the draws are made on the CPU
        valid = self._patches("valid", at, shape).transpose(0, 1)
        batch: dict[str, Tensor] = {"valid": valid}
        for role in self.roles:
            x = self._patches(role, at, shape).transpose(0, 1).float()  # (B, C, h, w)
            if role == "sar" and self.layout.sar is not None:
                x = to_log_intensity(x, self.layout.sar.scaling)
            where = scene.to(self.device)
            mean, std = (t[role][where][:, :, None, None] for t in (self.mean, self.std))
            batch[role] = x.sub_(mean).div_(std).masked_fill_(~valid, 0)  # in place: memory is slow
        return batch

    def _patches(self, role: str, at: Tensor, shape: tuple[int, int]) -> Tensor:
        """Source values ``(C, B, h, w)`` on the device, cut out at ``at`` (scene, row, col).

        Seen with the strides of a window, a flat array is one window after another, and cutting
        is choosing among them. Scenes of another width have other strides.
        """
        flat = self.flats[role].view(-1, self.flats[role].shape[-1])  # (C, pixels)
        scene, row, col = at
        offset, *sides = self.places[scene].T  # (B,), [(B,), (B,)]
        # A tile may reach a few pixels over the far edges: cut further in, then repeat the edge.
        inner = [min(n, int(side.min())) for n, side in zip(shape, sides, strict=True)]
        reach = zip((row, col), inner, sides, strict=True)
        over = [(start + n - side).clamp(min=0) for start, n, side in reach]
        first = offset + (row - over[0]) * sides[1] + col - over[1]  # (B,) pixels
        cut = _cut(flat, first, sides[1], inner).to(self.device)
        if inner == list(shape) and not any(o.any() for o in over):
            return cut
        return _slide(cut, over, shape)

    def scene(self, index: int) -> dict[str, Tensor]:
        """One whole scene as a batch of one."""
        _, height, width = self.places[index].tolist()
        zero = torch.zeros(1, dtype=torch.int64)
        return self.windows(zero + index, zero, zero, (height, width))

    def unscaled(self, x: Tensor, role: str, index: int) -> Tensor:
        """Undo the standardisation of ``(B, C, h, w)``: source values, SAR as ln intensity."""
        return x * self.std[role][index][:, None, None] + self.mean[role][index][:, None, None]


def _cut(flat: Tensor, first: Tensor, scene_width: Tensor, shape: list[int]) -> Tensor:
    """Windows ``(C, B, h, w)`` of ``flat (C, pixels)`` whose top-left pixels are ``first (B,)``."""
    (channels, total), (height, width) = flat.shape, shape
    parts, order = [], []
    for step in scene_width.unique().tolist():
        group = (scene_width == step).nonzero()[:, 0]
        places = total - (height - 1) * step - width + 1
        size, strides = (channels, places, height, width), (flat.stride(0), 1, step, 1)
        parts.append(flat.as_strided(size, strides)[:, first[group].to(flat.device)])
        order.append(group)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim=1)[:, torch.cat(order).argsort().to(flat.device)]


def _slide(cut: Tensor, over: list[Tensor], shape: tuple[int, int]) -> Tensor:
    """Move each of ``cut (C, B, h, w)`` up and left by ``over``; the last row and column repeat."""
    index = [
        (torch.arange(n) + o[:, None]).clamp(max=side - 1).to(cut.device)  # (B, n)
        for n, o, side in zip(shape, over, cut.shape[2:], strict=True)
    ]
    every = torch.arange(cut.shape[1], device=cut.device)[:, None, None]
    return cut[:, every, index[0][:, :, None], index[1][:, None, :]]


def open_store(scenes: SceneSet, config: Config, device: torch.device) -> PixelStore:
    """The pixel store of a run, with the sensors that its network sees."""
    statistics = training_statistics(scenes)
    if config.model.sensors != "both":
        statistics = {config.model.sensors: statistics[config.model.sensors]}
    return PixelStore(scenes, statistics, device)


def _torch_dtype(array: np.ndarray) -> np.ndarray:
    # torch computes little with uint16: widen it once.
    return array.astype(np.int32) if array.dtype == np.uint16 else array


def _fits(flats: dict[str, Tensor], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    need = sum(flat.numel() * flat.element_size() for flat in flats.values())
    return need < torch.cuda.mem_get_info(device)[0] / 2


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Starts of tiles of ``size`` px every ``size - overlap`` px; the last is shifted back.

    Raises:
        ConfigError: tiles overlap by their whole size.
        DataError: the scene is smaller than one tile.
    """
    if overlap >= size:
        raise ConfigError(
            f"windows of {size} px cannot overlap by {overlap} px; choose a smaller overlap "
            "(override views.overlap_px or map.overlap_px)."
        )
    if length < size:
        raise DataError(
            f"a scene side of {length} px is smaller than a window of {size} px; "
            "choose smaller windows (override views.window_px or map.tile_px)."
        )
    count = math.ceil((length - size) / (size - overlap)) + 1
    return [min(i * (size - overlap), length - size) for i in range(count)]


def tile_scene(height: int, width: int, size: int, overlap: int) -> np.ndarray:
    """Top-left corners ``(T, 2)`` of tiles that cover every pixel of a scene."""
    rows, cols = (tile_starts(length, size, overlap) for length in (height, width))
    return np.array([(r, c) for r in rows for c in cols])


def training_tiles(scenes: SceneSet, size: int, overlap: int) -> Tensor:
    """``(T, 3)`` int64 scene, row, col of training tiles of which at least half is valid."""
    found = []
    for scene in scenes.indices("train"):
        record, valid = scenes.records[scene], scenes.plane("valid", scene)
        for row, col in tile_scene(record.height, record.width, size, overlap):
            if valid[row : row + size, col : col + size].mean() >= 0.5:
                found.append((scene, int(row), int(col)))
    if not found:
        raise DataError(f"no training window of {size} px in {scenes.folder} is half valid.")
    return torch.tensor(found)


def draw_windows(
    tiles: Tensor, count: int, size: int, jitter: int, places: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``count`` windows: a random tile each, moved by up to ``jitter`` px, inside its scene.

    Returns:
        scene, row, col: ``(count,)`` int64 each.
    """
    pick = torch.randint(len(tiles), (count,), generator=generator)
    move = torch.randint(-jitter, jitter + 1, (count, 2), generator=generator)
    scene = tiles[pick, 0]
    last = places[scene, 1:] - size  # (count, 2) last top-left corner inside
    corner = torch.minimum((tiles[pick, 1:] + move).clamp(min=0), last)
    return scene, corner[:, 0], corner[:, 1]
