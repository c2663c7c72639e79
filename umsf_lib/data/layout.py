"""Layouts: where a data set stores its files, and what its bands and label codes mean.

There is one YAML file per data set. To use your own imagery, copy ``pairs.yaml``, change the lines
that differ, and pass the path of the copy wherever a layout is asked for.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from ..config import (
    IGNORE,
    MOST_CLASSES,
    ConfigError,
    DataError,
    Settings,
    expanded,
    first_mistake,
    read_text,
    read_yaml,
)
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


def _listed(value: Any) -> Any:
    """Allow one value where a list is meant."""
    return value if isinstance(value, list | tuple) else [value]


def _refuse_truth(value: Any) -> Any:
    """Refuse ``no`` and its like, which YAML reads as false and pydantic as 0."""
    if isinstance(value, bool):
        raise ValueError(f"it must be a number, but YAML reads it as {str(value).lower()}")
    return value


def usual_standardisation(scaling: Any) -> str:
    """Return the ``standardise`` of a sensor whose layout does not say it.

    Calibrated values mean the same in all scenes. 8-bit products may be stretched scene by scene,
    so their levels compare only in part.
    """
    return "shrunken" if scaling in ("stretched8", "amplitude8") else "set"


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
Whole = Annotated[int, BeforeValidator(_refuse_truth)]
Nodata = Annotated[float, BeforeValidator(_refuse_truth)]
Byte = Annotated[Whole, Field(ge=0, le=255)]


@dataclass(frozen=True, config=ConfigDict(coerce_numbers_to_str=True))
class Entry(Settings):
    """Base of the entries of a layout: names may be written as numbers."""


@dataclass(frozen=True, kw_only=True)
class Sensor(Entry):
    """The bands of one modality, in file order."""

    bands: Names
    scaling: str  # key of DTYPES
    nodata: Nodata | None = None  # None: as the file declares; NaN and Inf are always invalid
    # "set": with mean and std of the training scenes; "scene": with those of each scene;
    # "shrunken": with the mean of both, so levels count but do not mislead.
    standardise: Literal["set", "shrunken", "scene"] = "set"

    @model_validator(mode="before")
    @classmethod
    def _usual_standardisation(cls, given: Any) -> Any:
        if isinstance(given, dict) and "scaling" in given:
            return {"standardise": usual_standardisation(given["scaling"])} | given
        return given

    @property
    def own_share(self) -> float:
        """Weight of a scene's own mean and std beside those of the training scenes."""
        return {"set": 0.0, "shrunken": 0.5, "scene": 1.0}[self.standardise]

    @field_validator("bands")
    @classmethod
    def _distinct(cls, bands: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(bands)) < len(bands):
            raise ValueError(f"{', '.join(bands)} name one band twice")
        return bands


@dataclass(frozen=True, kw_only=True)
class Optical(Sensor):
    """Optical bands."""

    scaling: Literal["stretched8", "reflectance"]
    rgb: tuple[int, int, int]  # 0-based bands to show as red, green, blue

    @field_validator("rgb", mode="before")
    @classmethod
    def _positions(cls, shown: Any, info: ValidationInfo) -> Any:
        """Find the bands that a file names; a tuple holds positions already."""
        bands = info.data.get("bands", ())
        if isinstance(shown, tuple) or not bands:
            return shown
        names = [str(name) for name in _listed(shown)]
        if len(names) != 3 or not set(names) <= set(bands):
            raise ValueError(f"{names} are not three of the bands {', '.join(bands)}")
        return [bands.index(name) for name in names]


@dataclass(frozen=True, kw_only=True)
class Sar(Sensor):
    """Radar bands."""

    scaling: Literal["amplitude8", "intensity", "db"]


@dataclass(frozen=True, kw_only=True)
class Dem(Sensor):
    """Elevation in separate files, in metres; it is appended to the optical bands if used."""

    scaling: Literal["elevation"] = "elevation"
    use: bool


@dataclass(frozen=True)
class LandClass(Entry):
    """One row of the class table, used by figures, GeoTIFFs, legends and the browser."""

    id: Whole  # 0, 1, ...
    name: Annotated[str, Field(min_length=1)]
    code: Whole  # in the label file; the id where folders are the labels
    rgb: tuple[Byte, Byte, Byte]
    more_codes: tuple[Whole, ...] = ()  # further codes of this class in the label file
    folder: str = ""  # folder whose tiles have this class, if folders are the labels

    @model_validator(mode="before")
    @classmethod
    def _read_codes(cls, row: Any) -> Any:
        """Read the code or codes, or the folder, that a file gives."""
        if not isinstance(row, dict):
            return row
        if ("code" in row) == ("folder" in row):
            raise ValueError("it needs either a code or a folder")
        first, *more = _listed(row.get("code", row.get("id")))
        return row | {"code": first, "more_codes": more}

    @property
    def codes(self) -> tuple[int, ...]:
        """All codes of the label file that mean this class."""
        return (self.code, *self.more_codes)


