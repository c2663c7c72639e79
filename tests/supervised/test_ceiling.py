"""The supervised ceiling: labels are counted as a slow loop counts them, and only those allowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umsf_lib.clustering.inference import network_posteriors
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import IGNORE, load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.windows import PixelStore
from umsf_lib.pretraining.stage import build_network
from umsf_lib.supervised import ceiling as learning
from umsf_lib.supervised import has_ceiling

LABELS = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, IGNORE], (7, 10)))


def test_fractions_equal_a_slow_count() -> None:
    found = learning.class_fractions(LABELS, 4, 3)
    assert found.shape == (3, 2, 3)
    for c in range(3):
        for row in range(2):
            for col in range(3):
                pixels = LABELS[4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
                share = (pixels == c).sum().item() / pixels.numel()
                assert found[c, row, col].item() == pytest.approx(share)


def test_the_loss_is_a_mean_over_labelled_pixels() -> None:
    labels = LABELS[:4, :8]
    logits = torch.randn(1, 3, 1, 2, generator=torch.Generator().manual_seed(0))
    losses = []
    for row in range(4):
        for col in range(8):
            if (c := int(labels[row, col])) != IGNORE:
                values = logits[0, :, 0, col // 4].tolist()
                losses.append(math.log(sum(math.exp(v) for v in values)) - values[c])
    fractions = learning.class_fractions(labels, 4, 3)[None]
    assert learning.label_loss(logits, fractions).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert learning.label_loss(logits, 0 * fractions) == 0


class Halves(PixelStore):
    """The places of a real store; the left half of each scene is bright in the optical bands."""

    def __init__(self, store: PixelStore) -> None:
        self.__dict__ |= store.__dict__

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: Any) -> dict[str, Tensor]:
        found = super().windows(scene, row, col, size)
        width = torch.tensor([self.records[s].width for s in scene.tolist()])
        left = col[:, None] + torch.arange(size) < width[:, None] / 2  # (B, size)
        found["optical"] = torch.where(left[:, None, None], 1.0, -1.0).expand_as(found["optical"])
        return found


def test_it_learns_what_the_training_labels_say_and_reads_no_others(
    whu: SceneSet, whu_store: PixelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright is class 2 and dark class 5, which no clustering could know."""
    asked = []

    def labels(scenes: SceneSet, scene: int) -> np.ndarray:
        asked.append(scene)
        record = scenes.records[scene]
        known = np.where(np.arange(record.width) < record.width / 2, 2, 5)
        every = np.repeat(known[None], record.height, axis=0).astype(np.uint8)
        every[::3] = IGNORE
        return every

    monkeypatch.setattr(learning, "valid_labels", labels)
    config = load_config("tiny", overrides="pretrain.epochs=10 baseline.lr=0.01")
    task = ClusteringTask(whu, Halves(whu_store), config)
    torch.manual_seed(0)
    network = build_network(config, whu)
    network.set_num_clusters(task.num_clusters)
    trained, rows = learning.learn(task, None, network)
    assert sorted(asked) == sorted(whu.indices("train"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    scene = whu.indices("test")[0]
    found = network_posteriors(trained.eval(), task.store, config.map)(scene).argmax(0)
    half = found.shape[1] // 2
    assert (found[:, : half - 2] == 2).float().mean() > 0.9
    assert (found[:, half + 2 :] == 5).float().mean() > 0.9


def test_there_is_none_without_labels_or_where_training_scenes_are_scored(
    whu: SceneSet, terramesh: SceneSet, pairs: SceneSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_ceiling(whu) and not has_ceiling(pairs) and not has_ceiling(terramesh)
    monkeypatch.setattr(learning, "valid_labels", lambda *_: np.full((4, 4), IGNORE))
    assert not has_ceiling(whu)
