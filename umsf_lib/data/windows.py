"""Cut windows out of the flat arrays, and tile scenes.

Patches are never written to disk. If all pixels fit on the GPU, a batch takes a few tensor
operations there. Otherwise windows are cut from the memory maps one by one, which makes good use
of CPU caches.
"""

from __future__ import annotations

import functools
import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..config import Config, ConfigError, DataError
from ..run import to_device
from .layout import to_log_intensity
from .scene_set import SceneSet, standardisation

# Pixels standardised at a time: few enough for CPU caches, enough to keep threads independent.
PIECE_PX = 4 * 256 * 256
RECYCLED_BYTES = 2**26  # arrays up to this size keep their memory for the next batch


class PixelStore:
    """The flat arrays with their standardisation, from which windows are cut.

    The arrays are kept on the GPU if they fit in half of its free memory, else as memory maps.
    """

    def __init__(
        self,
        scenes: SceneSet,
        statistics: dict[str, dict[str, list[float]]],
        device: torch.device,
    ) -> None:
        self.device, self.layout, self.records = device, scenes.layout, scenes.records
        self.roles = tuple(statistics)
        # Plain arrays (C, P), because slicing numpy.memmap is slower.
        flats = {r: np.atleast_2d(np.asarray(scenes.flat(r))) for r in (*self.roles, "valid")}
        self.planes = {  # per scene (C, H, W)
            role: [
                flat[:, r.offset : r.offset + r.height * r.width].reshape(-1, r.height, r.width)
                for r in scenes.records
            ]
            for role, flat in flats.items()
        }
        self.valid_pixels = flats["valid"][0]  # (P,)
        self.whole = [r.valid_px == r.height * r.width for r in scenes.records]  # without nodata
        self.spare: dict[str, np.ndarray] = {}  # memory of batches that are gone
        self.resident: dict[str, Tensor] = {}  # (C, pixels) on the GPU, where they fit
        if _fits(flats, device):
            self.resident = {role: _tensor(flat).to(device) for role, flat in flats.items()}
        places = [(r.offset, r.height, r.width) for r in scenes.records]
        self.places = torch.tensor(places)  # (S, 3)
        self.moments = standardisation(scenes, statistics)  # sensor -> mean, std, each (S, C)
        self.statistics = statistics  # of the training scenes
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
            size: side, or (height, width), px. Beyond the bottom and right edges of a scene, the
                edge pixels are repeated.

        Returns:
            ``optical (B, Co, h, w)`` and/or ``sar (B, Cs, h, w)`` float32 standardised, 0 where
            invalid; with it ``sar_log_std (B, Cs, 1, 1)``, the std that standardised its ln
            intensity; ``valid (B, 1, h, w)`` bool; all on the device.
        """
        shape = (size, size) if isinstance(size, int) else size
        at = torch.stack([scene, row, col]).cpu()  # (3, B); the draws are made on the CPU
        found = self._gather(at, shape) if self.resident else self._read(at, shape)
        if "sar" in self.roles:
            found["sar_log_std"] = self.std["sar"][to_device(at[0], self.device), :, None, None]
        return found

    def _read(self, at: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Cut windows from the memory maps in all threads, a few windows or rows at a time."""
        (height, width), count = shape, at.shape[1]
        batch = {
            role: self._empty(role, (count, len(planes[0]), height, width))
            for role, planes in self.planes.items()
        }
        windows, rows = max(1, PIECE_PX // (height * width)), max(1, PIECE_PX // width)
        firsts, tops = range(0, count, windows), range(0, height, rows)
        pieces = iter([(first, top) for first in firsts for top in tops])

        def work() -> None:
            for first, top in pieces:  # shared: the next free thread takes the next piece
                some, lines = slice(first, first + windows), slice(top, top + rows)
                places = [(s, r + top, c) for s, r, c in at.T[some].tolist()]
                self._fill({role: x[some, :, lines] for role, x in batch.items()}, places)

        helpers = torch.get_num_threads() - 1
        others = [_pool(helpers).submit(work) for _ in range(helpers)]
        work()
        for other in others:
            other.result()
        return {
            role: to_device(torch.from_numpy(array), self.device) for role, array in batch.items()
        }

    def _empty(self, role: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised array: bool for ``valid``, else float32.

        Its memory is used again once the array and all tensors that share it are gone, because the
        system clears new memory page by page, which takes as long as filling it.
        """
        owner = self.spare.pop(role, None)
        if owner is None or owner.shape != shape:
            owner = np.empty(shape, bool if role == "valid" else np.float32)
        lent = owner.view()
        if owner.nbytes <= RECYCLED_BYTES:
            weakref.finalize(lent, self.spare.__setitem__, role, owner)
        return lent

    def _fill(self, piece: dict[str, np.ndarray], places: list[tuple[int, int, int]]) -> None:
        """Write standardised windows at ``places`` (scene, row, col) into ``piece``."""
        scenes, valid = [scene for scene, _, _ in places], piece["valid"]
        if whole := all(self.whole[scene] for scene in scenes):
            valid[:] = True
        else:
            self._copy("valid", places, valid)
        for role, (mean, std) in self.moments.items():
            x = piece[role]
            source = np.empty(x.shape, self.planes[role][0].dtype)
            self._copy(role, places, source)
            with np.errstate(all="ignore"):  # invalid pixels may hold any value
                self._to_physical(source, role, x)
                x -= mean[scenes, :, None, None]
                x *= 1 / std[scenes, :, None, None]
            if not whole:
                np.copyto(x, 0, where=~valid)

    def _copy(self, role: str, places: list[tuple[int, int, int]], to: np.ndarray) -> None:
        """Cut windows as stored, repeating the bottom and right edge pixels of their scenes."""
        height, width = to.shape[2:]
        for window, (scene, row, col) in zip(to, places, strict=True):
            plane = self.planes[role][scene]  # (C, H, W)
            inside = plane[:, row : row + height, col : col + width]
            if inside.shape != window.shape:
                rows = np.arange(row, row + height).clip(max=plane.shape[1] - 1)
                cols = np.arange(col, col + width).clip(max=plane.shape[2] - 1)
                inside = plane[:, rows[:, None], cols]
            window[:] = inside

    def _to_physical(self, source: np.ndarray, role: str, x: np.ndarray) -> None:
        """Write optical values as they are, SAR as ln intensity, to float32 ``x``."""
        scaling = self.layout.sar.scaling if role == "sar" and self.layout.sar else ""
        if not scaling:
            x[:] = source
        elif source.dtype == np.uint8:
            _log_table(scaling).take(source, out=x, mode="clip")
        else:
            x[:] = to_log_intensity(source.astype(np.float32), scaling)

    def _gather(self, at: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Cut the windows of a batch on the GPU in a few operations, without waiting for any."""
        places = to_device(torch.cat([at, self.places[at[0]].T]), self.device)  # (6, B)
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
        """Return one whole scene as a batch of one window (see ``windows``)."""
        _, height, width = self.places[index].tolist()
        zero = torch.zeros(1, dtype=torch.int64)
        return self.windows(zero + index, zero, zero, (height, width))

    @property
    def all_valid(self) -> bool:
        """Whether no scene has a pixel without data."""
        return all(self.whole)

    def valid_at(self, scene: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Whether the pixels at ``(...)`` int64 scenes, rows and columns are valid: ``(...)`` bool.

        All are on the CPU: the memory map is read whatever the device, so no GPU is waited for.
        """
        offset, _, width = self.places[scene].unbind(-1)
        return torch.from_numpy(self.valid_pixels[(offset + row * width + col).numpy()])

    def valid(self, index: int) -> Tensor:
        """Return the valid pixels of a scene: ``(H, W) bool`` on the device."""
        return to_device(torch.from_numpy(np.array(self.planes["valid"][index][0])), self.device)

    def unscaled(self, x: Tensor, role: str, index: int) -> Tensor:
        """Undo the standardisation of ``(B, C, h, w)``; SAR values stay ln intensity."""
        return x * self.std[role][index][:, None, None] + self.mean[role][index][:, None, None]

    def on_one_scale(self, x: Tensor, role: str, index: int) -> Tensor:
        """Standardise ``(B, C, h, w)`` anew, by the moments of the training scenes alone.

        Values of all scenes then compare; where the layout says ``standardise: set``, they do so
        already and stay as they are.
        """
        mean, std = (torch.tensor(self.statistics[role][key]).to(x) for key in ("mean", "std"))
        std = std.clamp_min(1e-6)
        factor, shift = self.std[role][index] / std, (self.mean[role][index] - mean) / std
        return x * factor[:, None, None] + shift[:, None, None]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):  # a forked process inherits the pool without its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def _log_table(scaling: str) -> np.ndarray:
    """Return the ln intensity of each 8-bit value ``(256,)``: faster than a log per pixel."""
    return to_log_intensity(np.arange(256, dtype=np.float32), scaling)


def open_store(scenes: SceneSet, config: Config, device: torch.device) -> PixelStore:
    """Open the pixel store of a run, with the sensors that its network sees."""
    statistics = scenes.statistics
    if config.model.sensors != "both":
        statistics = {config.model.sensors: statistics[config.model.sensors]}
    return PixelStore(scenes, statistics, device)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(_kept_as(array.dtype), copy=False))


def _kept_as(dtype: np.dtype) -> np.dtype:
    """Return the dtype on the GPU: uint16 becomes int32, as torch hardly supports uint16."""
    return np.dtype(np.int32) if dtype == np.uint16 else dtype


def _fits(flats: dict[str, np.ndarray], device: torch.device) -> bool:
    """Return whether to copy the arrays to the device; on a CPU the memory maps are used."""
    if device.type != "cuda":
        return False
    needed = sum(flat.size * _kept_as(flat.dtype).itemsize for flat in flats.values())
    return needed < torch.cuda.mem_get_info(device)[0] / 2


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Return the starts of tiles along a scene's side of ``length`` px; the last is shifted back.

    Raises:
        ConfigError: the overlap is not smaller than a tile.
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
    """Return the top-left corners ``(T, 2)`` of tiles that cover a scene (see ``tile_starts``)."""
    rows, cols = (tile_starts(length, size, overlap) for length in (height, width))
    return np.array([(r, c) for r in rows for c in cols])


def training_tiles(scenes: SceneSet, size: int, overlap: int, least_valid: float = 0.5) -> Tensor:
    """``(T, 3)`` int64 scene, row, col of training tiles with at least this share of valid pixels.

    Raises:
        DataError: there is none.
    """
    found = []
    for scene in scenes.indices("train"):
        record, valid = scenes.records[scene], scenes.plane("valid", scene)
        for row, col in tile_scene(record.height, record.width, size, overlap):
            if valid[row : row + size, col : col + size].mean() >= least_valid:
                found.append((scene, int(row), int(col)))
    if not found:
        raise DataError(
            f"no training window of {size} px in {scenes.folder} has {least_valid:.0%} valid "
            "ground; choose smaller windows (override views.window_px)."
        )
    return torch.tensor(found)


def draw_windows(
    tiles: Tensor, count: int, size: int, jitter: int, places: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw random tiles and shift each by up to ``jitter`` px within its scene.

    Args:
        tiles: ``(T, 3) int64`` scene, row, col.
        count: number of windows.
        size: side of a window, px.
        jitter: largest shift in each direction, px.
        places: ``(S, 3)`` offset, height and width of the scenes.
        generator: source of the draws.

    Returns:
        scene, row, col: ``(count,) int64`` each.
    """
    pick = torch.randint(len(tiles), (count,), generator=generator)
    move = torch.randint(-jitter, jitter + 1, (count, 2), generator=generator)
    scene = tiles[pick, 0]
    last = places[scene, 1:] - size  # (count, 2) last top-left corner inside
    corner = torch.minimum((tiles[pick, 1:] + move).clamp(min=0), last)
    return scene, corner[:, 0], corner[:, 1]
