"""Layouts: where a data set stores its files, and what its bands and label codes mean.

There is one YAML file per data set. To use your own imagery, copy ``pairs.yaml``, change the lines
that differ, and pass the path of the copy wherever a layout is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from ..config import ConfigError, unknown_name
from ..run import project_root

if TYPE_CHECKING:  # reading a layout does not need torch
    from torch import Tensor

FOLDER = Path(__file__).parent / "layouts"
# Scaling -> dtypes that it may be stored as, so that a wrong scaling is noticed before training.
DTYPES = {
    "stretched8": ("uint8",),
    "reflectance": ("uint16", "int16", "float32", "float64"),
    "amplitude8": ("uint8",),
    "intensity": ("float32", "float64"),
    "db": ("float32", "float64"),
    "elevation": ("int16", "uint16", "int32", "float32", "float64"),  # m
}
PARTS = ("train", "val", "test")
STANDARDISE = ("scene", "set")
SCALINGS = {
    "optical": ("stretched8", "reflectance"),
    "sar": ("amplitude8", "intensity", "db"),
    "dem": ("elevation",),
}
SPLIT_RULES = {  # rule -> required keys, optional keys; see split.py
    "file": ("files validation_tail", ""),
    "lists": ("train test", "val"),
    "folders": ("", ""),
    "names": ("val test", ""),
    "transductive": ("", ""),
    "unlabelled": ("", ""),
}


@dataclass(frozen=True)
class Sensor:
    """The bands of one modality, in file order."""

    bands: tuple[str, ...]
    scaling: str  # key of DTYPES
    nodata: float | None  # None: as the file declares; NaN and Inf are always invalid
    rgb: tuple[int, int, int] | None  # 0-based bands to show as red, green, blue; None for SAR
    standardise: str  # "scene": with its own mean and std; "set": with those of the training scenes


@dataclass(frozen=True)
class LandClass:
    """One row of the class table, used by figures, GeoTIFFs, legends and the browser."""

    id: int  # 0, 1, ...
    name: str
    code: int  # in the label file; 1 + id where folders are the labels
    rgb: tuple[int, int, int]
    more_codes: tuple[int, ...] = ()  # further codes of this class in the label file
    folder: str = ""  # folder whose tiles have this class, if folders are the labels

    @property
    def codes(self) -> tuple[int, ...]:
        """All codes of the label file that mean this class."""
        return (self.code, *self.more_codes)


@dataclass(frozen=True)
class Layout:
    """Where one data set stores its files and what they contain."""

    name: str
    folders: dict[str, tuple[str, ...]]  # optical, sar, dem, label -> possible names, with *
    pattern: dict[str, str]  # role -> file name with *; the part that * matches is the scene name
    optical: Sensor  # with the bands of the DEM at the end, if one is read
    sar: Sensor | None
    dem: Sensor | None  # elevation in separate files, appended to the optical bands
    label_nodata: tuple[int, ...]
    classes: tuple[LandClass, ...]
    split: dict[str, Any]
    source: Path

    def sensor(self, role: str) -> Sensor:
        """Return the sensor of ``optical`` or ``sar``, which the data set must have."""
        sensor = {"optical": self.optical, "sar": self.sar}[role]
        assert sensor is not None
        return sensor

    def in_file(self, role: str) -> Sensor | None:
        """Return what a file of ``optical``, ``sar`` or ``dem`` holds; None for ``label``."""
        if role == "optical" and self.dem:
            return replace(self.optical, bands=self.optical.bands[: -len(self.dem.bands)])
        return {"optical": self.optical, "sar": self.sar, "dem": self.dem}.get(role)

    @property
    def class_folders(self) -> dict[str, LandClass]:
        """Folder -> class of every tile in it; empty unless folders are the labels."""
        return {land.folder: land for land in self.classes if land.folder}


def load_layout(name_or_path: str) -> Layout:
    """Read a layout by name (see ``layout_names``) or from a user's YAML file.

    A relative path is looked up in the working directory, then in the project's root.

    Raises:
        ConfigError: the layout does not exist, or one of its fields is missing, unknown or wrong.
    """
    path = _layout_file(name_or_path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Layout {path} cannot be read: {reason}; correct the file.") from error
    try:
        return _layout(tree, path)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Layout {path}: {error}; see {FOLDER / 'pairs.yaml'}.") from error


def layout_names() -> list[str]:
    """Return the names of the layouts that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _layout_file(name_or_path: str) -> Path:
    if not name_or_path.endswith((".yaml", ".yml")):
        path = FOLDER / f"{name_or_path}.yaml"
        if path.is_file():
            return path
        raise ConfigError(
            f"Layout '{name_or_path}' is unknown; choose one of {', '.join(layout_names())}, or "
            "give the path of your own file, ending in .yaml."
        )
    for path in (Path(name_or_path), project_root() / name_or_path):
        if path.is_file():
            return path.resolve()
    raise ConfigError(f"Layout file {Path(name_or_path).resolve()} does not exist.")


