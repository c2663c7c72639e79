"""Nodata takes no part in training, and no negative shows the ground of its query."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umsf_lib.clustering.self_training import PseudoLabelSampler, self_training_loss
from umsf_lib.config import Config, ViewConfig, load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.windows import PixelStore, open_store, training_tiles
from umsf_lib.models.stage import clean_images
from umsf_lib.pretraining.augmentations import View, sample_tokens
from umsf_lib.pretraining.batches import Batch
from umsf_lib.pretraining.moco import MomentumContrast
from umsf_lib.pretraining.momentum import key_network
from umsf_lib.pretraining.stage import WindowSource, build_network
from umsf_lib.run import Run

from .test_neighbours import EAST, METRES, UTM, WEST, make_set

SIDE, BORDER = 160, 61
WINDOW, STRIDE = 32, 4
STILL = ViewConfig(
    window_px=WINDOW, overlap_px=8, scale_min=0.3, gain=0, offset=0, blur=0, speckle_looks=0,
    sar_gain=0,
)  # fmt: skip


class Coordinates(PixelStore):
    """Windows of scenes with nodata, whose optical bands are the row and the column."""

    def __init__(self, store: PixelStore) -> None:
        self.__dict__ |= store.__dict__ | {"roles": ("optical",)}

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: Any) -> dict[str, Tensor]:
        line = torch.arange(size) + 0.5
        rows = (row[:, None, None] + line[None, :, None]).expand(-1, size, size)
        cols = (col[:, None, None] + line[None, None, :]).expand(-1, size, size)
        return {"optical": torch.stack([rows, cols, 0 * rows, 0 * rows], 1)}


@pytest.fixture(scope="module")
def bordered(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Two scenes with a border of nodata along two sides, each along others."""
    images = {}
    for name, cut in ((WEST, np.s_[:, :BORDER]), (EAST, np.s_[:, :, -BORDER:])):
        images[name] = np.random.default_rng(1).integers(90, 110, (4, SIDE, SIDE))
        images[name][cut] = 0
    grids = {name: (UTM, METRES) for name in (WEST, EAST)}
    return make_set(tmp_path_factory.mktemp("bordered"), SIDE, grids, **images)


@pytest.fixture(scope="module")
def store(bordered: SceneSet) -> PixelStore:
    return PixelStore(bordered, bordered.statistics, torch.device("cpu"))


def settings(**pretraining: Any) -> Config:
    config = load_config("tiny", overrides="model.sensors=optical")
    return replace(config, views=STILL, pretrain=replace(config.pretrain, **pretraining))


def is_valid(scenes: SceneSet, scene: int, places: Tensor) -> np.ndarray:
    """Whether ``(n, 2)`` row, col of a scene lie on valid ground, with a pixel of tolerance."""
    row, col = places.numpy().T
    grown = np.pad(np.array(scenes.plane("valid", scene)), 1, mode="edge")
    near = [grown[row.astype(int) + i, col.astype(int) + j] for i in range(3) for j in range(3)]
    return np.any(near, axis=0)


def test_no_positive_lies_on_nodata(bordered: SceneSet, store: PixelStore) -> None:
    """The bands of each window are its coordinates, so the views themselves say where they look."""
    source = WindowSource(bordered, Coordinates(store), settings(tokens=24))
    batch = source.draw(300, torch.Generator().manual_seed(0))
    free = source.draw(300, torch.Generator().manual_seed(0))
    for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b)):
        places = sample_tokens(view.images["optical"][:, :2], points)
        for i, scene in enumerate(batch.scene.tolist()):
            assert is_valid(bordered, scene, places[i][batch.visible[i]]).all()
    inside = (free.points_b.abs() < 1).all(2)
    assert 0.03 < 1 - float(batch.visible[inside].float().mean()) < 0.6  # what was left out
    assert not batch.visible[~inside].any()


