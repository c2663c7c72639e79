"""Prepared scenes: flat memory maps, records of the scenes, statistics and split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import IGNORE
from ..run import Run
from .layout import Layout, to_log_intensity
from .scene import Scene

NORMALISATION = "statistics.json"
Statistics = dict[str, dict[str, list[float]]]  # sensor -> mean, std -> per band


@dataclass(frozen=True)
class SceneRecord:
    """Position of a scene in the flat arrays, and its band statistics."""

    name: str
    height: int
    width: int
    offset: int  # index of its first pixel in the flat arrays
    valid_px: int
    mean: dict[str, list[float]]  # sensor -> per band; SAR as ln intensity
    std: dict[str, list[float]]


@dataclass(frozen=True)
class SceneSet:
    """Prepared scenes: flat memory maps, records of the scenes, and the split."""

    folder: Path
    layout: Layout
    records: tuple[SceneRecord, ...]
    split: dict[str, list[str]]
    sources: dict[str, Scene]

    def index(self, name: str) -> int:
        """Return the position of a scene in ``records``."""
        return self._positions[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {record.name: position for position, record in enumerate(self.records)}

    def indices(self, part: str) -> list[int]:
        """Return the positions in ``records`` of the scenes of ``train``, ``val`` or ``test``."""
        return [self.index(name) for name in self.split[part]]

    def flat(self, role: str) -> np.ndarray:
        """Open the memory map of one role, with P pixels of all scenes.

        It is copy-on-write: torch can use it without a copy, and the file never changes.

        Returns:
            ``(C, P)`` of ``optical`` or ``sar`` in the dtype of the files, or ``(P,)`` of
            ``label`` (uint8) or ``valid`` (bool).
        """
        return np.load(self.folder / f"{role}.npy", mmap_mode="c")

    def plane(self, role: str, scene: int) -> np.ndarray:
        """Return one scene of a flat array as ``(C, H, W)`` or ``(H, W)``."""
        record, flat = self.records[scene], self.flat(role)
        part = flat[..., record.offset : record.offset + record.height * record.width]
        return part.reshape(*flat.shape[:-1], record.height, record.width)

    def log_sar(self, scene: int) -> np.ndarray | None:
        """Return the first SAR band as ln intensity ``(H, W) float64``; None without SAR."""
        if self.layout.sar is None:
            return None
        return physical(np.asarray(self.plane("sar", scene))[0], "sar", self.layout)

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and std per sensor and band over the valid pixels of the training scenes.

        They are pooled from the moments of each scene, so no pixels are read again.
        """
        train = [self.records[i] for i in self.indices("train")]
        weight = np.array([r.valid_px for r in train], dtype=np.float64)
        weight /= weight.sum()
        pooled: Statistics = {}
        for role in train[0].mean:
            means = np.array([r.mean[role] for r in train])
            seconds = np.array([r.std[role] for r in train]) ** 2 + means**2
            mean = weight @ means
            std = np.sqrt(np.maximum(weight @ seconds - mean**2, 1e-12))
            pooled[role] = {"mean": mean.tolist(), "std": std.tolist()}
        return pooled

    @property
    def labelled(self) -> bool:
        """Whether the layout has classes, which scores need."""
        return bool(self.layout.classes)


def normalisation(scenes: SceneSet) -> dict[str, dict[str, Any]]:
    """Describe how the values of each sensor are standardised, for the run and its checkpoints.

    Returns:
        Sensor -> ``bands``, ``scaling`` and ``standardise`` of the layout, and ``mean`` and ``std``
        per band.
    """
    found: dict[str, dict[str, Any]] = {}
    for role, table in scenes.statistics.items():
        sensor = scenes.layout.sensor(role)
        named = {"scaling": sensor.scaling, "standardise": sensor.standardise}
        found[role] = {"bands": list(sensor.bands), **named, **table}
    return found


def normalisation_of(run: Run) -> dict[str, dict[str, Any]]:
    """Read the ``normalisation`` that stage ``data`` of a run has written.

    Raises:
        MissingStageError: the stage has not run.
    """
    run.outputs_of("data")
    found: dict[str, dict[str, Any]] = json.loads(
        run.path(NORMALISATION).read_text(encoding="utf-8")
    )
    return found


def standardisation(
    scenes: SceneSet, statistics: Statistics
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return sensor -> mean and std, each ``(S, C) float32``, to standardise each scene with.

    The layout's ``standardise`` says whose they are: those of the training scenes (``set``), those
    of the scene (``scene``) or the mean of both (``shrunken``). They are never those of a patch,
    which would remove differences in radiometry within the scene.
    """
    result = {}
    for role, table in statistics.items():
        own = scenes.layout.sensor(role).own_share
        mean, std = (
            own * np.array([getattr(record, name)[role] for record in scenes.records])
            + (1 - own) * np.array(table[name])
            for name in ("mean", "std")
        )
        result[role] = (mean.astype(np.float32), np.maximum(std.astype(np.float32), 1e-6))
    return result


def valid_labels(scenes: SceneSet, scene: int) -> np.ndarray:
    """Return the label ids ``(H, W) uint8`` of a scene, ``IGNORE`` at invalid pixels."""
    return np.where(scenes.plane("valid", scene), scenes.plane("label", scene), IGNORE)


def class_shares(scenes: SceneSet) -> dict[str, np.ndarray]:
    """Return part of the split -> share ``(K,)`` of each class in its labelled pixels.

    Parts without labelled pixels are left out.
    """
    shares = {}
    for part in scenes.split:
        labels = (valid_labels(scenes, scene).ravel() for scene in scenes.indices(part))
        counts = sum(np.bincount(ids, minlength=IGNORE + 1) for ids in labels)
        known = np.atleast_1d(counts)[: len(scenes.layout.classes)]
        if known.sum() > 0:
            shares[part] = known / known.sum()
    return shares


def labels_at(scenes: SceneSet, scene: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Return the label ids ``(M,) uint8`` at ``(M,)`` scene indices, rows and columns (px).

    Positions beyond the bottom or right edge get the label of the edge pixel. The centre of a token
    can lie there if the stride does not divide the size of the scene.
    """
    found = np.full(len(scene), IGNORE, np.uint8)
    for index in np.unique(scene):
        labels, here = valid_labels(scenes, int(index)), scene == index
        height, width = labels.shape
        found[here] = labels[np.minimum(row[here], height - 1), np.minimum(col[here], width - 1)]
    return found


def physical(values: np.ndarray, role: str, layout: Layout) -> np.ndarray:
    """Return values as float64; SAR values as natural log of intensity."""
    if role == "sar" and layout.sar is not None:
        return to_log_intensity(values.astype(np.float64), layout.sar.scaling)
    return values.astype(np.float64)