def _layout(tree: Any, path: Path) -> Layout:
    optional = "sar dem label_nodata classes"
    _check_keys(tree, "the file", "name folders pattern optical split", optional)
    _check_keys(tree["folders"], "folders", "optical", "sar dem label")
    folders = {role: _names(names) for role, names in tree["folders"].items()}
    for role in ("sar", "dem"):
        if (role in folders) != (role in tree):
            raise ValueError(f"{role} must be given both under folders and by itself, or neither")
    patterns = _patterns(tree["pattern"], folders)
    optical, dem = _sensor(tree["optical"], "optical"), _dem(tree.get("dem"))
    if dem:
        optical = replace(optical, bands=_distinct(optical.bands + dem.bands, "optical and dem"))
    else:
        folders.pop("dem", None)
    nodata = tuple(int(code) for code in tree.get("label_nodata", ()))
    return Layout(
        name=str(tree["name"]),
        folders=folders,
        pattern=patterns,
        optical=optical,
        dem=dem,
        sar=_sensor(tree["sar"], "sar") if "sar" in tree else None,
        label_nodata=nodata,
        classes=_classes(tree.get("classes", ()), nodata, "label" in folders),
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
        if not re.fullmatch(r"[^*?/\[\]|]*\*[^?/\[\]|]*\.\w+(\|\w+)*", str(text)):
            raise ValueError(f"pattern is {text!r}, not a file name with * as in '*.tif'")
    if len({str(text).count("*") for text in patterns.values()}) > 1:
        raise ValueError(f"the patterns {list(patterns.values())} differ in the number of *")
    return {role: str(text) for role, text in patterns.items()}


def _sensor(tree: Any, role: str) -> Sensor:
    _check_keys(tree, role, "bands scaling", "nodata rgb standardise")
    bands, allowed = _names(tree["bands"]), SCALINGS[role]
    if tree["scaling"] not in allowed:
        raise ValueError(f"{role} scaling is {tree['scaling']!r}, not one of {', '.join(allowed)}")
    _distinct(bands, role)
    shown = _names(tree["rgb"]) if "rgb" in tree else ()
    if (role == "optical" and len(shown) != 3) or not set(shown) <= set(bands):
        raise ValueError(f"{role} rgb is {list(shown)}, not three of the bands {', '.join(bands)}")
    rgb = tuple(bands.index(s) for s in shown)
    nodata = tree.get("nodata")
    # 8-bit products are stretched scene by scene, so their absolute level has no meaning.
    # Calibrated values have the same meaning in all scenes.
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


def _distinct(bands: tuple[str, ...], role: str) -> tuple[str, ...]:
    if len(set(bands)) < len(bands):
        raise ValueError(f"{role} bands {', '.join(bands)} name one band twice")
    return bands


def _dem(tree: Any) -> Sensor | None:
    """Read the entry ``dem``; None if there is none or it is not used."""
    if tree is None:
        return None
    _check_keys(tree, "dem", "bands use", "nodata")
    if not isinstance(tree["use"], bool):
        raise TypeError(f"dem use is {tree['use']!r}, not true or false")
    rest = {key: value for key, value in tree.items() if key != "use"}
    return _sensor(rest | {"scaling": "elevation"}, "dem") if tree["use"] else None


def _classes(
    rows: Iterable[Any], nodata: tuple[int, ...], label_files: bool
) -> tuple[LandClass, ...]:
    """Read the class table, in which all rows have a code or all have a folder."""
    rows, classes = list(rows), list[LandClass]()
    mark = "folder" if rows and "folder" in rows[0] and not label_files else "code"
    for number, row in enumerate(rows):
        _check_keys(row, f"class {number}", f"id name {mark} rgb")
        red, green, blue = (int(v) for v in row["rgb"])
        if row["id"] != number or not all(0 <= v <= 255 for v in (red, green, blue)):
            raise ValueError(f"class {row} must have id {number} and an rgb of 0..255")
        first, *more = (int(code) for code in _names(row.get("code", number + 1)))
        rgb, folder = (red, green, blue), str(row.get("folder", ""))
        classes.append(LandClass(number, str(row["name"]), first, rgb, tuple(more), folder))
    codes = [code for c in classes for code in c.codes] + list(nodata)
    if len(set(codes)) < len(codes):
        raise ValueError(f"the codes {codes} of classes and label_nodata are not distinct")
    folders = [c.folder for c in classes]
    if mark == "folder" and len(set(folders)) < len(folders):
        raise ValueError(f"the folders {', '.join(folders)} of classes are not distinct")
    return tuple(classes)


def _split(tree: Any) -> dict[str, Any]:
    rule = tree.get("rule") if isinstance(tree, Mapping) else tree
    if rule not in SPLIT_RULES:
        raise ValueError(f"split rule is {rule!r}, not one of {', '.join(SPLIT_RULES)}")
    needed, optional = SPLIT_RULES[rule]
    _check_keys(tree, "split", f"rule {needed}", optional)
    lists = {key: _names(tree[key]) for key in ("files", *PARTS) if key in tree}
    return {**tree, **lists}


Values = TypeVar("Values", NDArray[Any], "Tensor")


def to_log_intensity(values: Values, scaling: str) -> Values:
    """Return the natural log of SAR intensity, in which speckle is additive.

    Args:
        values: array or tensor of any shape, as stored. Small values are raised (amplitude to .5,
            intensity to 1e-6) to keep the result finite.
        scaling: ``amplitude8`` (intensity is its square), ``intensity`` (linear power) or ``db``.

    Raises:
        ValueError: the scaling is none of these.
    """
    if scaling == "db":
        return values * (math.log(10) / 10)
    if scaling in ("amplitude8", "intensity"):
        lifted = values.clip(min=0.5 if scaling == "amplitude8" else 1e-6)
        logarithm = np.log(lifted) if isinstance(lifted, np.ndarray) else lifted.log()
        return 2 * logarithm if scaling == "amplitude8" else logarithm
    raise ValueError(f"scaling '{scaling}' is not a SAR scaling")
