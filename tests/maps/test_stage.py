"""Written maps: cloud optimized GeoTIFFs that a GIS shows in colour, of the classifier given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate
from torch import Tensor

from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.stage import clustered_classifier, load_clustered
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import ConfigError
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import load_data, prepare
from umsf_lib.evaluation.stage import fitted_matching
from umsf_lib.maps.browser import class_table
from umsf_lib.maps.stage import legend_of, load_legend, write_maps
from umsf_lib.run import Run

from ..fakes import bands, codes, load_layout, striped_classifier, write_fake, write_striped

MAPPING = np.arange(7)
SIDE = 600  # above the 512 px of a tile, so that there are overviews


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, whose maps may be written."""
    shutil.copytree(tiny_run.folder, tmp_path / tiny_run.folder.name)
    return Run.open(tiny_run.config, tiny_run.folder.name, tmp_path)


@pytest.fixture
def large(run: Run, tmp_path: Path) -> ClusteringTask:
    """Three scenes, of which the last, of 600 x 608 px, is for testing."""
    layout, names = load_layout("whu-opt-sar"), [f"NH49E00101{i}" for i in (3, 4, 5)]
    for name, size in zip(names, (48, 48, SIDE), strict=True):
        optical, sar = (bands(layout, role, size, size) for role in ("optical", "sar"))
        optical[:, :5, :9] = 0
        label = codes(layout, size, size)
        write_fake(tmp_path / "data", layout.name, name, optical=optical, sar=sar, label=label)
    parts = zip(("train:", "val:", "test:"), names, strict=True)
    (tmp_path / "data" / "split.txt").write_text("\n".join(line for part in parts for line in part))
    scenes = prepare(tmp_path / "data", layout, tmp_path / "prepared")
    return ClusteringTask.of_run(run, scenes)


