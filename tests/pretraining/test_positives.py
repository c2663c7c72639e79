"""Positives of pretraining: matched views, neighbours, sensors left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from umsf_lib.config import Config, ViewConfig, load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.augmentations import drop_bands, drop_sensor, sample_tokens
from umsf_lib.pretraining.stage import WindowSource, build_learner
from umsf_lib.run import Run, digest

from .test_neighbours import UTM, WEST, Affine, make_set

PLAIN = ViewConfig(window_px=32, overlap_px=0, gain=0, offset=0, blur=0, speckle_looks=0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One root for all tests here, so that the scenes are made once."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMSF_ROOT", str(root))
        yield root


def learner_of(overrides: str) -> tuple[Any, WindowSource, Config]:
    run = Run.open(load_config("tiny", overrides=overrides), digest(overrides))
    scenes = load_data(run)
    train_despeckler(run, scenes)
    return (*build_learner(run, scenes, torch.Generator().manual_seed(0)), run.config)


class EastNorth(PixelStore):
    """Windows whose two optical bands are row and column on the ground of both scenes."""

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: Any) -> dict[str, Tensor]:
        line = torch.arange(size) + 0.5
        rows = (row[:, None, None] + line[None, :, None]).expand(-1, size, size)
        cols = (80 * scene + col)[:, None, None] + line[None, None, :]
        return {"optical": torch.stack([rows, cols.expand(-1, size, size)], 1)}


@pytest.fixture(scope="module")
def pair_of_scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Two training scenes of 80 px of 10 m, side by side."""
    names = (WEST, "NH49E001014")
    grids = {n: (UTM, Affine(10, 0, 5e5 + 800 * k, 0, -10, 34e5)) for k, n in enumerate(names)}
    return make_set(tmp_path_factory.mktemp("pair"), 80, grids)


def source_of(scenes: SceneSet, **pretraining: Any) -> WindowSource:
    config = load_config("tiny", overrides="model.sensors=optical")
    pretraining = {"positives": (0.0, 0.0, 1.0), "neighbour_m": 200.0} | pretraining
    config = replace(config, views=PLAIN, pretrain=replace(config.pretrain, **pretraining))
    store = PixelStore(scenes, scenes.statistics, torch.device("cpu"))
    store.roles = ("optical",)
    store.__class__ = EastNorth
    return WindowSource(scenes, store, config)


def test_views_of_neighbours_share_the_ground_they_really_share(pair_of_scenes: SceneSet) -> None:
    """Windows lie in one scene each, so those on both sides of an edge share none."""
    source = source_of(pair_of_scenes, tokens=32, neighbour_m=500.0)
    batch = source.draw(200, torch.Generator().manual_seed(1))
    away = batch.second_centre - batch.centre
    assert (away.norm(dim=1) <= 50.8).all() and (away != 0).any(dim=1).double().mean() > 0.9
    assert (batch.scene == 0).all()  # one plane
    crossing = (batch.centre[:, 1] < 80) & (batch.second_centre[:, 1] > 80)
    assert crossing.any() and not batch.visible[crossing].any() and int(batch.visible.sum()) > 20
    inside = (
        batch.visible & (batch.points_a.abs() < 0.9).all(2) & (batch.points_b.abs() < 0.9).all(2)
    )
    places = [
        sample_tokens(view.images["optical"], points)[inside]  # (M, 2) row, col
        for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b))
    ]
    assert torch.allclose(*places, atol=1e-2) and places[0].std(0).min() > 5


def test_how_often_the_second_view_shows_a_neighbour(pair_of_scenes: SceneSet) -> None:
    for positives, share in (((1.0, 1.0, 1.0), 0.5), ((3.0, 1.0, 1.0), 0.25), ((0.0, 1.0, 1.0), 1)):
        source = source_of(pair_of_scenes, positives=positives)
        batch = source.draw(400, torch.Generator().manual_seed(2))
        moved = (batch.second_centre != batch.centre).any(dim=1).double().mean()
        assert moved == pytest.approx(share, abs=0.06)
    at_home = source_of(pair_of_scenes, neighbour_m=0.0).draw(8, torch.Generator())
    assert torch.equal(at_home.centre, at_home.second_centre)
    usual = source_of(pair_of_scenes, positives=(1.0, 1.0, 0.0))
    assert usual.neighbours is None and usual.ground.plane.tolist() == [0, 1]


