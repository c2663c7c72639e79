"""Layouts: where a data set keeps its files, what its bands and label codes mean.

One YAML file per data set. Your own imagery is one more such file: copy ``pairs.yaml``, change the
lines that differ, and pass its path wherever a layout is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError, unknown_name
from ..runs import project_root

FOLDER = Path(__file__).parent
# What a band must be stored as, so that a wrong scaling is noticed before it is trained on.
DTYPES = {
    "stretched8": ("uint8",),
    "reflectance": ("uint16", "int16", "float32", "float64"),
    "amplitude8": ("uint8",),
    "intensity": ("float32", "float64"),
    "db": ("float32", "float64"),
}
PARTS = ("train", "val", "test")
STANDARDISE = ("scene", "set")
SCALINGS = {"optical": ("stretched8", "reflectance"), "sar": ("amplitude8", "intensity", "db")}
SPLIT_RULES = {  # rule -> what it needs, what it may have; see splits.py
    "file": ("files validation_tail", ""),
    "lists": ("train test", "val"),
    "folders": ("", ""),
    "names": ("val test", ""),
    "transductive": ("", ""),
    "unlabelled": ("", ""),
}


@dataclass(frozen=True)
class Sensor:
    """Bands of one modality, in file order."""

    bands: tuple[str, ...]
    scaling: str  # key of DTYPES
    nodata: float | None  # None: what the file itself declares; NaN and Inf are always invalid
    rgb: tuple[int, int, int] | None  # 0-based bands to show as red, green, blue; SAR: None
    standardise: str  # by the mean and std of each "scene", or of the whole training "set"


@dataclass(frozen=True)
class LandClass:
    """One row of the class table that figures, GeoTIFF, legend and browser share."""

    id: int  # 0, 1, ... as the network counts
    name: str
    code: int  # as stored in the label file
    rgb: tuple[int, int, int]
    more_codes: tuple[int, ...] = ()  # others in the label file that mean the same

    @property
    def codes(self) -> tuple[int, ...]:
        """All codes of the label file that mean this class."""
        return (self.code, *self.more_codes)


@dataclass(frozen=True)
class Layout:
    """One data set."""

    name: str
    folders: dict[str, tuple[str, ...]]  # optical, sar, label -> names it may have, with *
    pattern: dict[str, str]  # role -> file name with *; what * stands for names the scene
    optical: Sensor
    sar: Sensor | None
    label_nodata: tuple[int, ...]
    classes: tuple[LandClass, ...]
    split: dict[str, Any]
    source: Path

    def sensor(self, role: str) -> Sensor:
        """Sensor of ``optical`` or ``sar``, where the data set has it."""
        sensor = {"optical": self.optical, "sar": self.sar}[role]
        assert sensor is not None
        return sensor


def load_layout(name_or_path: str) -> Layout:
    """Read a layout by name (see ``layout_names``) or from a user's YAML file.

    A relative path is looked up in the working directory, then in the project's root.

    Raises:
        ConfigError: no such layout, or a field of it is missing, unknown or wrong.
    """
    path = _layout_file(name_or_path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Layout {path} cannot be read: {reason}; mend the file.") from error
    try:
        return _layout(tree, path)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Layout {path}: {error}; see {FOLDER / 'pairs.yaml'}.") from error


def layout_names() -> list[str]:
    """Names of the layouts that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _layout_file(name_or_path: str) -> Path:
    if not name_or_path.endswith((".yaml", ".yml")):
        path = FOLDER / f"{name_or_path}.yaml"
        if path.is_file():
            return path
        raise ConfigError(
            f"Layout '{name_or_path}' is unknown; choose one of {', '.join(layout_names())}, or "
            "the path of your own file, ending in .yaml."
        )
    for path in (Path(name_or_path), project_root() / name_or_path):
        if path.is_file():
            return path.resolve()
    raise ConfigError(f"Layout file {Path(name_or_path).resolve()} does not exist.")


def _layout(tree: Any, path: Path) -> Layout:
    _check_keys(tree, "the file", "name folders pattern optical split", "sar label_nodata classes")
    _check_keys(tree["folders"], "folders", "optical", "sar label")
    folders = {role: _names(names) for role, names in tree["folders"].items()}
    if ("sar" in folders) != ("sar" in tree):
        raise ValueError("sar must be given both under folders and as a sensor, or in neither")
    nodata = tuple(int(code) for code in tree.get("label_nodata", ()))
    return Layout(
        name=str(tree["name"]),
        folders=folders,
        pattern=_patterns(tree["pattern"], folders),
        optical=_sensor(tree["optical"], "optical"),
        sar=_sensor(tree["sar"], "sar") if "sar" in tree else None,
        label_nodata=nodata,
        classes=_classes(tree.get("classes", ()), nodata),
        split=_split(tree["split"]),
        source=path,
    )