def random_classifier(task: ClusteringTask, name: str = "random") -> Classifier:
    def posteriors(scene: int) -> Tensor:
        record, generator = task.scenes.records[scene], torch.Generator().manual_seed(scene)
        size = -(-record.height // task.stride), -(-record.width // task.stride)
        return torch.randn(7, *size, generator=generator).softmax(dim=0)

    return Classifier(name, 7, task.stride, posteriors)


def test_maps_are_cloud_optimized_and_coloured(run: Run, large: ClusteringTask) -> None:
    which = large.scenes.indices("test")
    assert write_maps(run, large, random_classifier(large), MAPPING, which)
    name = large.scenes.records[which[0]].name
    paths = {p.name.split(".")[-2]: p for p in run.path("maps").glob(f"{name}.*.tif")}
    assert set(paths) == {"prediction", "confidence", "optical", "sar", "label", "error"}
    meanings = {"optical": ["red", "green", "blue"], "prediction": ["palette"]}
    meanings["label"] = meanings["prediction"]
    for layer, path in paths.items():
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        with rasterio.open(path) as source:
            assert source.overviews(1) == [2]
            assert [m.name for m in source.colorinterp] == meanings.get(layer, ["gray"])
            assert source.nodata == (0 if layer in ("prediction", "label") else None)
    for layer in ("prediction", "label"):
        tree = ElementTree.parse(f"{paths[layer]}.aux.xml")
        names = [node.text or "" for node in tree.iter("Category")]
        with rasterio.open(paths[layer]) as source:
            for land in large.scenes.layout.classes:
                assert source.colormap(1)[land.code] == (*land.rgb, 255)
                assert names[land.code] == land.name
    assert not [p for p in run.path("maps").iterdir() if p.name.startswith(".")]


def test_overviews_hold_classes_or_means(run: Run, large: ClusteringTask) -> None:
    which = large.scenes.indices("test")
    write_maps(run, large, random_classifier(large), MAPPING, which)
    name = large.scenes.records[which[0]].name

    def levels(layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of 2 x 2 px with data ``(4, n)``, and their pixels in the overview ``(n,)``."""
        path = run.path("maps", f"{name}.{layer}.tif")
        with rasterio.open(path) as full, rasterio.open(path, overview_level=0) as half:
            pixels, known, small = full.read(1), full.read_masks(1) > 0, half.read(1)
        known &= np.isfinite(pixels)
        pixels, known = (x.reshape(SIDE // 2, 2, -1, 2).swapaxes(1, 2) for x in (pixels, known))
        known = known.all(axis=(2, 3))
        return pixels[known].reshape(-1, 4).T, small[known]

    for layer in ("prediction", "label", "error"):
        blocks, small = levels(layer)
        assert (blocks == small).any(axis=0).all()
        of_three = np.sort(blocks, axis=0)[1]  # the most frequent one, if three or four are equal
        clear = (blocks == of_three).sum(axis=0) >= 3
        assert clear.any() and (small == of_three)[clear].all()
    for layer, close in (("confidence", 1e-6), ("optical", 1), ("sar", 1)):
        blocks, small = levels(layer)
        np.testing.assert_allclose(small, blocks.mean(axis=0), atol=close)


def test_another_classifier_rewrites_the_maps(run: Run) -> None:
    """Also one with the same matching of clusters to classes."""
    task = ClusteringTask.of_run(run, load_data(run))
    which, mapping = task.scenes.indices("test"), fitted_matching(run, "umsf")
    ours = clustered_classifier(load_clustered(run, task), task)

    def prediction() -> np.ndarray:
        with rasterio.open(min(run.path("maps").glob("*.prediction.tif"))) as source:
            return source.read(1)

    first = prediction()
    assert not write_maps(run, task, ours, mapping, which)
    assert write_maps(run, task, random_classifier(task), mapping, which)
    assert not write_maps(run, task, random_classifier(task), mapping, which)
    assert (prediction() != first).any()
    assert write_maps(run, task, ours, mapping, which)
    np.testing.assert_array_equal(prediction(), first)


def test_codes_of_further_clusters_fit_a_byte(whu: SceneSet) -> None:
    """A class may have the code 255; the next free one would be 256."""
    classes = [replace(land, code=249 + land.id) for land in whu.layout.classes]
    high = replace(whu, layout=replace(whu.layout, classes=tuple(classes)))
    kept = legend_of(high, 7, np.arange(7))
    assert [c.code for c in kept.classes] == [249, 250, 251, 252, 253, 254, 255]
    found = legend_of(high, 9, np.array([0, 1, -1, 2, 3, 4, 5, 6, -1]))
    assert [c.code for c in found.classes] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.of_cluster.tolist() == [0, 1, 7, 2, 3, 4, 5, 6, 8]
    assert len(legend_of(high, 247, np.full(247, -1)).classes) == 254
    with pytest.raises(ConfigError, match=r"7 classes and 248 clusters .* 254; lower cluster\.num"):
        legend_of(high, 248, np.full(248, -1))


def test_unnamed_clusters_have_the_same_colours_in_all_scenes_and_layers(
    run: Run, tmp_path: Path
) -> None:
    """Homes, roofs, water and wood are clusters 0 to 3; each scene has three of them."""
    scenes = prepare(*write_striped(tmp_path / "data"), tmp_path / "prepared")
    task = ClusteringTask.of_run(run, scenes)
    classifier, which = striped_classifier(task), scenes.indices("test")
    assert write_maps(run, task, classifier, None, which)
    legend = load_legend(run)
    numbers = [f"cluster {i}" for i in (2, 3, 4)]
    names = ["cluster 0, water-like", "cluster 1, vegetation-like", *numbers]
    assert [row.name for row in legend.classes] == names
    assert legend.of_cluster.tolist() == [2, 3, 0, 1, 4]  # homes are darker in SAR than roofs
    assert legend.said.startswith("blue (1 of 5 clusters): water-like")
    for name, right in {"coast": 1, "park": 2}.items():
        path = run.path("maps", f"{name}.prediction.tif")
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        with rasterio.open(path) as source:
            found, colors = source.read(1), source.colormap(1)
        assert found[24, [24, 72, 120]].tolist() == [3, 4, right] and found[0, 0] == 0
        assert [colors[row.code][:3] for row in legend.classes] == [c.rgb for c in legend.classes]
        assert class_table(path) == list(legend.classes)  # what the browser draws
    kept = json.loads(run.path("maps/legend.json").read_text())["clusters"]
    assert [row["kind"] for row in kept] == ["", "", "water-like", "vegetation-like", ""]
    assert kept[2]["green"] == 84 and kept[4]["green"] is None  # the fifth does not occur
    assert not write_maps(run, task, classifier, None, which)


def test_a_legend_of_classes_says_nothing_of_blue_and_green(run: Run) -> None:
    legend = load_legend(run)
    assert legend.said == "" and len(legend.of_cluster) == 7
    task = ClusteringTask.of_run(run, load_data(run))
    mapped = legend_of(task.scenes, 7, fitted_matching(run, "umsf"))
    assert legend.classes[:7] == tuple(replace(c, folder="") for c in mapped.classes[:7])
    assert legend.of_cluster.tolist() == mapped.of_cluster.tolist()
