"""Whatever a raster's size, bands, dtype and mask: what leaves the data room is finite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umsf_lib.config import DataError
from umsf_lib.data.layout import DTYPES, load_layout
from umsf_lib.data.scene import find_scenes
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore, tile_scene, tile_starts

from .conftest import CPU
from .fakes import METRES, UTM, write_raster

# The same examples in every run: what fails here fails again there.
bounded: Callable[..., Any] = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
JUNK = (np.nan, np.inf, -np.inf, -3.4e38, 1e31)  # of floats; the last two are undeclared fills


@dataclass(frozen=True)
class Raster:
    """One sensor of a scene: values as stored, how to read them, where they are masked."""

    values: np.ndarray  # (C, h, w)
    scaling: str
    nodata: int | None
    masked: np.ndarray  # (h, w), by any band

    def with_junk(self, seed: int) -> np.ndarray:
        """The same pixels, other values under the mask; at least one band says it is masked."""
        rng, values = np.random.default_rng(seed), self.values.copy()
        floats = values.dtype.kind == "f"
        marks = [*(JUNK if floats else ()), *([] if self.nodata is None else [self.nodata])]
        for row, col in np.argwhere(self.masked):
            values[:, row, col] = rng.permutation(values[:, row, col] // 2 + rng.integers(0, 9))
            values[rng.integers(len(values)), row, col] = rng.choice(marks)
        return values


@st.composite
def rasters(draw: Any, role: str, shape: tuple[int, int]) -> Raster:
    scalings = {"optical": ["stretched8", "reflectance"], "sar": ["amplitude8", "intensity", "db"]}
    scaling = draw(st.sampled_from(scalings[role]))
    dtype = draw(st.sampled_from(DTYPES[scaling]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread, count = draw(st.sampled_from([0, 1, 50])), draw(st.integers(1, 4))
    values = rng.normal(60, spread, (count, *shape)).clip(1, 255)
    values = (values if scaling != "db" else values / 10 - 20).astype(dtype)
    nodata = draw(st.sampled_from([0, None])) if dtype[0] == "f" else 0
    masked = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    return Raster(values, scaling, nodata, masked)


@st.composite
def pairs(draw: Any) -> dict[str, Raster]:
    shape = (draw(st.integers(1, 37)), draw(st.integers(1, 37)))
    roles = draw(st.sampled_from([("optical", "sar"), ("optical",)]))
    return {role: draw(rasters(role, shape)) for role in roles}


def layout_text(scene: dict[str, Raster]) -> str:
    sensors = ""
    for role, raster in scene.items():
        names = [f"{role}{number}" for number in range(len(raster.values))]
        sensors += f"{role}:\n  bands: {names}\n  scaling: {raster.scaling}\n"
        sensors += f"  rgb: {[names[0]] * 3}\n" if role == "optical" else ""
        sensors += "" if raster.nodata is None else f"  nodata: {raster.nodata}\n"
    folders = {role: role for role in scene}
    return (
        f"name: any\nfolders: {folders}\npattern: '*.tif'\n{sensors}split: {{rule: unlabelled}}\n"
    )


def prepared(scene: dict[str, Raster], root: Path, seed: int) -> SceneSet:
    (root / "any.yaml").write_text(layout_text(scene))
    layout = load_layout(str(root / "any.yaml"))
    for role, raster in scene.items():
        path = root / str(seed) / role / "a.tif"
        write_raster(path, raster.with_junk(seed), crs=UTM, transform=METRES)
    return prepare(root / str(seed), layout, root / "prepared")


def valid_of(scene: dict[str, Raster]) -> np.ndarray:
    return ~np.logical_or.reduce([raster.masked for raster in scene.values()])


@bounded
@given(pairs())
def test_what_leaves_the_data_room_is_finite(scene: dict[str, Raster]) -> None:
    valid = valid_of(scene)
    with tempfile.TemporaryDirectory() as folder:
        if not valid.any():
            with pytest.raises(DataError, match=f"Scene a has 0 valid pixels of {valid.size}"):
                prepared(scene, Path(folder), 0)
            assert list(Path(folder, "prepared").iterdir()) == []
            return
        scenes = prepared(scene, Path(folder), 0)
        (source,) = find_scenes(Path(folder, "0"), scenes.layout)
        parts, statistics = source.read(), scenes.statistics
        store = PixelStore(scenes, statistics, CPU)
        windows = store.scene(0)
        np.testing.assert_array_equal(parts["valid"], valid)
        np.testing.assert_array_equal(scenes.plane("valid", 0), valid)
        for role, raster in scene.items():
            np.testing.assert_array_equal(parts[role][:, valid], raster.values[:, valid])
            table = statistics[role]
            assert np.isfinite([*table["mean"], *table["std"]]).all() and min(table["std"]) > 0
            seen = windows[role][0].numpy()
            assert np.isfinite(seen).all() and (seen[:, ~valid] == 0).all()
            assert np.abs(seen).max() < 1e3  # standardised


@bounded
@given(pairs())
def test_masked_pixels_change_no_statistics(scene: dict[str, Raster]) -> None:
    if not valid_of(scene).any():
        return
    with tempfile.TemporaryDirectory() as folder:
        one, other = (prepared(scene, Path(folder), seed) for seed in (1, 2))
        assert one.records == other.records and one.folder != other.folder
        assert one.statistics == other.statistics
        for role in scene:
            first, second = (PixelStore(s, s.statistics, CPU) for s in (one, other))
            assert (first.scene(0)[role] == second.scene(0)[role]).all()


@settings(bounded, max_examples=200)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40), data=st.data())
def test_tiles_cover_each_pixel(height: int, width: int, size: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    if min(height, width) < size:
        with pytest.raises(DataError, match=f"smaller than a window of {size} px"):
            tile_scene(height, width, size, overlap)
        return
    covered = np.zeros((height, width), int)
    tiles = tile_scene(height, width, size, overlap)
    for row, col in tiles:
        assert 0 <= row <= height - size and 0 <= col <= width - size
        covered[row : row + size, col : col + size] += 1
    assert (covered > 0).all() and len({tuple(tile) for tile in tiles}) == len(tiles)
    for length in (height, width):  # no fewer would reach the end with this overlap
        count = len(tile_starts(length, size, overlap))
        assert size + (count - 2) * (size - overlap) < length or count == 1