@dataclass(frozen=True)
class FileRule(Entry):
    """The first list found, with lines ``train:``, ``val:`` and ``test:`` before their scenes."""

    rule: Literal["file"]
    files: Names
    validation_tail: Annotated[
        Whole, Field(ge=0)
    ]  # last training scenes, for a list without a section val


@dataclass(frozen=True)
class ListsRule(Entry):
    """One list for each part: the first found of its possible names."""

    rule: Literal["lists"]
    train: Names
    test: Names
    val: Names | None = None


@dataclass(frozen=True)
class NamesRule(Entry):
    """Scenes whose names match the patterns of ``val`` or ``test``; the others train."""

    rule: Literal["names"]
    test: Names
    val: Names | None = None


@dataclass(frozen=True)
class FoldersRule(Entry):
    """The folder that holds the optical file, or one above it, is called as the part.

    Of ``train``, scenes whose names match the patterns of ``val`` are for validation.
    """

    rule: Literal["folders"]
    val: Names | None = None


@dataclass(frozen=True)
class PlainRule(Entry):
    """``transductive``, ``unlabelled``: all scenes are in ``train`` and ``test``, none in ``val``.

    ``alternate``: all scenes train, of which labels are never read. In the order of their numbers
    or names, the first, third, ... are ``val``, too, and the others ``test``.
    """

    rule: Literal["transductive", "unlabelled", "alternate"]


SplitRule = FileRule | ListsRule | NamesRule | FoldersRule | PlainRule  # see split.py


