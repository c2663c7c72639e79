"""Check a data folder and list its defects (``umsf data check``), or align its files."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject

from ..config import DataError
from ..run import write_atomically
from .layout import Layout, Sensor, layout_names, load_layout
from .map_sheets import leakage
from .pairing import pair_files
from .rasters import Grid, grid_defect, grid_of, opened, strips, write_raster
from .scene import Scene, find_scenes, form_defects, scenes_of, split_scenes

LOOKED_AT = 200  # number of scenes read to guess a layout, at most


@dataclass(frozen=True)
class SceneFacts:
    """Facts and defects found in the files of one scene."""

    name: str
    grid: Grid | None  # None: the optical file cannot be opened
    dtypes: dict[str, str]  # role -> dtype; only files that can be opened
    valid_px: int  # 0 if the pixels were not read because of a defect
    codes: Counter[int]  # label code -> pixels
    defects: list[str]


@dataclass(frozen=True)
class Survey:
    """Facts and defects found in a data folder."""

    root: Path
    layout: Layout
    scenes: tuple[SceneFacts, ...]
    split: dict[str, list[str]]
    defects: list[str]  # of the folder and of all scenes, one sentence each


def survey(root: Path, layout: Layout) -> Survey:
    """Read a whole data folder, strip by strip, and collect all its defects.

    Raises:
        DataError: the folder has no pair of files.
    """
    pairing = pair_files(root, layout)
    scenes = scenes_of(pairing, layout)
    facts = tuple(_facts(scene) for scene in scenes)
    defects = pairing.defects + [text for scene in facts for text in scene.defects]
    split: dict[str, list[str]] = {}
    try:
        split = split_scenes(root, layout, scenes)
    except DataError as error:
        defects.append(str(error))
    return Survey(root, layout, facts, split, defects)


def _facts(scene: Scene) -> SceneFacts:
    defects, grid, valid_px, codes = scene.defects(), None, 0, Counter[int]()
    dtypes: dict[str, str] = {}
    for role, (path, _) in scene.files().items():
        with suppress(DataError), opened(path) as source:  # already among the defects
            dtypes[role] = source.dtypes[0]
            grid = grid_of(source) if role == "optical" else grid
    if not defects:
        try:
            codes = scene.label_codes()
            valid_px = _count_valid(scene)
        except DataError as error:  # damage between the first and the last row
            defects.append(str(error))
    return SceneFacts(scene.name, grid, dtypes, valid_px, codes, defects)


def _count_valid(scene: Scene) -> int:
    grid = scene.profile()
    valid_px = sum(int(scene.read(window)["valid"].sum()) for window in strips(grid))
    if not valid_px:
        raise DataError(scene.all_nodata(grid.height * grid.width))
    return valid_px


def guess_layout(root: Path) -> tuple[Layout, str]:
    """Find the one known layout that fits a data folder, and the reason why it fits.

    A layout fits if its folders hold pairs of files, and at least one scene has the layout's band
    counts and dtypes. Of a large set of tiles only a sample is read, spread over the whole set.

    Returns:
        The layout and a sentence with the reason.

    Raises:
        DataError: no layout fits, or several do.
    """
    fitting: dict[str, tuple[Layout, str]] = {}
    unpaired, misfits = [], []
    for name in layout_names():
        layout = load_layout(name)
        try:
            scenes = scenes_of(pair_files(root, layout), layout)
        except DataError:
            unpaired.append(name)
            continue
        found = [_misfit(scene) for scene in scenes[:: len(scenes) // LOOKED_AT + 1]]
        if None in found:
            some = " looked at" if len(found) < len(scenes) else ""
            fitting[name] = layout, f"{found.count(None)} of {len(found)} scenes{some}"
        else:
            misfits.append(f"{name} does not, since {found[0]}")
    if len(fitting) == 1:
        ((layout, count),) = fitting.values()
        why = f"{count} have its bands and dtypes ({_bands(layout)})"
        others = f"the other {len(unpaired)} layouts find no pairs of files there"
        return layout, "; ".join([why, *misfits, others])
    if fitting:
        listed = ", ".join(f"{name} ({count})" for name, (_, count) in fitting.items())
        raise DataError(f"Several layouts fit {root}: {listed}; choose one with --layout.")
    if unpaired:
        misfits.append(f"{', '.join(unpaired)} find no pairs of files there")
    raise DataError(
        f"No known layout fits {root}: {'; '.join(misfits)}; name one "
        "with --layout to see what it lacks, or describe the folder in a YAML file "
        "(data/README.md, 'Your own')."
    )


def _misfit(scene: Scene) -> str | None:
    """Return in a few words why the headers of a scene do not fit its layout; None if they do."""
    try:
        found = [
            text
            for role, (path, sensor) in scene.files().items()
            for text in form_defects(path, sensor, role)
        ]
    except DataError as error:
        found = [str(error)]
    return re.split(r"[;(]", found[0])[0].strip() if found else None


def _bands(layout: Layout) -> str:
    sensors = [layout.optical, *([layout.sar] if layout.sar else [])]
    return " + ".join(f"{len(sensor.bands)} x {sensor.scaling}" for sensor in sensors)


def report(found: Survey) -> list[str]:
    """Format a survey as lines of text."""
    layout, scenes = found.layout, found.scenes
    grids = [scene.grid for scene in scenes if scene.grid]
    lines = [
        f"Scenes: {len(scenes)} ({_names([scene.name for scene in scenes])})",
        f"Size: {_tally([f'{grid.width} x {grid.height} px' for grid in grids])}",
        f"CRS: {_tally([_place(grid) for grid in grids])}",
    ]
    for role, title in (("optical", "Optical"), ("sar", "SAR"), ("dem", "DEM")):
        if sensor := layout.in_file(role):
            lines.append(_sensor_line(title, sensor, [s.dtypes.get(role, "") for s in scenes]))
    lines += [_valid_line(scenes), *_label_lines(layout, scenes)]
    lines.append(f"Split ({layout.split.rule}): " + _split_text(found.split))
    if beside := leakage(found.split):
        lines.append(
            f"Leakage: {len(beside.touching)} of {beside.tested} test scenes touch a training or "
            f"validation scene, {len(beside.sharing_edge)} share an edge with one (by sheet names)"
        )
    lines.append(f"Defects: {len(found.defects) or 'none'}")
    return lines + [f"  {number}. {text}" for number, text in enumerate(found.defects, start=1)]


def _place(grid: Grid) -> str:
    return grid.crs.to_string() if grid.crs else "none, pixel coordinates"


def _sensor_line(title: str, sensor: Sensor, dtypes: Sequence[str]) -> str:
    nodata = "as the file declares" if sensor.nodata is None else f"{sensor.nodata:g}"
    bands = f"{len(sensor.bands)} x {_tally(dtypes)} ({', '.join(sensor.bands)})"
    return f"{title}: {bands}, {sensor.scaling}, nodata {nodata}"


def _valid_line(scenes: Sequence[SceneFacts]) -> str:
    whole = [(s.valid_px, s.grid.height * s.grid.width) for s in scenes if s.valid_px and s.grid]
    share = sum(v for v, _ in whole) / max(sum(size for _, size in whole), 1)
    return f"Valid pixels: {share:.1%} of the {len(whole)} scenes without defects"


def _label_lines(layout: Layout, scenes: Sequence[SceneFacts]) -> list[str]:
    codes = sum((scene.codes for scene in scenes), Counter[int]())
    if not codes:
        return ["Labels: none read"]
    ignored = {code: codes[code] for code in layout.label_nodata if codes[code]}
    labelled = codes.total() - sum(ignored.values())
    lines = [f"Labels: {sum(bool(s.codes) for s in scenes)} scenes, shares of labelled pixels"]
    for land in layout.classes:
        share = sum(codes[code] for code in land.codes) / max(labelled, 1)
        mark = f"folder {land.folder}" if land.folder else f"code {str(land.codes)[1:-1]}"
        lines.append(f"  {land.id} {land.name} ({mark.rstrip(',')}): {share:.1%}")
    for code, count in ignored.items():
        lines.append(f"  ignored (code {code}): {count / codes.total():.1%} of all pixels")
    return lines


def _split_text(split: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(names)} {part}" for part, names in split.items()) or "none"


def _tally(values: Sequence[str]) -> str:
    """List each distinct value with its count; without the count if there is only one value."""
    counts = Counter(value for value in values if value)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({n})" for value, n in counts.most_common()) or "none could be read"


def _names(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if names[limit:] else "")


RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")


def align(root: Path, layout: Layout, target: Path, resampling: str = "bilinear") -> list[Path]:
    """Copy a data folder so that every file is on the grid of its scene's optical file.

    SAR, DEM and label files on another grid are resampled. All other files of the scenes, and files
    beside the folders such as split lists, are copied unchanged. The source folder is not modified.

    Args:
        root: data folder.
        layout: where and how the data set stores its files.
        target: new data folder, outside ``root``.
        resampling: for SAR and DEM, one of ``RESAMPLINGS``; labels always use ``nearest``.

    Returns:
        Paths of the resampled files in ``target``.

    Raises:
        DataError: ``target`` and ``root`` overlap, a file cannot be read, a CRS is missing, or
            there is no nodata value to mark pixels that a file does not cover.
    """
    here, there = root.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise DataError(f"Output {target} overlaps the data folder {root}; name another folder.")
    scenes = find_scenes(root, layout)
    resampled = []
    for scene in scenes:
        grid = scene.profile()
        for role, path, sensor in _elsewhere(scene, grid):
            written = target / path.relative_to(root)
            method = "nearest" if role == "label" else resampling
            _write_aligned(path, written, scene, sensor, Resampling[method])
            resampled.append(written)
    for path in _all_files(root, scenes):
        copy = target / path.relative_to(root)
        if copy not in resampled:
            write_atomically(copy, partial(shutil.copyfile, path))
    return resampled


def _elsewhere(scene: Scene, grid: Grid) -> Iterator[tuple[str, Path, Sensor | None]]:
    for role, (path, sensor) in scene.files().items():
        with opened(path) as source:
            other = grid_of(source)
        if grid_defect(scene.optical, grid, path, other):
            yield role, path, sensor


def _all_files(root: Path, scenes: list[Scene]) -> list[Path]:
    found = {path for scene in scenes for path, _ in scene.files().values()}
    return sorted(found | {p for p in root.iterdir() if p.is_file() and p.name[0] != "."})


def _write_aligned(
    path: Path, target: Path, scene: Scene, sensor: Sensor | None, resampling: Resampling
) -> None:
    grid = scene.profile()
    with opened(path) as source:
        nodata = _nodata(source, scene.layout, sensor)
        if source.crs is None or grid.crs is None:
            raise DataError(
                f"{path} is {grid_of(source)}, and {scene.optical} is {grid}: pixels cannot be "
                "located without a CRS in both files; give the files their CRS first."
            )
        if nodata is None and (bare := _uncovered_px(source, grid)):
            raise DataError(
                f"{path} does not cover {bare} px of {scene.optical}, and there is no nodata value "
                f"to mark them; set 'nodata' (for a label 'label_nodata') in "
                f"{scene.layout.source}."
            )
        array = _warp(source, grid, nodata, resampling)
        names = source.descriptions if all(source.descriptions) else None
    place: dict[str, Any] = {"crs": grid.crs, "transform": grid.transform}
    write_raster(target, array, nodata=nodata, descriptions=names, **place)


def _nodata(source: Any, layout: Layout, sensor: Sensor | None) -> float | None:
    """Return the value for uncovered pixels: the layout's, the file's, or NaN for floats."""
    if sensor is None:  # a label
        declared = [source.nodata] if source.nodata in layout.label_nodata else []
        return float([*declared, *layout.label_nodata][0]) if layout.label_nodata else None
    if sensor.nodata is not None:
        return sensor.nodata
    if source.nodata is None and np.dtype(source.dtypes[0]).kind == "f":
        return float("nan")
    return None if source.nodata is None else float(source.nodata)


def _warp(source: Any, grid: Grid, nodata: float | None, resampling: Resampling) -> NDArray[Any]:
    """Resample all bands to a grid: ``(C, h, w)`` in the file's dtype, ``nodata`` outside it."""
    array = np.zeros((source.count, grid.height, grid.width), source.dtypes[0])
    reproject(
        rasterio.band(source, source.indexes),
        array,
        src_nodata=nodata,
        dst_nodata=nodata,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        resampling=resampling,
    )
    return array


def _uncovered_px(source: Any, grid: Grid) -> int:
    covered = np.zeros((grid.height, grid.width), np.uint8)
    reproject(
        np.ones((source.height, source.width), np.uint8),
        covered,
        src_transform=source.transform,
        src_crs=source.crs,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        resampling=Resampling.nearest,
    )
    return int((covered == 0).sum())
