"""Windows per second: the tutorial's memory maps beside what reads GeoTIFF files batch by batch.

    python benchmarks/data_feed.py [--scenes 4] [--seconds 20]

Three ways to the same standardised float32 windows (256 px, 5 bands, drawn at random from scenes of
the size of WHU-OPT-SAR, deflated in tiles), one after the other in one run:

- ours: ``PixelStore.windows`` over memory maps, in this process, with all its threads;
- dataloader: rasterio's windowed reads in a torch ``DataLoader`` with two workers, files kept open;
- torchgeo: the same queries to its ``RasterDataset`` pair in such a loader, where it is installed.

Each is warmed up, so the files are in the page cache. The last line is JSON; ``ratio`` is ours over
the best of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from umsf_lib.layouts import load_layout
from umsf_lib.prepare import prepare, training_statistics
from umsf_lib.rasters import write_raster
from umsf_lib.scenes import to_log_intensity
from umsf_lib.simulate_sensors import scene_names, sheet_transform, simulate_scene
from umsf_lib.windows import PixelStore

SIZE, BATCH, WORKERS = 256, 32, 2
HEIGHT, WIDTH, PIECE = 3704, 5556, 926  # px; a scene repeats a simulated piece, mirrored
Batch = dict[str, Tensor]


def write_large_scenes(folder: Path, count: int) -> None:
    """Scenes of the size of WHU-OPT-SAR in its layout; the texture is simulated, so it compresses
    as imagery does."""
    crs = rasterio.CRS.from_epsg(4326)
    for seed, name in enumerate(scene_names(count)):
        piece = simulate_scene(seed, PIECE, PIECE)
        grid = {"crs": crs, "transform": sheet_transform(name), "nodata": 0}
        for role in ("optical", "sar"):
            pad = ((0, 0), (0, HEIGHT - PIECE), (0, WIDTH - PIECE))
            write_raster(folder / role / name, np.pad(piece[role], pad, mode="symmetric"), **grid)


class RasterioWindows(Dataset[Batch]):
    """What a careful reader writes by hand: open files, windowed reads, one sample at a time."""

    def __init__(self, store: PixelStore, paths: list[dict[str, Path]], places: Tensor) -> None:
        self.paths, self.places, self.sar_scaling = paths, places, store.layout.sar.scaling
        self.mean = {role: m[:, :, None, None].numpy() for role, m in store.mean.items()}
        self.std = {role: s[:, :, None, None].numpy() for role, s in store.std.items()}
        self.opened: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def _read(self, path: Path, row: int, col: int) -> np.ndarray:
        if path not in self.opened:
            self.opened[path] = rasterio.open(path)
        return self.opened[path].read(window=Window(col, row, SIZE, SIZE))

    def __getitem__(self, index: int) -> Batch:
        scene, row, col = self.places[index].tolist()
        raw = {role: self._read(path, row, col) for role, path in self.paths[scene].items()}
        return self.standardised(raw, scene)

    def standardised(self, raw: dict[str, np.ndarray], scene: int) -> Batch:
        valid = np.logical_and.reduce([(x != 0).all(axis=0) for x in raw.values()])
        sample = {"valid": torch.from_numpy(valid[None])}
        for role, values in raw.items():
            x = values.astype(np.float32)
            if role == "sar":
                x = to_log_intensity(x, self.sar_scaling)
            x = (x - self.mean[role][scene]) / self.std[role][scene]
            sample[role] = torch.from_numpy(np.where(valid, x, np.float32(0)))
        return sample


def torchgeo_windows(plain: RasterioWindows, folder: Path) -> Dataset[Batch] | None:
    """The same samples read by torchgeo, or None where it is not installed."""
    try:
        from torchgeo.datasets import RasterDataset
    except ImportError:
        return None

    class TorchgeoWindows(RasterioWindows):
        """Queries are the geographic boxes of the windows."""

        def __init__(self) -> None:
            self.__dict__ |= plain.__dict__
            every = {role: RasterDataset(folder / role) for role in ("optical", "sar")}
            self.rasters = every
            self.transforms = [rasterio.open(p["optical"]).transform for p in plain.paths]

        def __getitem__(self, index: int) -> Batch:
            scene, row, col = self.places[index].tolist()
            (west, north), (east, south) = (
                self.transforms[scene] * place for place in ((col, row), (col + SIZE, row + SIZE))
            )
            query = (slice(west, east), slice(south, north))
            raw = {r: data[query]["image"].numpy() for r, data in self.rasters.items()}
            return self.standardised({r: x.reshape(-1, SIZE, SIZE) for r, x in raw.items()}, scene)

    return TorchgeoWindows()


def ours(store: PixelStore, places: Tensor) -> Iterator[Batch]:
    for some in places.split(BATCH):
        yield store.windows(*some.T, SIZE)


def loaded(windows: Dataset[Batch]) -> Iterator[Batch]:
    yield from DataLoader(windows, BATCH, num_workers=WORKERS, prefetch_factor=4)


def rate(batches: Iterator[Batch], seconds: float) -> float:
    """Windows per second after one batch of warming up (workers started, files opened)."""
    next(batches)
    begin, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["optical"])
        if time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


def assert_same(one: Batch, other: Batch, name: str) -> None:
    for role in ("valid", "optical", "sar"):
        np.testing.assert_allclose(one[role], other[role], atol=1e-4, err_msg=f"{name} {role}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=4, help="scenes to draw from (default 4)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per way (default 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(Path(temporary), options.scenes, options.seconds)))


def measure(folder: Path, scenes: int, seconds: float) -> dict[str, Any]:
    """Write scenes, compare first batches, then time each way."""
    write_large_scenes(folder / "raw", scenes)
    found = prepare(folder / "raw", load_layout("whu-opt-sar"), folder / "prepared")
    store = PixelStore(found, training_statistics(found), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    high = torch.tensor([scenes, HEIGHT - SIZE, WIDTH - SIZE])
    places = (torch.rand(400_000, 3, generator=generator) * high).long()
    names = [record.name for record in found.records]
    paths = [{r: getattr(found.sources[n], r) for r in ("optical", "sar")} for n in names]
    plain = RasterioWindows(store, paths, places)
    geo = torchgeo_windows(plain, folder / "raw")
    ways = {"ours": lambda: ours(store, places), "dataloader": lambda: loaded(plain)}
    if geo is not None:
        ways["torchgeo"] = lambda: loaded(geo)
    first = next(ways["ours"]())
    for name, way in ways.items():
        assert_same(first, next(way()), name)
    rates = {name: round(rate(way(), seconds), 1) for name, way in ways.items()}
    for name, value in rates.items():
        print(f"{name:10s} {value:8.1f} windows/s", file=sys.stderr)
    best = max(value for name, value in rates.items() if name != "ours")
    return rates | {
        "torchgeo": rates.get("torchgeo"),
        "ratio": round(rates["ours"] / best, 2),
        "window": f"{SIZE} px, 5 bands, float32",
        "scenes": f"{scenes} x {WIDTH} x {HEIGHT} px, deflate in 256-px tiles, page cache warm",
        "workers": WORKERS,
        "threads": torch.get_num_threads(),
        "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }


if __name__ == "__main__":
    main()