def test_no_negative_shows_the_anchors_ground_or_the_neighbours(project: Path) -> None:
    moco, source, _ = learner_of("pretrain.positives=[0,1,1] pretrain.neighbour_m=200")
    batch = source.draw(3, torch.Generator().manual_seed(5))
    anchor, other = batch.centre[0], batch.second_centre[0]
    assert (anchor - other).abs().max() > 16
    fused = moco.queues["fused"]
    for slot, (row, col) in enumerate((anchor + 31, other - 31, (anchor + other) / 2 + 300)):
        fused.scene[slot], fused.row[slot], fused.col[slot] = batch.scene[0], row, col
    mask = moco._masks(batch)[1]  # of windows
    assert mask[0, :3].tolist() == [False, False, True]
    _, extra = moco(batch)
    moco.enqueue(batch, extra["enqueue"])
    newest = fused.pointer.item() - 1
    assert [fused.row[newest], fused.col[newest]] == batch.second_centre[-1].tolist()


@pytest.mark.parametrize("sensors", ["both", "sar"])
def test_every_weight_learns_and_keys_do_not(project: Path, sensors: str) -> None:
    learner, source, _ = learner_of(f"model.sensors={sensors}")
    batch = source.draw(4, torch.Generator().manual_seed(0))
    loss, extra = learner.train()(batch)
    loss.backward()
    learning = [p for p in learner.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)
    assert not any(k.requires_grad for pair in extra["key"].values() for k in pair)
    for name, parameter in learner.named_parameters():
        assert parameter.requires_grad != name.startswith("key.")
    learner.enqueue(batch, extra["enqueue"])
    learner.update_keys()


def test_bands_are_dropped_one_by_one() -> None:
    shown = drop_bands(torch.ones(5000, 3, 2, 2), 0.2, torch.Generator().manual_seed(0))
    lost = shown[:, :, 0, 0] == 0
    assert torch.equal(shown == 0, lost[:, :, None, None].expand(-1, -1, 2, 2))
    torch.testing.assert_close(lost.float().mean(0), torch.full((3,), 0.2), atol=0.02, rtol=0)
    both = (lost[:, 0] & lost[:, 1]).float().mean().item()
    assert abs(both - 0.04) < 0.01  # independent


def test_a_dropped_sensor_is_blank_and_each_is_as_often() -> None:
    images = {"optical": torch.ones(4000, 2, 1, 1), "sar": torch.full((4000, 1, 1, 1), 3.0)}
    shown = drop_sensor(images, 0.5, torch.Generator().manual_seed(0))
    optical, sar = shown["optical"][:, :, 0, 0], shown["sar"][:, 0, 0, 0]
    assert set(optical.unique().tolist()) == {0, 1} and set(sar.unique().tolist()) == {0, 3}
    assert (optical[:, 0] == optical[:, 1]).all()  # all bands of a sensor go together
    lost = {"optical": optical[:, 0] == 0, "sar": sar == 0}
    assert not (lost["optical"] & lost["sar"]).any()
    for where in lost.values():
        assert where.double().mean() == pytest.approx(0.25, abs=0.025)
    assert (images["optical"] == 1).all()  # the windows themselves stay whole for the other view


@pytest.mark.parametrize(("sensors", "fused"), [("both", 0), ("both", 1), ("optical", 0)])
def test_what_is_watched_is_trained(project: Path, sensors: str, fused: int) -> None:
    """The projector of the collapse monitor gets gradients; that of fused tokens may not."""
    learner, source, _ = learner_of(f"model.sensors={sensors} pretrain.fused={fused}")
    loss, extra = learner(source.draw(4, torch.Generator().manual_seed(0)))
    loss.backward()
    trained = {
        name
        for name, head in learner.query.projectors.items()
        if any(p.grad is not None and p.grad.any() for p in head.parameters())
    }
    assert learner.watched in trained
    assert ("fused" in trained) == (fused == 1 or sensors == "optical")
    assert extra["negatives"] is learner.queues[learner.watched].entries
