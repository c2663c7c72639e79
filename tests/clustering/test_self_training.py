"""Self-training: lessons lie on the right ground, losses are what they say, noise is unlearned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umsf_lib.clustering.inference import network_posteriors, scene_map
from umsf_lib.clustering.losses import clustering_loss
from umsf_lib.clustering.self_training import (
    PseudoLabelSampler,
    keep_texture,
    self_train,
    self_training_loss,
    smooth,
)
from umsf_lib.clustering.smoothing import guide_of, smooth_tokens
from umsf_lib.clustering.tokens import token_validity
from umsf_lib.config import ViewConfig, load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.windows import PixelStore, training_tiles
from umsf_lib.models.umsf_net import UmsfNet
from umsf_lib.pretraining.augmentations import make_view
from umsf_lib.pretraining.momentum import key_network
from umsf_lib.pretraining.stage import build_network

TINY = load_config("tiny")
TINY = replace(TINY, model=replace(TINY.model, sensors="optical"))
NO_JITTER = ViewConfig(window_px=32, overlap_px=0, gain=0, offset=0, blur=0, speckle_looks=0)


class Painted(PixelStore):
    """The places of a real store, with optical bands painted by a function of scene and place."""

    def __init__(self, store: PixelStore, paint: Any) -> None:
        self.__dict__ |= store.__dict__ | {"roles": ("optical",), "paint": paint}
        self.__dict__ |= {"whole": [True] * len(store.records)}

    def valid(self, index: int) -> Tensor:
        return torch.ones(self.places[index, 1:].tolist(), dtype=torch.bool)

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: Any) -> dict[str, Tensor]:
        rows, cols = (torch.arange(n) for n in (size if isinstance(size, tuple) else (size, size)))
        places = zip(scene.tolist(), row.tolist(), col.tolist(), strict=True)
        images = [self.paint(s, r + rows[:, None], c + cols) for s, r, c in places]
        return {"optical": torch.stack(images)}


def coordinates(scene: int, row: Tensor, col: Tensor) -> Tensor:
    """Row, column of pixel centres, and two empty bands ``(4, h, w)``."""
    rows, cols = torch.broadcast_tensors(row + 0.5, col + 0.5)
    return torch.stack([rows, cols, torch.zeros_like(rows), torch.zeros_like(rows)]).float()


def test_lessons_show_what_the_teacher_says_of_that_ground(
    whu: SceneSet, whu_store: PixelStore
) -> None:
    config = replace(TINY, views=NO_JITTER, cluster=replace(TINY.cluster, batch=16))
    store, tiles = Painted(whu_store, coordinates), training_tiles(whu, 32, 0)
    # The "posteriors" are the mean coordinates of each token's 4 x 4 pixels.
    teacher = {}
    for s in whu.indices("train"):
        rows, cols = (torch.arange(n) for n in store.places[s, 1:].tolist())
        full = coordinates(s, rows[:, None], cols[None, :])
        teacher[s] = F.avg_pool2d(full[None], 4, ceil_mode=True)[0]
    sampler = PseudoLabelSampler(store, tiles, teacher, config)
    for view in sampler.draw(torch.Generator().manual_seed(0)):
        seen = F.avg_pool2d(view.images["optical"], 4)[:, :2]
        inner = (..., slice(1, -1), slice(1, -1))  # mirrored borders bend the outermost token
        assert torch.allclose(seen[inner], view.taught[:, :2][inner], atol=0.05)


def test_lessons_keep_every_value_of_the_window() -> None:
    """Flips and turns move pixels; a crop or a blur would mix them and change local spreads."""
    kept = keep_texture(replace(ViewConfig(), gain=0, offset=0, sar_gain=0))
    windows = {"optical": torch.rand(6, 2, 16, 16), "sar": torch.randn(6, 1, 16, 16)}
    view = make_view(
        windows | {"sar_log_std": torch.ones(6, 1, 1, 1)}, kept, torch.Generator().manual_seed(0)
    )
    for role, images in windows.items():
        before, after = (x.flatten(2).sort(dim=2).values for x in (images, view.images[role]))
        assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(windows["optical"], view.images["optical"], atol=0.1)


def test_shares_are_those_of_the_teacher(whu: SceneSet, whu_store: PixelStore) -> None:
    """Of the valid ground of all scenes, counted token by token."""
    tiles, counted, teacher = training_tiles(whu, 32, 0), np.zeros(4), {}
    for scene in whu.indices("train"):
        valid = token_validity(whu_store, scene, TINY.model.stride)
        taught = torch.arange(valid.numel()).view(valid.shape) % 3  # of cluster 3 only nodata
        teacher[scene] = F.one_hot(taught.where(valid, 3), 4).permute(2, 0, 1).float()
        counted += np.bincount(taught[valid].numpy(), minlength=4)
    sampler = PseudoLabelSampler(whu_store, tiles, teacher, TINY)
    expected = np.maximum(counted / counted.sum(), 1e-3)
    np.testing.assert_allclose(sampler.shares.numpy(), expected / expected.sum(), rtol=1e-5)
    assert counted[3] == 0 and sum(int(maps[3].sum()) for maps in teacher.values()) > 0


def network_of(whu: SceneSet) -> UmsfNet:
    torch.manual_seed(0)
    network = build_network(TINY, whu)
    network.set_num_clusters(3)
    return network


def test_the_loss_is_the_weighted_sum_of_its_parts(whu: SceneSet, whu_store: PixelStore) -> None:
    settings = replace(TINY.cluster, clustering=0.3, balance=0.2, consistency=0.7, temperature=1.0)
    config = replace(TINY, views=replace(NO_JITTER, scale_min=1.0), cluster=settings)
    network = network_of(whu)
    average = key_network(network)
    teacher = {
        s: torch.full((3, *token_validity(whu_store, s, 4).shape), 1 / 3)
        for s in whu.indices("train")
    }
    shares = torch.tensor([0.7, 0.2, 0.1])
    sampler = PseudoLabelSampler(
        Painted(whu_store, coordinates), training_tiles(whu, 32, 0), teacher, config
    )
    generator = torch.Generator().manual_seed(0)
    views = sampler.draw(generator)
    loss, parts = self_training_loss(network, average, views, shares, config, generator)
    assert set(parts) == {"teacher", "clustering", "consistency"}
    total = parts["teacher"] + 0.3 * parts["clustering"] + 0.7 * parts["consistency"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    both = [network(v.images) for v in views]
    uniform = torch.stack([-x.log_softmax(1).mean(1).mean() for x in both]).mean()
    assert parts["teacher"].item() == pytest.approx(uniform.item(), rel=1e-5)
    wanted = clustering_loss(torch.cat(both).softmax(1), 0.2, shares)
    assert parts["clustering"].item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in average.parameters())
    for name in ("clustering", "consistency"):
        silent = replace(config, cluster=replace(settings, **{name: 0.0}))
        _, fewer = self_training_loss(network, average, views, shares, silent, generator)
        assert set(fewer) == set(parts) - {name}


def test_a_teacher_is_smoothed_along_its_scene(whu: SceneSet, whu_store: PixelStore) -> None:
    stride, record = TINY.model.stride, whu.records[3]
    shape = [4, *(math.ceil(side / stride) for side in (record.height, record.width))]
    maps = {3: torch.rand(shape, generator=torch.Generator().manual_seed(0)).softmax(0)}
    config = replace(TINY, cluster=replace(TINY.cluster, smoothing_px=8.0))
    expected = smooth_tokens(maps[3], guide_of(whu_store, 3), stride, 8.0)
    torch.testing.assert_close(smooth(maps, whu_store, config)[3], expected)
    assert expected.std() < maps[3].std()


def test_self_training_unlearns_the_noise_of_its_teacher(
    whu: SceneSet, whu_store: PixelStore
) -> None:
    """Stripes of three brightnesses; the teacher errs in 40 % of the tokens, the student less."""

    def stripe(row: Tensor, col: Tensor) -> Tensor:
        return ((row // 16 + col // 24) % 3).long()

    def paint(scene: int, row: Tensor, col: Tensor) -> Tensor:
        return (stripe(row, col).float() - 1)[None].expand(4, -1, -1).contiguous()

    settings = replace(TINY.cluster, batch=8, steps=60, rounds=2, lr=5e-3, smoothing_px=0.0)
    views = replace(NO_JITTER, scale_min=0.9)
    model = replace(TINY.model, sensors="optical", channels=32)
    config = replace(TINY, views=views, cluster=settings, model=model)
    store, rng = Painted(whu_store, paint), np.random.default_rng(0)
    teacher, truth = {}, {}
    for scene in whu.indices("train"):
        height, width = (math.ceil(side / 4) for side in store.places[scene, 1:].tolist())
        rows, cols = torch.arange(height) * 4 + 2, torch.arange(width) * 4 + 2
        truth[scene] = stripe(rows[:, None], cols[None, :])
        wrong = torch.from_numpy(rng.random((height, width)) < 0.4)
        said = (truth[scene] + wrong * torch.from_numpy(rng.integers(1, 3, wrong.shape))) % 3
        teacher[scene] = F.one_hot(said, 3).permute(2, 0, 1).float()
    torch.manual_seed(0)
    network = build_network(config, whu)
    network.set_num_clusters(3)
    average, rows = self_train(network, store, training_tiles(whu, 32, 0), teacher, config)
    assert [row["round"] for row in rows] == [1.0] * 6 + [2.0] * 6
    assert [row["step"] for row in rows] == list(range(10, 121, 10))
    own = network_posteriors(average, store, config.map)
    for scene in teacher:
        maps = own(scene)
        height, width = truth[scene].shape
        right = (maps.argmax(0)[:height, :width] == truth[scene]).float().mean()
        taught = (teacher[scene].argmax(0) == truth[scene]).float().mean()
        assert taught < 0.7 < 0.85 < right


def test_posteriors_of_a_network_are_its_softmax(whu: SceneSet, whu_store: PixelStore) -> None:
    network, store = network_of(whu).eval(), Painted(whu_store, coordinates)

    def slow(windows: dict[str, Tensor]) -> Tensor:
        return F.normalize(network(windows).exp(), p=1, dim=1)

    found = network_posteriors(network, store, TINY.map)(0)
    torch.testing.assert_close(found, scene_map(slow, store, 0, 4, TINY.map))
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]))
