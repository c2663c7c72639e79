"""Pictures for a blind choice: both maps of a scene, unmarked, and a key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import blind_maps
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.data.stage import prepare
from umsf_lib.maps.stage import write_maps
from umsf_lib.run import Run

from ..fakes import striped_classifier, write_striped

KMEANS = np.zeros((48, 144, 3), np.uint8)


@pytest.fixture
def mapped(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with maps of two scenes without labels."""
    shutil.copytree(tiny_run.folder, tmp_path / tiny_run.folder.name)
    run = Run.open(tiny_run.config, tiny_run.folder.name, tmp_path)
    scenes = prepare(*write_striped(tmp_path / "data"), tmp_path / "prepared")
    task = ClusteringTask.of_run(run, scenes)
    write_maps(run, task, striped_classifier(task), None, scenes.indices("test"))
    monkeypatch.setattr(blind_maps, "load_data", lambda _: scenes)
    return run


def test_the_key_tells_which_picture_is_which(
    mapped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, np.ndarray]] = []
    panels = blind_maps.panels

    def spied(rows: list[dict[str, np.ndarray]], *size: float) -> object:
        drawn.extend(rows)
        return panels(rows, *size)

    monkeypatch.setattr(blind_maps, "panels", spied)
    monkeypatch.setattr(blind_maps, "kmeans_maps", lambda *_: {0: KMEANS, 1: KMEANS})
    blind_maps.write_trial(mapped, tmp_path, ["coast", "park"], seed=2)  # which has both orders
    key = json.loads((tmp_path / "key.json").read_text())
    assert key["clusters"] == 5 and key["seed"] == 2
    assert {"".join(pair) for pair in key["pairs"].values()} == {"AB"}
    orders = {tuple(pair.values()) for pair in key["pairs"].values()}
    assert orders == {("UMSF-Net", "k-means"), ("k-means", "UMSF-Net")}
    for name, shown, unmarked in zip(key["pairs"], drawn[:4:2], drawn[1:4:2], strict=True):
        assert list(shown) == ["optical", "SAR"] and list(unmarked) == ["A", "B"]
        for letter, method in key["pairs"][name].items():
            assert (unmarked[letter] is KMEANS) == (method == "k-means")
    assert list(drawn[4]) == [f"coast: {t}" for t in ("optical", "SAR", "UMSF-Net", "k-means")]
    for name in ("coast", "park", "side_by_side"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width >= 1000


def test_kmeans_has_the_colours_of_the_rule(mapped: Run) -> None:
    scenes = blind_maps.load_data(mapped)
    maps = blind_maps.kmeans_maps(scenes, scenes.indices("test"), 4, 0)
    coast, park = (maps[scenes.index(name)][24] for name in ("coast", "park"))
    assert (coast[[24, 72]] == park[[24, 72]]).all()  # homes, roofs
    assert coast[120].argmax() == 2 and park[120].argmax() == 1  # water is blue, wood is green
    ours = blind_maps.our_map(mapped, "coast")
    assert ours[24, 120].tolist() == coast[120].tolist()
    assert ours[0, 0].tolist() == maps[0][0, 0].tolist() == [217, 217, 217]  # nodata
