"""Prepare scenes as flat memory maps, with their statistics.

Each sensor has one array with the pixels of all scenes, one scene after the other, in the dtype of
the source files. Windows can thus be cut without decoding files (``windows.py``).
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from ..config import ConfigError, DataError, read_text
from ..progress import Progress, each
from ..run import (
    MORE_SPACE,
    Run,
    code_digest,
    digest,
    project_root,
    sha256_of,
    write_json,
    writing,
)
from .files import deciding_files
from .layout import Layout, load_layout
from .rasters import strips
from .scene import Scene, find_scenes, split_scenes, unit_defects
from .scene_set import NORMALISATION, SceneRecord, SceneSet, normalisation, physical
from .stack import paths_of
from .synthetic import synthesize


def load_data(run: Run, *, progress: Progress | None = None) -> SceneSet:
    """Run stage ``data``: find or simulate the scenes of a run and prepare them.

    Synthetic scenes, prepared scenes and ``statistics.json`` are written only if they do not exist
    yet, so every notebook can start with this call.

    Raises:
        DataError: see ``prepare``.
        ConfigError: the settings ask for SAR, but the layout has none.
    """
    config = run.config
    layout = load_layout(config.layout)
    if layout.sar is None and config.model.sensors != "optical":
        raise ConfigError(
            f"layout '{layout.name}' has no SAR, but model.sensors is '{config.model.sensors}'; "
            "add the override model.sensors=optical."
        )
    root = Path(config.data) if config.data else synthesize(run, progress)
    scenes = prepare(root, layout, progress=progress)
    if (rule := config.scenes.standardise) != "layout":
        scenes = replace(scenes, layout=layout.standardised(rule))
    manifest, found = sha256_of(scenes.folder / "manifest.json"), normalisation(scenes)

    def make() -> list[str]:
        write_json(run.path(NORMALISATION), found)
        return [NORMALISATION]

    inputs = {"scenes": manifest, "split": scenes.split, "normalisation": found}
    run.stage("data", make, inputs)
    return scenes


def prepare(
    root: Path, layout: Layout, target: Path | None = None, *, progress: Progress | None = None
) -> SceneSet:
    """Copy the scenes under ``root`` to flat memory maps, unless this code has done so already.

    The folder of the maps is made in ``target`` (default: ``data/prepared`` of the project). After
    an error, no partial files remain.

    Raises:
        DataError: a scene cannot be found, read or used, there is too little space on the disk, or
            an array has changed since it was prepared.
    """
    scenes = find_scenes(root, layout)
    split = split_scenes(root, layout, scenes)
    key = digest([read_text(layout.source), _stamp(scenes)])
    folder = (target or project_root() / "data" / "prepared") / key
    manifest = folder / "manifest.json"
    there = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if there and there.get("code") != code_digest(__name__):
        print(f"scenes {folder.name} were prepared by older code; they are prepared again.")
        there = {}
    if there:
        _check_arrays(folder, progress)
    else:
        _make_folder(folder, scenes, layout, progress)
    there = json.loads(manifest.read_text(encoding="utf-8"))
    records = tuple(SceneRecord(**record) for record in there["scenes"])
    return SceneSet(folder, layout, records, split, {s.name: s for s in scenes})


def _stamp(scenes: list[Scene]) -> list[Any]:
    """Return all that decides pixels: names of scenes, path, size and times of files, and points.

    The maps are made anew if any file changes or another one appears. The time of the last change
    of status (ctime) shows new content even where the time of modification is kept or restored.
    """
    rasters = [raster for scene in scenes for raster, _ in scene.files().values()]
    paths = deciding_files(path for raster in rasters for path in paths_of(raster))
    if gone := [path for path in paths if not path.exists()]:
        raise DataError(f"{gone[0]} is missing: its link is broken; restore the file there.")
    files = [(path.resolve(), path.stat()) for path in paths]
    times = [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for path, s in files]
    points = [[s.name, p.row, p.col, p.code] for s in scenes for p in s.points]
    return [[scene.name for scene in scenes], *times, *points]


def _check_arrays(folder: Path, progress: Progress | None) -> None:
    """Compare the SHA-256 of the arrays with the recorded ones, to detect damaged files."""
    manifest = folder / "manifest.json"
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    for file, wanted in each(list(files.items()), progress, "verify"):
        path = folder / file
        if (found := sha256_of(path) if path.is_file() else "none, it is missing") != wanted:
            raise DataError(
                f"{path} has changed since it was prepared: its sha256 is {found}, but {manifest} "
                f"says {wanted}; delete {folder} to prepare the scenes again."
            )


def _make_folder(
    folder: Path, scenes: list[Scene], layout: Layout, progress: Progress | None
) -> None:
    """Write the arrays to a temporary folder, which becomes ``folder`` when it is complete."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
        try:
            _write_scenes(scenes, layout, temporary, progress)
            temporary.chmod(0o755)  # mkdtemp creates it accessible to the owner only
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_scenes(
    scenes: list[Scene], layout: Layout, folder: Path, progress: Progress | None
) -> None:
    """Write ``optical.npy``, ``sar.npy``, ``label.npy``, ``valid.npy``, then ``manifest.json``."""
    for scene in each(scenes, progress, "check"):
        scene.check()
    if found := unit_defects(scenes):
        raise DataError(found[0])
    sizes = [grid.height * grid.width for grid in (scene.profile() for scene in scenes)]
    maps, records, offset = _open_maps(scenes, folder, sum(sizes)), [], 0
    for scene, size in each(list(zip(scenes, sizes, strict=True)), progress, "prepare"):
        records.append(asdict(_copy_scene(scene, maps, offset)))
        offset += size
    for array in maps.values():
        array.flush()
    files = {f"{role}.npy": sha256_of(folder / f"{role}.npy") for role in maps}
    described = {"layout": layout.name, "code": code_digest(__name__)}
    write_json(folder / "manifest.json", described | {"scenes": records, "files": files})


