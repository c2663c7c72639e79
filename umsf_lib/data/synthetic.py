"""Synthetic scenes on disk, in the format of WHU-OPT-SAR, for runs without a data folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from ..config import DataError
from ..progress import Progress, each
from ..run import Run, code_digest, digest, project_root, write_atomically, write_json
from ..simulation.sensors import simulate_scene
from .faults import explained
from .layout import load_layout
from .map_sheets import sheet_of
from .rasters import write_raster

SHEET_PX = 5556  # width of a 1:50 000 map sheet, 15' of longitude


def scene_names(count: int) -> list[str]:
    """Return file names after 1:50 000 map sheets of the real area, from NH49E001013.tif on.

    Raises:
        DataError: ``count`` is larger than the number of sheets, 288.
    """
    if count > 24 * 12:
        raise DataError(f"{count} synthetic scenes are too many; 288 is the largest number.")
    return [f"NH49E{1 + k // 12:03d}{13 + k % 12:03d}.tif" for k in range(count)]


def sheet_transform(name: str) -> Affine:
    """Return the geotransform (degrees, EPSG:4326) of the map sheet that a file is named after.

    Raises:
        DataError: the file name is not a sheet name.
    """
    sheet = sheet_of(name)
    if sheet is None:
        raise DataError(f"{name} is not a sheet name such as NH49E001013.tif; rename the scene.")
    step = 0.25 / SHEET_PX
    return Affine(step, 0, sheet.west_deg, 0, -step, sheet.north_deg)


def write_scenes(
    folder: Path, names: Sequence[str], seed: int, height: int, width: int, *, difficulty: str
) -> None:
    """Write scenes of ``height`` by ``width`` px as GeoTIFFs in the folders of whu-opt-sar.

    A scene depends only on its name, which is that of a sheet, and ``seed``, not on the other
    scenes. For ``difficulty`` see ``simulation.difficulty``.
    """
    layout = load_layout("whu-opt-sar")
    colors = {c.code: c.rgb for c in layout.classes}
    with explained(folder):
        degrees = CRS.from_epsg(4326)
    for name in names:
        own = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
        scene = simulate_scene(own, height, width, difficulty)
        grid = {"crs": degrees, "transform": sheet_transform(name)}
        write_raster(folder / "optical" / name, scene["optical"], nodata=0, **grid)
        write_raster(folder / "sar" / name, scene["sar"], nodata=0, **grid)
        write_raster(folder / "lbl" / name, scene["label"], nodata=0, colors=colors, **grid)


def synthesize(run: Run, progress: Progress | None = None) -> Path:
    """Write the profile's synthetic scenes unless they exist; return their data folder."""
    settings = run.config.synthetic
    # Training scenes come last, so their number does not change the other scenes.
    counts = {part: getattr(settings, part) for part in ("val", "test", "train")}
    wanted = run.config.section("synthetic", "seed") | {"order": list(counts)}
    folder = project_root() / "data" / "synthetic" / f"{settings.difficulty}-{digest(wanted)}"
    simulator, made = code_digest("umsf_lib.simulation.sensors"), folder / "simulator.json"
    if (folder / "split.txt").is_file():
        if made.is_file() and json.loads(made.read_text(encoding="utf-8")) == simulator:
            return folder
        print(f"scenes {folder.name} were simulated by older code; they are made again.")
        (folder / "split.txt").unlink()
    write_json(made, simulator)
    names = scene_names(sum(counts.values()))
    size = settings.size_px
    for name in each(names, progress, "simulate"):
        write_scenes(folder, [name], run.config.seed, size, size, difficulty=settings.difficulty)
    lines, rest = [], iter(names)
    for part, count in counts.items():
        lines += [f"{part}:", *(next(rest) for _ in range(count))]
    # Written last, so that an incomplete folder is not mistaken for a complete one.
    write_atomically(
        folder / "split.txt", lambda t: t.write_text("\n".join(lines) + "\n", encoding="utf-8")
    )
    return folder
