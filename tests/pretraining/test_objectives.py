"""Neighbours as positives, and the objectives beside momentum contrast, against slow loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import umsf_lib.pretraining.stage
from umsf_lib.config import Config, ConfigError, ViewConfig, load_config
from umsf_lib.data.scene_set import SceneSet, training_statistics
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.augmentations import drop_sensor, sample_tokens
from umsf_lib.pretraining.batches import key_places, places
from umsf_lib.pretraining.losses import barlow_twins, decur_cross
from umsf_lib.pretraining.moco import embeddings, unit
from umsf_lib.pretraining.objectives import OBJECTIVES
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
    store = PixelStore(scenes, training_statistics(scenes), torch.device("cpu"))
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
    for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b)):
        inside = (
            batch.visible
            & (batch.points_a.abs() < 0.9).all(2)
            & (batch.points_b.abs() < 0.9).all(2)
        )
        looked = sample_tokens(view.images["optical"], points)[inside]
        assert torch.allclose(looked, batch.ground[inside], atol=1e-2)


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
    for slot, (row, col) in enumerate((anchor + 15, other - 15, (anchor + other) / 2 + 300)):
        fused.scene[slot], fused.row[slot], fused.col[slot] = batch.scene[0], row, col
    mask = moco._masks(batch, 16.0)[1]  # of windows
    assert mask[0, :3].tolist() == [False, False, True]
    _, extra = moco(batch, 16.0)
    moco.enqueue(batch, extra["enqueue"])
    newest = fused.pointer.item() - 1
    assert [fused.row[newest], fused.col[newest]] == batch.second_centre[-1].tolist()


def test_the_loss_of_moco_v3_equals_a_slow_loop(project: Path) -> None:
    learner, source, config = learner_of("pretrain.objective=mocov3 pretrain.tau=0.3")
    batch = source.draw(5, torch.Generator().manual_seed(1))
    loss, extra = learner(batch, 40.0)
    views = ((batch.first, batch.points_a), (batch.second, batch.points_b))
    with torch.no_grad():
        query = [
            unit(embeddings(learner.query, *v, batch.visible, learner.predictors)) for v in views
        ]
        key = [unit(embeddings(learner.key, *v, batch.visible)) for v in views]
    where, pairs, skipped = (places(batch), key_places(batch)), learner.contrasts, 0
    weight = {"intra": 0.5, "cross": 0.5, "fused": 1.0}
    total = 0.0
    for name, (mine, other) in pairs.items():
        part = 0.0
        for side, kind in ((0, 0), (0, 1), (1, 0), (1, 1)):  # view that asks; tokens, windows
            scene, rows, cols = where[1 - side][kind]
            q, k = query[side][mine][kind], key[1 - side][other][kind]
            for i in range(len(q)):
                below = 0.0
                for j in range(len(k)):
                    gap = max(abs(rows[i] - rows[j]), abs(cols[i] - cols[j]))
                    if i == j or gap >= 40 or scene[i] != scene[j]:
                        below += math.exp(float(q[i] @ k[j]) / 0.3)
                    else:
                        skipped += 1
                part -= (
                    0.5 * 2 * 0.3 * math.log(math.exp(float(q[i] @ k[i]) / 0.3) / below) / len(q)
                )
        assert extra["parts"][name].item() == pytest.approx(part, rel=1e-4)
        total += weight[name.split("_")[0]] * part
    assert loss.item() == pytest.approx(total, rel=1e-4) and skipped
    assert not [name for name in learner.state_dict() if "queue" in name]


def test_the_loss_of_decur_joins_common_and_unique_dimensions(project: Path) -> None:
    learner, source, _ = learner_of("pretrain.objective=decur pretrain.positives=[2,3,0]")
    batch = source.draw(6, torch.Generator().manual_seed(1))
    loss, extra = learner(batch, 16.0)
    with torch.no_grad():
        z = [
            embeddings(learner.query, view, points, batch.visible)
            for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b))
        ]
    total = 0.0
    for kind in (0, 1):  # tokens, windows
        both = {
            s: [torch.cat([v[f"cross_{s}"][kind], v[s][kind]], 1) for v in z]
            for s in ("optical", "sar")
        }
        assert both["sar"][0].shape[1] == 32
        intra = (barlow_twins(*both["optical"]) + barlow_twins(*both["sar"])) / 2
        across = decur_cross(both["optical"][0], both["sar"][0], common=16)
        fused = barlow_twins(z[0]["fused"][kind], z[1]["fused"][kind])
        total += 0.5 * float(2 * intra + 3 * across + fused)
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert set(extra["parts"]) == {"intra_optical", "intra_sar", "cross_optical", "fused"}


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("sensors", ["both", "sar"])
def test_every_weight_learns_and_keys_do_not(project: Path, objective: str, sensors: str) -> None:
    learner, source, _ = learner_of(f"pretrain.objective={objective} model.sensors={sensors}")
    batch = source.draw(4, torch.Generator().manual_seed(0))
    loss, extra = learner.train()(batch, 16.0)
    loss.backward()
    learning = [p for p in learner.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)
    assert not any(k.requires_grad for pair in extra["key"].values() for k in pair)
    for name, parameter in learner.named_parameters():
        assert parameter.requires_grad != name.startswith("key.")
    learner.enqueue(batch, extra["enqueue"])
    learner.update_keys()


def test_decur_with_one_common_token_uses_the_windows(project: Path) -> None:
    learner, source, _ = learner_of("pretrain.objective=decur model.sensors=sar")
    batch = source.draw(4, torch.Generator().manual_seed(0))
    one = torch.zeros_like(batch.visible)
    one[0, 0] = True
    loss, _ = learner(replace(batch, visible=one), 16.0)
    z = [
        embeddings(learner.query, view, points, one)["fused"][1]
        for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b))
    ]
    assert loss.item() == pytest.approx(0.5 * barlow_twins(*z).item(), rel=1e-5)


def test_objectives_within_a_batch_run_in_one_process(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umsf_lib.pretraining.stage, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"pretrain.objective is decur.*there are 2; use one"):
        learner_of("pretrain.objective=decur model.norm=group")


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