def test_the_mean_of_a_window_is_that_of_its_valid_tokens(
    bordered: SceneSet, store: PixelStore
) -> None:
    source = WindowSource(bordered, Coordinates(store), settings())
    batch = source.draw(100, torch.Generator().manual_seed(1))
    maps = torch.randn(100, 5, WINDOW // STRIDE, WINDOW // STRIDE)
    cut = 0
    for view in (batch.first, batch.second):
        assert view.valid is not None
        centres = F.avg_pool2d(view.images["optical"][:, :2], STRIDE)  # (B, 2, h, w) row, col
        pooled = view.pool(maps)
        for i, scene in enumerate(batch.scene.tolist()):
            row, col = centres[i].round().long().clamp(0, SIDE - 1)  # within half a pixel
            plane = torch.from_numpy(np.array(bordered.plane("valid", scene)))
            agree = (plane[row, col] == view.valid[i]).float().mean()
            assert agree > 0.85  # tokens on the very edge may differ by half a pixel
            if view.valid[i].any():
                assert torch.allclose(pooled[i], maps[i][:, view.valid[i]].mean(1), atol=1e-5)
            cut += int(not view.valid[i].all())
    assert cut > 15
    both = batch.first.valid.flatten(1).any(1) & batch.second.valid.flatten(1).any(1)
    assert torch.equal(batch.shown, both)


def test_a_view_of_nodata_alone_has_no_pooled_row(bordered: SceneSet) -> None:
    config = settings()
    store = open_store(bordered, config, torch.device("cpu"))
    source = WindowSource(bordered, store, replace(config, views=replace(STILL, scale_min=0.1)))
    generator = torch.Generator().manual_seed(0)
    learner = MomentumContrast(build_network(config, bordered), config.pretrain, generator)
    batch = source.draw(60, generator)
    assert 0 < int(batch.shown.sum()) < 60
    loss, extra = learner(batch)
    loss.backward()
    assert loss.isfinite() and len(extra["enqueue"]["fused"][1]) == int(batch.shown.sum())
    learner.enqueue(batch, extra["enqueue"])
    count = int(batch.visible.sum() + batch.shown.sum())
    assert int((learner.queues["fused"].scene >= 0).sum()) == min(count, config.pretrain.queue_size)


def test_self_training_learns_nothing_from_nodata(bordered: SceneSet, store: PixelStore) -> None:
    """Another teacher on nodata leaves prior and loss as they are; on valid ground it does not."""
    config = settings()
    config = replace(config, views=replace(STILL, scale_min=1.0))
    tiles = training_tiles(bordered, WINDOW, 8)
    network = build_network(config, bordered)
    network.set_num_clusters(3)
    teacher = {s: torch.rand(3, SIDE // 4, SIDE // 4).softmax(0) for s in (0, 1)}

    def losses(change: Any) -> list[float]:
        taught = {s: change(s, maps.clone()) for s, maps in teacher.items()}
        source = PseudoLabelSampler(Coordinates(store), tiles, taught, config)
        generator = torch.Generator().manual_seed(3)
        batch = source.draw(generator)
        loss, parts = self_training_loss(
            network.eval(), key_network(network), batch, source.shares, config, generator
        )
        return [loss.item(), *(float(p.detach()) for p in parts.values())]

    def on(valid: bool) -> Any:
        def change(scene: int, maps: Tensor) -> Tensor:
            plane = torch.from_numpy(np.array(bordered.plane("valid", scene))).float()
            share = F.avg_pool2d(plane[None], 4)[0]
            maps[:, share >= 0.5 if valid else share < 0.5] = torch.tensor([[1.0], [0], [0]])
            return maps

        return change

    usual, nodata, ground = losses(lambda _, maps: maps), losses(on(False)), losses(on(True))
    assert nodata == pytest.approx(usual, rel=1e-5)
    assert ground[0] != pytest.approx(usual[0], rel=1e-2)


def test_the_despeckler_sees_no_nodata(bordered: SceneSet, project: Path, monkeypatch) -> None:
    run = Run.open(load_config("tiny", overrides="views.window_px=32"))
    images = clean_images(run, bordered, count=16)
    assert len(images) == 16
    zero = (images[8:] == 0).flatten(1).double().mean(1)  # nodata is 0, a pixel hardly ever
    assert (zero < 0.02).all()


def test_negatives_share_no_ground(bordered: SceneSet) -> None:
    """The oracle paints each window on its scene and looks whether the paint overlaps."""
    config = settings(positives=(1.0, 0.0, 1.0), neighbour_m=300.0, queue_size=200, tokens=2)
    source = WindowSource(bordered, open_store(bordered, config, torch.device("cpu")), config)
    generator = torch.Generator().manual_seed(0)
    learner = MomentumContrast(build_network(config, bordered), config.pretrain, generator)

    def painted(batch: Batch, centre: Tensor, i: int) -> np.ndarray:
        canvas = np.zeros((2, SIDE, SIDE), bool)
        row, col = (centre[i] - WINDOW / 2).long().tolist()
        canvas[int(batch.scene[i]), row : row + WINDOW, col : col + WINDOW] = True
        return canvas

    entries: list[np.ndarray] = []
    for _ in range(4):
        batch = source.draw(6, generator)
        _, extra = learner(batch)
        learner.enqueue(batch, extra["enqueue"])
        rows = [*batch.visible.nonzero()[:, 0].tolist(), *batch.shown.nonzero()[:, 0].tolist()]
        entries += [painted(batch, batch.second_centre, i) for i in rows]
    batch = source.draw(6, generator)
    tokens, pooled = learner._masks(batch)
    owners = batch.visible.nonzero()[:, 0].tolist(), batch.shown.nonzero()[:, 0].tolist()
    shared = 0
    for mask, windows in zip((tokens, pooled), owners, strict=True):
        for keep, i in zip(mask, windows, strict=True):
            ground = painted(batch, batch.centre, i) | painted(batch, batch.second_centre, i)
            overlaps = [bool((ground & entry).any()) for entry in entries]
            assert keep[: len(entries)].tolist() == [not overlap for overlap in overlaps]
            assert keep[len(entries) :].all()
            shared += sum(overlaps)
    assert shared > 20


def test_turned_crops_stay_inside_their_window(bordered: SceneSet, store: PixelStore) -> None:
    """So the window covers whatever a view shows of the ground."""
    source = WindowSource(bordered, Coordinates(store), settings())
    batch = source.draw(200, torch.Generator().manual_seed(2))
    views: tuple[View, View] = (batch.first, batch.second)
    for view, centre in zip(views, (batch.centre, batch.second_centre), strict=True):
        away = (view.images["optical"][:, :2] - centre[:, :, None, None]).abs()
        assert away.max() <= WINDOW / 2