@dataclass(frozen=True)
class Layout(Entry):
    """Where one data set stores its files and what they contain."""

    name: str
    folders: dict[str, Names]  # role -> possible names, with *
    # role -> pattern, or band -> pattern; the part of a file name that * matches is the scene name
    pattern: dict[str, str | dict[str, str]]
    optical: Optical  # with the bands of the DEM at the end, if one is read
    split: Annotated[SplitRule, Field(discriminator="rule")]
    source: Path  # the file with this layout
    sar: Sar | None = None
    dem: Dem | None = None
    label_nodata: tuple[Whole, ...] = ()
    classes: tuple[LandClass, ...] = ()
    points: str = ""  # CSV with sparse labels in the data folder, see points.py

    @field_validator("pattern", mode="before")
    @classmethod
    def _of_all_roles(cls, given: Any, info: ValidationInfo) -> Any:
        """Allow one pattern for all roles."""
        roles = info.data.get("folders", ())
        return given if isinstance(given, dict) else dict.fromkeys(roles, given)

    def __post_init__(self) -> None:
        """Refuse entries that do not go together."""
        for role in ("sar", "dem"):
            if (role in self.folders) != (getattr(self, role) is not None):
                raise ValueError(
                    f"{role} must be given both under folders and by itself, or neither"
                )
        if not {"optical"} <= self.folders.keys() <= {"optical", "sar", "dem", "label"}:
            raise ValueError(
                f"folders must hold optical and may hold sar, dem and label, not {[*self.folders]}"
            )
        if self.pattern.keys() != self.folders.keys():
            raise ValueError(f"pattern is for {[*self.pattern]}, not for all of {[*self.folders]}")
        for text in (text for names in self.folders.values() for text in names):
            if not text.strip("/") or ".." in PurePath(text).parts or expanded(text).is_absolute():
                raise ValueError(f"folders holds {text!r}, not a folder inside the data folder")
        self._check_patterns()
        self._check_classes()

    def _check_patterns(self) -> None:
        patterns = {role: list(self.patterns(role).values()) for role in self.pattern}
        starred = {role for role, names in self.folders.items() if any("*" in n for n in names)}
        for role, texts in patterns.items():
            for text in texts:
                named = re.fullmatch(r"([^*?\[\]|]+/)?[^?/\[\]|]*\.\w+(\|\w+)*", text)
                if not named or not ("*" in text or role in starred):
                    raise ValueError(f"pattern is {text!r}, not a file name with * as in '*.tif'")
            if len(texts) > 1 and any(".npy" in text for text in texts):
                raise ValueError(f"pattern of {role} is for single bands, which cannot be .npy")
        every = [text for texts in patterns.values() for text in texts]
        if len({text.count("*") for text in every}) > 1 and not starred:
            raise ValueError(f"the patterns {every} differ in the number of *")

    def _check_classes(self) -> None:
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(
                f"there are {len(self.classes)} classes, but maps hold at most {MOST_CLASSES} "
                "(0 is nodata, 255 is 'ignore')"
            )
        if [land.id for land in self.classes] != list(range(len(self.classes))):
            raise ValueError(
                f"classes must have the ids 0, 1, ..., not {[c.id for c in self.classes]}"
            )
        folders = [land.folder for land in self.classes if land.folder]
        if folders and ("label" in self.folders or len(folders) < len(self.classes)):
            raise ValueError(
                "classes must all have a folder, without a label folder, or all a code"
            )
        if self.points and PurePath(self.points).name != self.points:
            raise ValueError(f"points is {self.points!r}, not a file in the data folder")
        if self.points and (folders or "label" in self.folders or not self.classes):
            raise ValueError("points need classes with codes, and no folder of labels")
        codes = [code for land in self.classes for code in land.codes] + list(self.label_nodata)
        for kind, values in (("codes", codes), ("folders", folders)):
            if len(set(values)) < len(values):
                raise ValueError(
                    f"the {kind} {values} of classes and label_nodata are not distinct"
                )

    def patterns(self, role: str) -> dict[str, str]:
        """Return band -> pattern of its file, or "" -> pattern of a file with all bands.

        Raises:
            ValueError: these bands are not those of the sensor.
        """
        given = self.pattern[role]
        if isinstance(given, str):
            return {"": given}
        if role not in ("optical", "sar"):
            raise ValueError(f"pattern of {role} is for bands, but only optical and sar have them")
        added = self.dem.bands if self.dem else ()
        bands = [band for band in self.sensor(role).bands if band not in added]
        if given.keys() != set(bands):
            raise ValueError(
                f"pattern of {role} is for the bands {[*given]}, not for all of {bands}"
            )
        return {band: given[band] for band in bands}

    def sensor(self, role: str) -> Optical | Sar:
        """Return the sensor of ``optical`` or ``sar``, which the data set must have."""
        sensor = {"optical": self.optical, "sar": self.sar}[role]
        assert sensor is not None
        return sensor

    def standardised(self, rule: Literal["set", "shrunken", "scene"]) -> Layout:
        """Return this layout with another ``standardise`` for both sensors."""
        sar = replace(self.sar, standardise=rule) if self.sar else None
        return replace(self, optical=replace(self.optical, standardise=rule), sar=sar)

    def in_file(self, role: str) -> Sensor | None:
        """Return what a file of ``optical``, ``sar`` or ``dem`` holds; None for ``label``."""
        if role == "optical" and self.dem:
            return replace(self.optical, bands=self.optical.bands[: -len(self.dem.bands)])
        return {"optical": self.optical, "sar": self.sar, "dem": self.dem}.get(role)

    @property
    def ids_of_codes(self) -> dict[int, int]:
        """Label code -> class id, ``IGNORE`` for nodata codes."""
        table = {code: land.id for land in self.classes for code in land.codes}
        return table | dict.fromkeys(self.label_nodata, IGNORE)

    def known_codes(self) -> str:
        """Say which label codes are known, and what to do about others."""
        known = [f"{code} {land.name}" for land in self.classes for code in land.codes]
        return (
            f"layout {self.source} knows {', '.join(known) or 'no classes'} and label_nodata "
            f"{list(self.label_nodata)}; add them there or correct the label"
        )

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
        tree = read_yaml(text := read_text(path), f"Layout {path}")
    except DataError as error:
        raise ConfigError(f"Layout {error}") from error
    if isinstance(tree, dict):
        tree["source"] = path
    try:
        layout = TypeAdapter(Layout).validate_python(tree)
        if layout.dem and layout.dem.use:
            bands = layout.optical.bands + layout.dem.bands
            return replace(layout, optical=replace(layout.optical, bands=bands))
    except ValidationError as error:
        mistake = first_mistake(error, f"layout {path}", text).removesuffix(".")
        raise ConfigError(f"{mistake}; see {FOLDER / 'pairs.yaml'}.") from error
    folders = {role: names for role, names in layout.folders.items() if role != "dem"}
    pattern = {role: layout.pattern[role] for role in folders}
    return replace(layout, dem=None, folders=folders, pattern=pattern)


def layout_names() -> list[str]:
    """Return the names of the layouts that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _layout_file(name_or_path: str) -> Path:
    if not name_or_path.endswith((".yaml", ".yml")):
        path = FOLDER / f"{name_or_path}.yaml"
        if os.path.isfile(path):  # unlike the method, it bears any name
            return path
        raise ConfigError(
            f"Layout '{name_or_path}' is unknown; choose one of {', '.join(layout_names())}, or "
            "give the path of your own file, ending in .yaml."
        )
    own = expanded(name_or_path)
    for path in (own, project_root() / own):
        if os.path.isfile(path):
            return path.resolve()
    what = "is a folder" if os.path.isdir(own) else "does not exist"
    raise ConfigError(f"Layout file {own.absolute()} {what}; check the path.")


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