def _open_maps(scenes: list[Scene], folder: Path, total: int) -> dict[str, np.memmap]:
    """Create the arrays for ``total`` pixels."""
    samples = [scene.read(Window(0, 0, 1, 1)) for scene in scenes]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        # Files of one sensor may be int16 and float32: choose a dtype that holds both.
        role: ((len(samples[0][role]), total), np.result_type(*(s[role] for s in samples)))
        for role in ("optical", "sar")
        if role in samples[0]
    }
    shapes |= {"label": ((total,), np.uint8), "valid": ((total,), np.bool_)}
    # Memory maps are sparse files. If the disk fills up later, the process dies without a message.
    needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"Preparing {len(scenes)} scenes needs {needed / 1e9:.3f} GB in {folder.parent}, but "
            f"{free / 1e9:.3f} GB are free; {MORE_SPACE}."
        )
    return {
        role: np.lib.format.open_memmap(folder / f"{role}.npy", mode="w+", dtype=dtype, shape=shape)
        for role, (shape, dtype) in shapes.items()
    }


def _copy_scene(scene: Scene, maps: dict[str, np.memmap], offset: int) -> SceneRecord:
    """Copy one scene strip by strip; return its record, with the moments of its valid pixels."""
    grid, start = scene.profile(), offset
    sums: dict[str, np.ndarray] = {}  # sensor -> sums of 1, x and x^2 (3, C)
    for window in strips(grid):
        part = scene.read(window)
        valid, here = part["valid"], slice(start, start + part["valid"].size)
        start = here.stop
        maps["valid"][here] = valid.reshape(-1)
        maps["label"][here] = part["label"].reshape(-1)
        for role in [r for r in ("optical", "sar") if r in maps]:  # a set would have no order
            maps[role][:, here] = part[role].reshape(len(part[role]), -1)
            # Band by band: large temporary arrays are slow.
            values = (physical(band[valid], role, scene.layout) for band in part[role])
            moments = [(x.size, x.sum(), np.einsum("n,n->", x, x)) for x in values]
            sums[role] = sums.get(role, 0) + np.array(moments).T
    valid_px = int(sums["optical"][0, 0])
    if not valid_px:
        raise DataError(scene.all_nodata(grid.height * grid.width))
    mean = {role: s[1] / s[0] for role, s in sums.items()}
    variance = {role: s[2] / s[0] - mean[role] ** 2 for role, s in sums.items()}
    std = {role: np.sqrt(np.maximum(v, 1e-12)) for role, v in variance.items()}
    plain = [{role: v.tolist() for role, v in table.items()} for table in (mean, std)]
    return SceneRecord(scene.name, grid.height, grid.width, offset, valid_px, *plain)