def _check_keys(tree: Any, where: str, required: str, optional: str = "") -> None:
    if not isinstance(tree, Mapping):
        raise TypeError(f"{where} must hold 'key: value' lines, but it holds {tree!r}")
    known = required.split() + optional.split()
    for key in tree:
        if key not in known:
            raise ValueError(unknown_name(str(key), known, where).rstrip("."))
    missing = [key for key in required.split() if key not in tree]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, list) else (str(value),)


def _patterns(value: Any, folders: Iterable[str]) -> dict[str, str]:
    patterns = value if isinstance(value, Mapping) else dict.fromkeys(folders, value)
    _check_keys(patterns, "pattern", " ".join(folders))
    for text in patterns.values():
        if not re.fullmatch(r"[^*?/\[\]]*\*[^?/\[\]]*\.\w+", str(text)):
            raise ValueError(f"pattern is {text!r}, not a file name with * as in '*.tif'")
    if len({str(text).count("*") for text in patterns.values()}) > 1:
        raise ValueError(f"the patterns {list(patterns.values())} differ in the number of *")
    return {role: str(text) for role, text in patterns.items()}


def _sensor(tree: Any, role: str) -> Sensor:
    _check_keys(tree, role, "bands scaling", "nodata rgb standardise")
    bands, allowed = _names(tree["bands"]), SCALINGS[role]
    if tree["scaling"] not in allowed:
        raise ValueError(f"{role} scaling is {tree['scaling']!r}, not one of {', '.join(allowed)}")
    if len(set(bands)) < len(bands):
        raise ValueError(f"{role} bands {', '.join(bands)} name one band twice")
    shown = _names(tree["rgb"]) if "rgb" in tree else ()
    if (role == "optical" and len(shown) != 3) or not set(shown) <= set(bands):
        raise ValueError(f"{role} rgb is {list(shown)}, not three of the bands {', '.join(bands)}")
    rgb = tuple(bands.index(s) for s in shown)
    nodata = tree.get("nodata")
    # An 8-bit product was stretched scene by scene, so that its level means nothing; calibrated
    # values mean the same everywhere.
    usual = "scene" if DTYPES[tree["scaling"]] == ("uint8",) else "set"
    standardise = str(tree.get("standardise", usual))
    if standardise not in STANDARDISE:
        raise ValueError(f"{role} standardise is {standardise!r}, not {' or '.join(STANDARDISE)}")
    return Sensor(
        bands=bands,
        scaling=str(tree["scaling"]),
        nodata=None if nodata is None else float(nodata),
        rgb=(rgb[0], rgb[1], rgb[2]) if shown else None,
        standardise=standardise,
    )


def _classes(rows: Iterable[Any], nodata: tuple[int, ...]) -> tuple[LandClass, ...]:
    classes: list[LandClass] = []
    for number, row in enumerate(rows):
        _check_keys(row, f"class {number}", "id name code rgb")
        red, green, blue = (int(v) for v in row["rgb"])
        if row["id"] != number or not all(0 <= v <= 255 for v in (red, green, blue)):
            raise ValueError(f"class {row} must have id {number} and an rgb of 0..255")
        first, *more = (int(code) for code in _names(row["code"]))
        rgb = (red, green, blue)
        classes.append(LandClass(number, str(row["name"]), first, rgb, tuple(more)))
    codes = [code for c in classes for code in c.codes] + list(nodata)
    if len(set(codes)) < len(codes):
        raise ValueError(f"the codes {codes} of classes and label_nodata are not distinct")
    return tuple(classes)


def _split(tree: Any) -> dict[str, Any]:
    rule = tree.get("rule") if isinstance(tree, Mapping) else tree
    if rule not in SPLIT_RULES:
        raise ValueError(f"split rule is {rule!r}, not one of {', '.join(SPLIT_RULES)}")
    needed, optional = SPLIT_RULES[rule]
    _check_keys(tree, "split", f"rule {needed}", optional)
    lists = {key: _names(tree[key]) for key in ("files", *PARTS) if key in tree}
    return {**tree, **lists}
