"""Scenes streamed into flat arrays: all scenes behind each other, one array per sensor.

Strip by strip and in the source's own dtype, so that memory does not grow with the scenes.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from .config import DataError
from .layouts import Layout
from .rasters import STRIP_PX
from .runs import sha256_of, write_json
from .scenes import Scene, to_log_intensity

MORE_SPACE = "free some space or set UMSF_ROOT to a folder on another disk."


@dataclass(frozen=True)
class SceneRecord:
    """Where a scene lies in the flat arrays, and its own band statistics."""

    name: str
    height: int
    width: int
    offset: int  # of its first pixel
    valid_px: int
    mean: dict[str, list[float]]  # sensor -> per band; SAR as ln intensity
    std: dict[str, list[float]]


def stream_scenes(scenes: list[Scene], layout: Layout, folder: Path) -> None:
    """Write ``optical.npy sar.npy label.npy valid.npy`` and last ``manifest.json`` into ``folder``.

    Raises:
        DataError: a scene cannot be used, or the arrays are larger than the free space.
    """
    for scene in scenes:
        scene.check()
    sizes = [(grid.height, grid.width) for grid in (s.profile() for s in scenes)]
    total = sum(h * w for h, w in sizes)
    maps, records, offset = _open_maps(scenes, folder, total), [], 0
    for scene, (height, width) in zip(scenes, sizes, strict=True):
        moments = _copy_scene(scene, layout, maps, offset, height, width)
        records.append(_record(scene, height, width, offset, moments))
        offset += height * width
    for array in maps.values():
        array.flush()  # type: ignore[attr-defined]
    files = {f"{role}.npy": sha256_of(folder / f"{role}.npy") for role in maps}
    described = {"layout": layout.name, "scenes": [asdict(r) for r in records], "files": files}
    write_json(folder / "manifest.json", described)


def _open_maps(scenes: list[Scene], folder: Path, total: int) -> dict[str, np.ndarray]:
    samples = [scene.read(Window(0, 0, 1, 1)) for scene in scenes]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        # Reflectance may be int16 in one file and float32 in the next: hold both.
        role: ((len(samples[0][role]), total), np.result_type(*(s[role] for s in samples)))
        for role in ("optical", "sar")
        if role in samples[0]
    }
    shapes |= {"label": ((total,), np.uint8), "valid": ((total,), np.bool_)}
    # Memory maps are sparse: a disk that fills up under one kills the process without a word.
    needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"Preparing {len(scenes)} scenes takes {needed / 1e9:.3f} GB in {folder.parent}, but "
            f"{free / 1e9:.3f} GB are free; {MORE_SPACE}"
        )
    return {
        role: np.lib.format.open_memmap(folder / f"{role}.npy", mode="w+", dtype=dtype, shape=shape)
        for role, (shape, dtype) in shapes.items()
    }


def _copy_scene(
    scene: Scene, layout: Layout, maps: dict[str, np.ndarray], offset: int, height: int, width: int
) -> dict[str, np.ndarray]:
    """Copy one scene strip by strip; returns per sensor the sums of 1, x and x^2 per band."""
    sums: dict[str, np.ndarray] = {}
    for top in range(0, height, STRIP_PX):
        rows = min(STRIP_PX, height - top)
        part = scene.read(Window(0, top, width, rows))
        here = slice(offset + top * width, offset + (top + rows) * width)
        valid = part["valid"]
        maps["valid"][here] = valid.reshape(-1)
        maps["label"][here] = part["label"].astype(np.uint8).reshape(-1)
        for role in [r for r in ("optical", "sar") if r in maps]:  # a set has no fixed order
            maps[role][:, here] = part[role].reshape(len(part[role]), -1)
            # Band by band: large temporary arrays are slow.
            values = (physical(band[valid], role, layout) for band in part[role])
            moments = [(x.size, x.sum(), np.einsum("n,n->", x, x)) for x in values]
            sums[role] = sums.get(role, 0) + np.array(moments).T  # (3, C)
    if not all(s[0].all() for s in sums.values()):
        raise DataError(scene.all_nodata(height * width))
    return sums


def physical(values: np.ndarray, role: str, layout: Layout) -> np.ndarray:
    """Optical values as float64, SAR values as natural log of intensity."""
    if role == "sar" and layout.sar is not None:
        return to_log_intensity(values.astype(np.float64), layout.sar.scaling)
    return values.astype(np.float64)


def _record(
    scene: Scene, height: int, width: int, offset: int, sums: dict[str, np.ndarray]
) -> SceneRecord:
    mean = {role: (s[1] / s[0]) for role, s in sums.items()}
    variance = {role: s[2] / s[0] - mean[role] ** 2 for role, s in sums.items()}
    std = {role: np.sqrt(np.maximum(v, 1e-12)) for role, v in variance.items()}
    count = int(next(iter(sums.values()))[0, 0])
    plain = [{role: v.tolist() for role, v in table.items()} for table in (mean, std)]
    return SceneRecord(scene.name, height, width, offset, count, plain[0], plain[1])


def check_arrays(folder: Path) -> None:
    """Compare the arrays with the sha256 that they were written with: a flipped bit is silent.

    Raises:
        DataError: an array has changed or is gone.
    """
    manifest = folder / "manifest.json"
    for file, wanted in json.loads(manifest.read_text())["files"].items():
        path = folder / file
        if (found := sha256_of(path) if path.is_file() else "none, it is missing") != wanted:
            raise DataError(
                f"{path} has changed since it was prepared: its sha256 is {found}, but {manifest} "
                f"says {wanted}; delete {folder}, and it is made again from the scenes."
            )
