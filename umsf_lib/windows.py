"""Windows gathered from the flat arrays, and the tiling that decides which.

No patch is ever written to disk. Where all pixels fit on the GPU, a batch is a few tensor
operations there; else windows are cut from the memory maps one by one, which suits the caches of
a processor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .config import Config, ConfigError, DataError
from .prepare import SceneSet, standardisation, training_statistics
from .scenes import to_log_intensity

PIECE_PX = 256 * 256  # of a window, standardised at a time: what fits a processor's caches


class PixelStore:
    """The flat arrays with their standardisation: windows are gathered from here.

    On the GPU when they fit in half of its free memory, else as memory maps.
    """

    def __init__(
        self,
        scenes: SceneSet,
        statistics: dict[str, dict[str, list[float]]],
        device: torch.device,
    ) -> None:
        self.device, self.layout, self.records = device, scenes.layout, scenes.records
        self.roles = tuple(statistics)
        flats = {role: np.asarray(scenes.flat(role)) for role in (*self.roles, "valid")}
        self.flats = {role: flat.reshape(-1, flat.shape[-1]) for role, flat in flats.items()}
        self.resident: dict[str, Tensor] = {}  # the same on the GPU, where they fit
        if _fits(self.flats, device):
            self.resident = {role: _tensor(flat).to(device) for role, flat in self.flats.items()}
        self.places = torch.tensor(
            [(r.offset, r.height, r.width) for r in scenes.records]
        )  # (S, 3)
        self.moments = standardisation(scenes, statistics)  # sensor -> mean, std, each (S, C)
        self.mean, self.std = (
            {role: torch.from_numpy(pair[which]).to(device) for role, pair in self.moments.items()}
            for which in (0, 1)
        )

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: int | tuple[int, int]) -> dict:
        """Gather standardised windows.

        Args:
            scene: ``(B,)`` int64 scene indices.
            row: ``(B,)`` int64 top rows, px.
            col: ``(B,)`` int64 left columns, px.
            size: side, or (height, width), px. Over a scene's far edges they are repeated.

        Returns:
            ``optical (B, Co, h, w)`` and/or ``sar (B, Cs, h, w)`` float32 standardised, 0 where
            invalid; ``valid (B, 1, h, w)`` bool; all on the device.
        """
        shape = (size, size) if isinstance(size, int) else size
        at = torch.stack([scene, row, col]).cpu()  # (3, B); the draws are made on the CPU
        return self._gather(at, shape) if self.resident else self._read(at, shape)

    def _read(self, at: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Windows from the memory maps, by all threads, in pieces of some rows."""
        # NumPy asks for huge pages: without, fresh memory takes longer than what is written there.
        batch = {
            role: np.empty(
                (at.shape[1], len(flat), *shape), bool if role == "valid" else np.float32
            )
            for role, flat in self.flats.items()
        }
        rows = max(1, PIECE_PX // shape[1])
        pieces = [
            ({role: array[i, :, top : top + rows] for role, array in batch.items()}, s, r + top, c)
            for i, (s, r, c) in enumerate(at.T.tolist())
            for top in range(0, shape[0], rows)
        ]
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._fill, (pieces[start::threads] for start in range(threads))))
        return {role: torch.from_numpy(array).to(self.device) for role, array in batch.items()}

    def _fill(self, pieces: Iterable[tuple[dict[str, np.ndarray], int, int, int]]) -> None:
        """Fill pieces ``(C, h, w)`` of windows, each from its scene, row and column."""
        for piece, scene, row, col in pieces:
            cut = {role: self._cut(role, scene, row, col, x.shape[1:]) for role, x in piece.items()}
            valid = piece["valid"]
            valid[:] = cut["valid"]
            for role, (mean, std) in self.moments.items():
                x = piece[role]
                with np.errstate(all="ignore"):  # invalid pixels may hold anything
                    x[:] = self._physical(cut[role], role)
                    x -= mean[scene][:, None, None]
                    x /= std[scene][:, None, None]
                if not valid.all():
                    np.copyto(x, 0, where=~valid)

    def _physical(self, values: np.ndarray, role: str) -> np.ndarray:
        """Optical values as they are, SAR as ln intensity."""
        if role == "optical" or self.layout.sar is None:
            return values
        if values.dtype == np.uint8:
            return _log_table(self.layout.sar.scaling).take(values, mode="clip")
        return to_log_intensity(values.astype(np.float32), self.layout.sar.scaling)

    def _cut(self, role: str, scene: int, row: int, col: int, shape: tuple[int, ...]) -> np.ndarray:
        """Source values ``(C, h, w)`` of one place; a scene's far edges are repeated."""
        record = self.records[scene]
        sides = record.height, record.width
        plane = self.flats[role][:, record.offset :][:, : math.prod(sides)].reshape(-1, *sides)
        found = plane[:, row : row + shape[0], col : col + shape[1]]
        if found.shape[1:] == shape:
            return np.ascontiguousarray(found)
        rows, cols = (
            np.arange(start, start + n).clip(max=side - 1)
            for start, n, side in zip((row, col), shape, sides, strict=True)
        )
        return plane[:, rows[:, None], cols]

    def _gather(self, at: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Windows on the GPU: a few operations for the whole batch, and the host waits for none."""
        places = torch.cat([at, self.places[at[0]].T]).to(self.device, non_blocking=True)  # (6, B)
        scene, row, col, offset, height, width = places[:, :, None, None]  # (B, 1, 1) each
        lines = [torch.arange(n, device=self.device) for n in shape]
        rows = torch.minimum(row + lines[0][:, None], height - 1)  # (B, h, 1)
        cols = torch.minimum(col + lines[1], width - 1)  # (B, 1, w)
        pixels = offset + rows * width + cols  # (B, h, w)
        # (C, pixels) -> (C, B, h, w) -> (B, C, h, w)
        cut = {role: flat[:, pixels].transpose(0, 1) for role, flat in self.resident.items()}
        for role in self.roles:
            x = cut[role].float()
            if role == "sar" and self.layout.sar is not None:
                x = to_log_intensity(x, self.layout.sar.scaling)
            mean, std = (t[role][scene[:, 0, 0], :, None, None] for t in (self.mean, self.std))
            cut[role] = x.sub_(mean).div_(std).masked_fill_(~cut["valid"], 0)
        return cut

    def scene(self, index: int) -> dict[str, Tensor]:
        """One whole scene as a batch of one."""
        _, height, width = self.places[index].tolist()
        zero = torch.zeros(1, dtype=torch.int64)
        return self.windows(zero + index, zero, zero, (height, width))

    def unscaled(self, x: Tensor, role: str, index: int) -> Tensor:
        """Undo the standardisation of ``(B, C, h, w)``: source values, SAR as ln intensity."""
        return x * self.std[role][index][:, None, None] + self.mean[role][index][:, None, None]


@functools.cache
def _log_table(scaling: str) -> np.ndarray:
    """Ln intensity of each 8-bit value ``(256,)``, so that no logarithm is taken per pixel."""
    return to_log_intensity(np.arange(256, dtype=np.float32), scaling)


def open_store(scenes: SceneSet, config: Config, device: torch.device) -> PixelStore:
    """The pixel store of a run, with the sensors that its network sees."""
    statistics = training_statistics(scenes)
    if config.model.sensors != "both":
        statistics = {config.model.sensors: statistics[config.model.sensors]}
    return PixelStore(scenes, statistics, device)


def _tensor(array: np.ndarray) -> Tensor:
    # torch computes little with uint16: widen it once.
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array)


def _fits(flats: dict[str, np.ndarray], device: torch.device) -> bool:
    """Whether the arrays go on the device; the CPU has them in its memory maps."""
    if device.type != "cuda":
        return False
    return sum(flat.nbytes for flat in flats.values()) < torch.cuda.mem_get_info(device)[0] / 2


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
