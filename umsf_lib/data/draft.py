"""Write a first layout from what a data folder holds (``umsf data layout``)."""

from __future__ import annotations

import colorsys
import json
import os.path
import re
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError, DataError
from .kinds import L2A, RGB, Kind, band_name, by_role, kinds_of, values_of
from .layout import DTYPES, PARTS, load_layout
from .pairing import pair_files, require_folder
from .rasters import grid_of, opened, strips
from .scene import Scene, files_of, scenes_of, split_scenes

LOOKED_AT = 20  # number of scenes compared with the draft, at most
USUAL = {  # number of bands -> names, and the reason
    3: (RGB, "as in pictures"),
    4: ([*RGB[::-1], "nir"], "the usual order of four bands"),
    12: (L2A, "the order of Sentinel-2 L2A"),
    13: ([*L2A[:10], "cirrus", *L2A[10:]], "the order of Sentinel-2 L1C"),
}


def draft_layout(root: Path) -> str:
    """Describe a data folder as a layout: YAML text with the evidence in comments.

    What the files do not say is a guess marked ``# check:``.

    Raises:
        DataError: this is no folder, or nothing in it looks optical.
    """
    if not root.is_dir():
        require_folder(root)
    kinds, damage = kinds_of(root)
    roles = by_role(root, kinds)
    unread = [f"unreadable files: {len(damage)}, such as {why}" for why in damage.values()][:1]
    if "optical" not in roles:
        listed = ", ".join([*(str(kind.paths[0]) for kind in kinds[:3]), *unread]) or "no raster"
        raise DataError(
            f"Data folder {root} has no optical files: it holds {listed.rstrip('.')}; check the "
            "path, or write a layout by hand (data/README.md, 'Your own')."
        )
    used = [kind for chosen in roles.values() for kind in chosen]
    fitting = {path for kind in used for path in kind.paths} | damage.keys()
    about = [
        f"# Drafted from {sum(len(kind.paths) for kind in kinds)} rasters; correct what is marked "
        "'check'.",
        *(f"# not used: {len(k.paths)} files such as {k.paths[0]}" for k in kinds if k not in used),
        *(f"# check: {text}" for text in unread),
        f"name: {_quoted(root.resolve().name or 'data')}",
    ]
    rest = [*_sensor_lines(root, "optical", roles["optical"])]
    if "sar" in roles:
        rest += _sensor_lines(root, "sar", roles["sar"])
    if "dem" in roles:
        rest.append("dem: {bands: [elevation], use: false}  # check: true adds it to optical")
    if "label" in roles:
        rest += _label_lines(root, roles["label"][0])
    best, most, scenes, doubt = "", -sys.maxsize - 1, list[Scene](), ""
    for fixed, depth, split in product((False, True), (None, 2, 1, 0), _splits(root, roles)):
        text = "\n".join([*about, *_place_lines(roles, fixed, depth), *rest, split, ""])
        score, found, reason = _try(text, root, fitting)
        if score > most:
            best, most, scenes, doubt = text, score, found, reason
        if not reason:
            break
    looked_at = scenes[:: len(scenes) // LOOKED_AT + 1]
    doubt = doubt or next((text for scene in looked_at for text in scene.defects()), "")
    return (f"# check: it does not work yet: {doubt}\n" if doubt else "") + best


def _try(text: str, root: Path, fitting: set[Path]) -> tuple[int, list[Scene], str]:
    """Return files in scenes less faults, the scenes, and why a layout does not work if so."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draft.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            layout = load_layout(str(path))
            pairing = pair_files(root, layout)
            scenes = scenes_of(pairing, layout)
            split_scenes(root, layout, scenes)
        except (ConfigError, DataError) as error:
            reason = " ".join(str(error).replace(str(path), "this file").split())
            return -sys.maxsize, [], reason
    found = {path.relative_to(root) for files in files_of(scenes).values() for path in files}
    others = [f"{path} is read, too, but is of another kind." for path in sorted(found - fitting)]
    faults = pairing.defects + others
    return len(found & fitting) - len(faults), scenes, next(iter(faults), "")


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _place_lines(roles: dict[str, list[Kind]], fixed: bool, depth: int | None) -> list[str]:
    """Write where the files of each role are; see ``Kind.where``."""
    folders, patterns = [], []
    for role, kinds in roles.items():
        places = [kind.where(fixed, depth) for kind in kinds]
        shared = os.path.commonprefix([parts for parts, _ in places])
        names = [_quoted("/".join([*parts[len(shared) :], name])) for parts, name in places]
        folders.append(f"  {role}: {_quoted('/'.join(shared) or '.')}")
        if len(kinds) == 1:
            patterns.append(f"  {role}: {names[0]}")
        else:
            patterns.append(f"  {role}:  # a file for each band")
            patterns += [f"    {k.band}: {name}" for k, name in zip(kinds, names, strict=True)]
    head = "pattern:  # what * matches is the name of the scene"
    return ["folders:  # * is a wildcard", *folders, head, *patterns]


def _sensor_lines(root: Path, role: str, kinds: list[Kind]) -> list[str]:
    """Write the entry of the optical or SAR bands, with what was seen in the files."""
    values = np.concatenate([values_of(root, kind) for kind in kinds])
    middle = float(np.median(values)) if values.size else 0.0
    dtype = kinds[0].dtype
    if role == "optical":
        scaling = "stretched8" if dtype == "uint8" else "reflectance"
    elif dtype == "uint8":
        scaling = "amplitude8"
    else:
        scaling = "db" if middle < 0 else "intensity"
    seen = f"{dtype}, {values.min():.6g} to {values.max():.6g}, median {middle:.6g}"
    doubt = "" if dtype in DTYPES[scaling] else "; check: no scaling is for this dtype, convert it"
    bands, why = _band_names(root, role, kinds)
    lines = [f"{role}:", f"  bands: {_quoted(bands)}  # {why}"]
    if role == "optical":
        shown = RGB if set(RGB) <= set(bands) else (bands * 3)[:3]
        doubt_rgb = "" if set(RGB) <= set(bands) else "  # check: shown as red, green, blue"
        lines.append(f"  rgb: {_quoted(shown)}{doubt_rgb}")
    lines.append(f"  scaling: {scaling}  # {seen if values.size else dtype}{doubt}")
    with opened(root / kinds[0].paths[0]) as source:
        declared = source.nodata
    if declared is not None:
        lines.append(f"  # nodata: {declared:g} as the files declare")
    elif (values == 0).any():
        share = f"{100 * np.mean(values == 0):.2g} % of the values looked at"
        lines.append(f"  # nodata: 0  # check: the files declare none; 0 is {share}")
    else:
        lines.append("  # nodata: the files declare none")
    return lines


def _band_names(root: Path, role: str, kinds: list[Kind]) -> tuple[list[str], str]:
    """Return the names of the bands and what they are known by."""
    count = kinds[0].count
    if kinds[0].band:
        return [kind.band for kind in kinds], "from the names of the files"
    with opened(root / kinds[0].paths[0]) as source:
        named = [name for name in source.descriptions if name]
        if role == "sar" and count == 3:
            first, *others = source.read()
            count = 1 if all(np.array_equal(first, other) for other in others) else 3
    usual = [band_name(name, kinds[0].paths[0].stem) or name for name in named]
    if len({*usual}) == count:
        return usual, f"the files describe them as {', '.join(named)}"
    if role == "sar" and count <= 2:
        return ["vv", "vh"][:count], "check: polarisations"
    if role == "optical" and count in USUAL:
        names, why = USUAL[count]
        return names, f"check: {why}"
    return [f"band{number}" for number in range(1, count + 1)], "check: names, in file order"


def _label_lines(root: Path, kind: Kind) -> list[str]:
    """Write the codes of all label files as classes of placeholder names and distinct colours."""
    counts, declared = Counter[int](), set()
    for path in kind.paths:
        with opened(root / path) as source:
            declared |= {int(source.nodata)} if source.nodata is not None else set()
            for part in strips(grid_of(source)):
                codes, sizes = np.unique(source.read(1, window=part), return_counts=True)
                counts.update(dict(zip(codes.tolist(), sizes.tolist(), strict=True)))
    ignored = sorted(
        declared | {code for code in counts if code < 0 or (code == 255 and len(counts) > 2)}
    )
    classes = sorted(counts.keys() - set(ignored))
    lines = [f"label_nodata: {ignored}  # check: codes that mean 'no label'"]
    lines.append("classes:" if classes else "classes: []  # the labels hold nothing else")
    for number, code in enumerate(classes):
        hue = colorsys.hsv_to_rgb(number / len(classes), 0.5 + number % 2 / 2, 0.9 - number % 3 / 5)
        rgb = [round(255 * value) for value in hue]
        doubt = "; check: a class, or no label?" if code == 0 else ""
        lines.append(
            f"  - {{id: {number}, name: class {code}, code: {code}, rgb: {rgb}}}"
            f"  # check: name; {counts[code] / counts.total():.1%} of the pixels{doubt}"
        )
    return lines


def _splits(root: Path, roles: dict[str, list[Kind]]) -> list[str]:
    """Return the possible entries ``split``, the best first; some may not work."""
    found = []
    if "train" in {path.parent.name for path in roles["optical"][0].paths}:
        found.append("split: {rule: folders}")
    lists = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in (".txt", ".csv")]
    parts = {
        part: _quoted(path.relative_to(root).as_posix())
        for part in PARTS
        for path in lists
        if re.search(rf"(?i)(?<![a-z]){part}", path.stem)
    }
    if {"train", "test"} <= parts.keys():
        listed = ", ".join(f"{part}: {file}" for part, file in parts.items())
        found.append(f"split: {{rule: lists, {listed}}}")
    elif {"train", "val"} <= parts.keys():
        listed = f"train: {parts['train']}, test: {parts['val']}"
        found.append(f"split: {{rule: lists, {listed}}}  # check: scores are on the list val")
    for path in lists:
        if path.parent == root and "train:" in path.read_text(encoding="utf-8", errors="replace"):
            file = f"files: {_quoted(path.name)}, validation_tail: 0"
            found.append(f"split: {{rule: file, {file}}}")
    if "label" in roles:
        return [*found, "split: {rule: transductive}  # check: all scenes train, all are scored"]
    return [*found, "split: {rule: unlabelled}  # all scenes train and are mapped"]
