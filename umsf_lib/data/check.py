"""Check a data folder and list its defects (``umsf data check``)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import DataError
from ..progress import Progress, each
from .form import form_defects
from .layout import Layout, layout_names, load_layout, usual_standardisation
from .map_sheets import leakage
from .pairing import pair_files, require_folder
from .points import Points, read_points
from .rasters import Grid, grid_of, opened, pixel_size_m
from .scene import Scene, files_of, scenes_of, unit_defects
from .split import Split, divide
from .values import SAMPLE, Look, listed, look_at, table, warnings_of

LOOKED_AT = 200  # number of scenes read to guess a layout, at most
LEAST_PIXEL_M = 1e-3
TITLES = {"optical": "Optical", "sar": "SAR", "dem": "DEM"}


@dataclass(frozen=True)
class SceneFacts:
    """Facts and defects found in the files of one scene."""

    name: str
    grid: Grid | None  # None: the optical file cannot be opened
    dtypes: dict[str, str]  # role -> dtype; only files that can be opened
    valid_px: int  # 0 if the pixels were not read because of a defect
    codes: Counter[int]  # label code -> pixels, or points where points are the labels
    looks: dict[str, Look]  # role -> what its values are like; empty if they were not read
    defects: list[str]


@dataclass(frozen=True)
class Survey:
    """Facts and defects found in a data folder."""

    layout: Layout
    scenes: tuple[SceneFacts, ...]
    split: dict[str, list[str]]
    split_notes: list[str]  # how it came about, in a few words each
    point_notes: list[str]  # which sparse labels are not used
    defects: list[str]  # of the folder and of all scenes, one sentence each
    warnings: list[str]  # what looks wrong, but may be right


def survey(root: Path, layout: Layout, *, progress: Progress | None = None) -> Survey:
    """Read a whole data folder, strip by strip, and collect all its defects.

    Raises:
        DataError: the folder has no pair of files.
    """
    pairing = pair_files(root, layout)
    defects, points = [*pairing.defects], Points()
    try:
        points = read_points(root, layout, pairing.scenes)
        defects += points.doubts
    except DataError as error:
        defects.append(str(error))
    scenes = scenes_of(pairing, layout, points)
    share = SAMPLE / max(sum(map(_size, scenes)), 1)
    facts = tuple(_facts(scene, share) for scene in each(scenes, progress, "read"))
    defects += [text for scene in facts for text in scene.defects]
    looks = {scene.name: scene.looks for scene in facts if scene.looks}
    split, files = Split({}), files_of(scenes)
    try:
        defects += unit_defects([scene for scene in scenes if scene.name in looks])
        split = divide(root, layout.split, sorted(files), files)
        defects += split.doubts
    except DataError as error:
        defects.append(str(error))
    warnings = _misplaced(facts) + warnings_of(layout, looks)
    return Survey(layout, facts, split.parts, split.notes, points.notes, defects, warnings)


def _misplaced(scenes: Sequence[SceneFacts]) -> list[str]:
    """Warn if coordinates cannot be in the unit of their CRS, as with degrees called metres."""
    odd = {}
    for name, grid in ((scene.name, scene.grid) for scene in scenes):
        if grid and grid.crs and (grid.crs.is_geographic or grid.crs.is_projected):
            size = pixel_size_m(grid)
            if size is None or min(size) < LEAST_PIXEL_M:
                odd[name] = grid, size
    if not odd:
        return []
    grid, size = next(iter(odd.values()))
    what = "The centre has no place on Earth" if size is None else "Pixels are smaller than 1 mm"
    return [
        f"{what} in {listed(odd, scenes)}, such as {grid}; if CRS and geotransform do not go "
        "together, correct the wrong one, as with `gdal_edit.py -a_srs EPSG:32650 FILE`."
    ]


def _size(scene: Scene) -> int:
    with suppress(DataError):  # told with the defects
        grid = scene.profile()
        return grid.height * grid.width
    return 0


def _facts(scene: Scene, share: float) -> SceneFacts:
    """Collect what is known of a scene; ``share`` of its pixels are drawn as a sample."""
    defects, grid, valid_px, codes = scene.defects(), None, 0, Counter[int]()
    looks: dict[str, Look] = {}
    dtypes: dict[str, str] = {}
    for role, (path, _) in scene.files().items():
        with suppress(DataError), opened(path) as source:  # already among the defects
            dtypes[role] = source.dtypes[0]
            grid = grid_of(source) if role == "optical" else grid
    if grid and not defects:
        try:
            codes = scene.label_codes
            valid_px, looks = look_at(scene, share)
            if not valid_px:
                looks = {}
                defects.append(scene.all_nodata(grid.height * grid.width))
        except DataError as error:  # damage between the first and the last row
            defects.append(str(error))
    return SceneFacts(scene.name, grid, dtypes, valid_px, codes, looks, defects)


def report(found: Survey) -> list[str]:
    """Format a survey as lines of text."""
    layout, scenes = found.layout, found.scenes
    names, grids = [s.name for s in scenes], [s.grid for s in scenes if s.grid]
    places = [g.crs.to_string() if g.crs else "none, pixel coordinates" for g in grids]
    lines = [
        f"Scenes: {len(scenes)} ({', '.join(names[:4])}{', ...' if names[4:] else ''})",
        f"Size: {_tally(f'{grid.width} x {grid.height} px' for grid in grids)}",
        f"CRS: {_tally(places)}",
    ]
    for role, title in TITLES.items():
        if sensor := layout.in_file(role):
            bands = f"{len(sensor.bands)} x {_tally(s.dtypes.get(role, '') for s in scenes)}"
            nodata = "as the file declares" if sensor.nodata is None else f"{sensor.nodata:g}"
            listed = f"({', '.join(sensor.bands)}), {sensor.scaling}"
            tags = _tally(s.looks[role].tags for s in scenes if role in s.looks)
            applied = f", {tags} applied" if "scale" in tags else ""
            lines.append(f"{title}: {bands} {listed}, nodata {nodata}{applied}")
    lines += [_standardised(layout, role) for role in ("optical", "sar") if role in layout.folders]
    read = [(s.valid_px, s.grid.height * s.grid.width) for s in scenes if s.valid_px and s.grid]
    share = sum(valid for valid, _ in read) / max(sum(size for _, size in read), 1)
    lines.append(f"Valid pixels: {share:.1%} of the {len(read)} scenes without defects")
    lines += table([s.looks for s in scenes if s.looks])
    lines += _point_lines(found) if layout.points else _label_lines(layout, scenes)
    parts = ", ".join(f"{len(members)} {part}" for part, members in found.split.items())
    lines.append(f"Split ({layout.split.rule}): {'; '.join([parts or 'none', *found.split_notes])}")
    if beside := leakage(found.split):
        lines.append(
            f"Leakage: {len(beside.touching)} of {beside.tested} test scenes touch a training or "
            f"validation scene, {len(beside.sharing_edge)} share an edge with one (by sheet names)"
        )
    for title, texts in (("Warnings", found.warnings), ("Defects", found.defects)):
        lines.append(f"{title}: {len(texts) or 'none'}")
        lines += [f"  {number}. {text}" for number, text in enumerate(texts, start=1)]
    return lines


def _standardised(layout: Layout, role: str) -> str:
    """Say how the values of a sensor are standardised, and why."""
    sensor = layout.sensor(role)
    rule = sensor.standardise
    how, why = {
        "set": ("over all training scenes", f"{sensor.scaling} values mean the same in all scenes"),
        "shrunken": (
            "halfway between each scene and all training scenes",
            "8-bit values may be stretched scene by scene",
        ),
        "scene": ("scene by scene", ""),
    }[rule]
    usual = rule == usual_standardisation(sensor.scaling)
    why = f"because {why}" if usual else "as the layout says"
    return f"{TITLES[role]}: standardised {how}, {why} (standardise: {rule})"


def _tally(values: Iterable[str]) -> str:
    """List each distinct value with its count; without the count if there is only one value."""
    counts = Counter(value for value in values if value)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({n})" for value, n in counts.most_common()) or "none could be read"


def _point_lines(found: Survey) -> list[str]:
    codes = [scene.codes for scene in found.scenes if scene.codes]
    counts, layout = sum(codes, Counter[int]()), found.layout
    said = f"{counts.total()} points of {len(codes)} scenes, 5 x 5 px each ({layout.points})"
    lines = [f"Labels: {'; '.join([said, *found.point_notes])}"]
    for land in layout.classes:
        code = str(land.codes)[1:-1].rstrip(",")
        number = sum(counts[code] for code in land.codes)
        lines.append(f"  {land.id} {land.name} (code {code}): {number}")
    return lines + [
        f"  ignored (code {code}): {counts[code]}" for code in layout.label_nodata if counts[code]
    ]


def _label_lines(layout: Layout, scenes: Sequence[SceneFacts]) -> list[str]:
    read = [  # a mask may hide all codes
        scene
        for scene in scenes
        if scene.grid and (scene.codes or (scene.valid_px and "label" in scene.dtypes))
    ]
    if not read:
        return ["Labels: none read"]
    codes = sum((scene.codes for scene in read), Counter[int]())
    ignored = {f"code {code}": codes[code] for code in layout.label_nodata if codes[code]}
    labelled = codes.total() - sum(ignored.values())
    total = sum(scene.grid.height * scene.grid.width for scene in read if scene.grid)
    if hidden := total - codes.total():
        ignored["no data, as the file declares"] = hidden
    lines = [f"Labels: {len(read)} scenes, shares of labelled pixels"]
    for land in layout.classes:
        share = sum(codes[code] for code in land.codes) / max(labelled, 1)
        mark = f"folder {land.folder}" if land.folder else f"code {str(land.codes)[1:-1]}"
        lines.append(f"  {land.id} {land.name} ({mark.rstrip(',')}): {share:.1%}")
    for why, count in ignored.items():
        lines.append(f"  ignored ({why}): {count / total:.1%} of all pixels")
    return lines


def guess_layout(root: Path) -> tuple[Layout, str]:
    """Find the one known layout that fits a data folder, and say in a sentence why it fits.

    A layout fits if its folders hold pairs of files, and at least one scene has the layout's band
    counts and dtypes, and its points if it has some; it is then preferred. Of a large set of tiles
    only a sample is read, spread over the whole set.

    Raises:
        DataError: no layout fits, or several do, or there is no such folder (``require_folder``).
    """
    require_folder(root)
    fitting: dict[str, tuple[Layout, str]] = {}
    unpaired, misfits = [], []
    for name in layout_names():
        layout = load_layout(name)
        try:
            pairing = pair_files(root, layout)
        except DataError:
            unpaired.append(name)
            continue
        scenes = scenes_of(pairing, layout)
        found = [_misfit(scene) for scene in scenes[:: len(scenes) // LOOKED_AT + 1]]
        if lacking := _pointless(root, layout, pairing.scenes):
            found = [lacking]
        if "" in found:
            some = " looked at" if len(found) < len(scenes) else ""
            fitting[name] = layout, f"{found.count('')} of {len(found)} scenes{some}"
        else:
            misfits.append(f"{name} does not, since {found[0]}")
    if pointed := {name: fit for name, fit in fitting.items() if fit[0].points}:
        misfits += [f"{name} fits, but reads no points" for name in fitting if name not in pointed]
        fitting = pointed
    if len(fitting) == 1:
        ((layout, count),) = fitting.values()
        sensors = [sensor for sensor in (layout.optical, layout.sar) if sensor]
        bands = " + ".join(f"{len(sensor.bands)} x {sensor.scaling}" for sensor in sensors)
        others = f"the other {len(unpaired)} layouts find no pairs of files there"
        return layout, "; ".join([f"{count} have its bands and dtypes ({bands})", *misfits, others])
    if fitting:
        listed = ", ".join(f"{name} ({count})" for name, (_, count) in fitting.items())
        raise DataError(f"Several layouts fit {root}: {listed}; choose one with --layout.")
    if unpaired:
        misfits.append(f"{', '.join(unpaired)} find no pairs of files there")
    raise DataError(
        f"No known layout fits {root}: {'; '.join(misfits)}; name one with --layout to see what it "
        "lacks, or describe the folder in a YAML file (data/README.md, 'Your own')."
    )


def _misfit(scene: Scene) -> str:
    """Say in a few words why the headers of a scene do not fit its layout; empty if they do."""
    try:
        for role, (path, sensor) in scene.files().items():
            if found := form_defects(path, sensor, role):
                return _brief(found[0])
    except DataError as error:
        return _brief(str(error))
    return ""


def _pointless(root: Path, layout: Layout, names: Iterable[str]) -> str:
    """Say in a few words why the points that a layout names are not there; empty if they are."""
    try:
        return next(map(_brief, read_points(root, layout, names).doubts), "")
    except DataError as error:
        return _brief(str(error))


def _brief(sentence: str) -> str:
    return re.split(r"[;(]", sentence)[0].strip()
