"""Windows per second: the tutorial's memory maps beside readers of GeoTIFF files.

    python benchmarks/data_feed.py [--scenes 25] [--seconds 24]

One run compares three ways to get the same standardised float32 windows (256 px, 5 bands, drawn at
random from scenes of the size of WHU-OPT-SAR, deflated in tiles):

- ours: ``PixelStore.windows`` over memory maps, in this process, with all its threads;
- dataloader: rasterio's windowed reads in a torch ``DataLoader`` with two workers, files kept open;
- torchgeo, if installed: queries of its ``RasterDataset`` for each sensor in such a loader, with
  the boxes of the same windows (its random sampler draws boxes of whole pixels, too).

The ways take turns, three each, and the median turn counts. Each turn begins with some seconds that
do not count, so that workers, caches and page tables can settle. Before all turns, batches of every
way are compared with ours.

Caches: this run has just written all files, so the system's page cache holds them if memory allows
(0.14 GB per prepared scene). GDAL keeps decompressed data in a block cache of 5 % of the memory in
each process; WHU-OPT-SAR (100 scenes, 10.3 GB decompressed) is many times that. With fewer scenes,
GDAL's cache is set to the same share of them (``GDAL_CACHEMAX``). Scenes beyond the third are hard
links to the first three at other places, so GDAL, torchgeo and our code see different files.

``prepare`` is measured as well, with 4 scenes and with all: MB of decompressed imagery per second,
and the peak of anonymous memory of the process (its libraries included).

The last line is JSON; ``ratio`` is our rate divided by the best rate of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.env import get_gdal_config
from rasterio.errors import NodataShadowWarning
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from umsf_lib.data.layout import load_layout, to_log_intensity
from umsf_lib.data.rasters import write_raster
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.synthetic import scene_names, sheet_transform
from umsf_lib.data.windows import PixelStore
from umsf_lib.simulation.sensors import simulate_scene

SIZE, BATCH, WORKERS = 256, 32, 2
HEIGHT, WIDTH, PIECE = 3704, 5556, 926  # px; a scene repeats a simulated piece, mirrored
DIFFERENT, FEW, WHU = 3, 4, 100  # scenes: simulated, prepared first, in WHU-OPT-SAR
SCENE_MB = HEIGHT * WIDTH * 5 / 1e6  # decompressed
TURNS, SETTLE_S, COMPARED = 3, 3.0, 4  # turns of each way, seconds before each, batches
ROLES = ("optical", "sar")
Batch = dict[str, Tensor]


def write_large_scenes(folder: Path, count: int) -> None:
    """Write scenes of WHU-OPT-SAR's size in its layout, with simulated texture that compresses
    like imagery."""
    crs, names = rasterio.CRS.from_epsg(4326), scene_names(count)
    for seed, name in enumerate(names[:DIFFERENT]):
        piece = simulate_scene(seed, PIECE, PIECE)
        grid = {"crs": crs, "transform": sheet_transform(name), "nodata": 0}
        for role in ROLES:
            pad = ((0, 0), (0, HEIGHT - PIECE), (0, WIDTH - PIECE))
            write_raster(folder / role / name, np.pad(piece[role], pad, mode="symmetric"), **grid)
    link_scenes(folder, folder, names[DIFFERENT:])


def link_scenes(source: Path, folder: Path, names: list[str]) -> None:
    """Link the first scenes of ``source`` under other names; auxiliary files of GDAL move them."""
    for role in ROLES:
        (folder / role).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            path = folder / role / name
            path.hardlink_to(source / role / scene_names(DIFFERENT)[number % DIFFERENT])
            place = ", ".join(map(repr, sheet_transform(name).to_gdal()))
            text = f"<PAMDataset><GeoTransform>{place}</GeoTransform></PAMDataset>"
            Path(f"{path}.aux.xml").write_text(text, encoding="utf-8")


@contextmanager
def peak_anonymous_gb() -> Iterator[list[float]]:
    """Yield a list whose item becomes the block's peak of anonymous memory, GB (Linux only)."""
    seen, done, status = [0.0], threading.Event(), Path("/proc/self/status")

    def watch() -> None:
        while status.exists() and not done.wait(0.01):
            line = next(
                x
                for x in status.read_text(encoding="utf-8").splitlines()
                if x.startswith("RssAnon")
            )
            seen[0] = max(seen[0], int(line.split()[1]) * 1024 / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def prepared(root: Path, target: Path) -> tuple[SceneSet, dict[str, Any]]:
    """Prepare the scenes under ``root``; also returns the cost."""
    with peak_anonymous_gb() as peak:
        begin = time.perf_counter()
        scenes = prepare(root, load_layout("whu-opt-sar"), target)
        seconds = time.perf_counter() - begin
    count = len(scenes.records)
    cost = {"scenes": count, "mb_per_s": count * SCENE_MB / seconds, "anonymous_gb": peak[0]}
    return scenes, {name: round(value, 2) for name, value in cost.items()}


class RasterioWindows(Dataset[Batch]):
    """Careful hand-written data set: files kept open, windowed reads, one sample at a time."""

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
            x -= self.mean[role][scene]
            x /= self.std[role][scene]
            x[:, ~valid] = 0
            sample[role] = torch.from_numpy(x)
        return sample


def torchgeo_windows(plain: RasterioWindows, folder: Path) -> Dataset[Batch] | None:
    """Make a data set of the same samples read by torchgeo, or None if it is not installed."""
    try:
        from torchgeo.datasets import RasterDataset
    except ImportError:
        return None

    class TorchgeoWindows(RasterioWindows):
        """Queries are the geographic boxes of the windows."""

        def __init__(self) -> None:
            self.__dict__ |= plain.__dict__
            self.rasters = {role: RasterDataset(folder / role) for role in ROLES}
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
    """Measure windows per second over some seconds."""
    begin, count = time.perf_counter(), 0
    while (now := time.perf_counter()) - begin < seconds:
        count += len(next(batches)["valid"])
    return count / (now - begin)


def assert_same(ways: dict[str, Iterator[Batch]]) -> None:
    """Check that every way gives the windows of ours; logarithms may differ in the last bit."""
    for _ in range(COMPARED):
        batches = {name: next(way) for name, way in ways.items()}
        for name, batch in batches.items():
            for role in ("valid", "optical", "sar"):
                values = batches["ours"][role]
                np.testing.assert_allclose(
                    batch[role], values, rtol=0, atol=1e-5, err_msg=f"{name} {role}"
                )


def take_turns(ways: dict[str, Iterator[Batch]], seconds: float) -> dict[str, float]:
    """Measure the median windows per second of each way."""
    turns: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            rate(way, SETTLE_S)
            turns[name].append(rate(way, seconds / TURNS))
    for name, rates in turns.items():
        print(f"{name:10s}", *(f"{r:8.1f}" for r in rates), "windows/s", file=sys.stderr)
    return {name: round(statistics.median(rates), 1) for name, rates in turns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=25, help="to draw from (default 25)")
    parser.add_argument("--seconds", type=float, default=24.0, help="per way (default 24)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", NodataShadowWarning)  # torchgeo asks for masks
    os.environ["GDAL_CACHEMAX"] = f"{min(5, 5 * options.scenes / WHU)}%"
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(Path(temporary), options.scenes, options.seconds)))


