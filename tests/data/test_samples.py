"""The real pairs of every clone: readable, registered, small, attributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

from umsf_lib.data.layout import load_layout
from umsf_lib.data.stage import prepare

SAMPLES = Path(__file__).parents[2] / "data" / "samples"


def test_the_samples_are_two_registered_pairs_of_known_size() -> None:
    for name in ("047", "171"):
        with (
            rasterio.open(SAMPLES / "optical" / f"{name}.tif") as optical,
            rasterio.open(SAMPLES / "sar" / f"{name}.tif") as sar,
        ):
            assert optical.shape == sar.shape == (512, 512)
            assert (optical.count, sar.count) == (3, 1) and optical.crs == sar.crs
            assert optical.crs.to_epsg() == 3395 and optical.transform.almost_equals(sar.transform)
            # Both sensors see the same ground: roofs and walls are bright in both.
            grey, radar = optical.read().mean(axis=0), sar.read(1).astype(float)
            blocks = [x.reshape(64, 8, 64, 8).mean(axis=(1, 3)).ravel() for x in (grey, radar)]
            shifted = [x.reshape(64, 64)[:, ::-1].ravel() for x in blocks[1:]]
            assert np.corrcoef(*blocks)[0, 1] > 0.15
            assert np.corrcoef(*blocks)[0, 1] > np.corrcoef(blocks[0], shifted[0])[0, 1] + 0.1


def test_the_samples_are_prepared_as_any_pairs(tmp_path: Path) -> None:
    scenes = prepare(SAMPLES, load_layout("pairs"), tmp_path)
    assert [record.name for record in scenes.records] == ["047", "171"]
    assert all(record.valid_px == 512 * 512 for record in scenes.records)
    assert scenes.indices("train") == scenes.indices("test") == [0, 1]


def test_the_samples_are_small_and_say_whose_they_are() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*.tif")) < 2_000_000
    assert "modified Copernicus Sentinel data" in (SAMPLES / "README.md").read_text("utf-8")