def measure(folder: Path, scenes: int, seconds: float) -> dict[str, Any]:
    """Write and prepare scenes, compare batches of every way, then time them."""
    write_large_scenes(folder / "raw", scenes)
    link_scenes(folder / "raw", folder / "few", scene_names(FEW))
    costs = [prepared(folder / "few", folder / "prepared")[1]]
    found, cost = prepared(folder / "raw", folder / "prepared")
    costs.append(cost)
    print("prepare", *costs, file=sys.stderr)
    store = PixelStore(found, found.statistics, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    high = torch.tensor([scenes, HEIGHT - SIZE, WIDTH - SIZE])
    places = (torch.rand(1_000_000, 3, generator=generator) * high).long()
    names = [record.name for record in found.records]
    paths = [{r: getattr(found.sources[n], r) for r in ROLES} for n in names]
    plain = RasterioWindows(store, paths, places)
    ways = {"ours": ours(store, places), "dataloader": loaded(plain)}
    if (geo := torchgeo_windows(plain, folder / "raw")) is not None:
        ways["torchgeo"] = loaded(geo)
    assert_same(ways)
    rates = take_turns(ways, seconds)
    best = max(value for name, value in rates.items() if name != "ours")
    with rasterio.Env():
        cache_gb = get_gdal_config("GDAL_CACHEMAX") / 1e9
    return rates | {
        "torchgeo": rates.get("torchgeo"),
        "ratio": round(rates["ours"] / best, 2),
        "window": f"{SIZE} px, 5 bands, float32, batches of {BATCH}",
        "scenes": f"{scenes} x {WIDTH} x {HEIGHT} px, deflate in 256-px tiles, page cache warm",
        "decompressed_gb": round(scenes * SCENE_MB / 1e3, 2),
        "gdal_cache_gb": round(cache_gb, 2),
        "prepare": costs,
        "workers": WORKERS,
        "threads": torch.get_num_threads(),
        "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }


if __name__ == "__main__":
    main()
