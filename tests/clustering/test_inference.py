"""Blended inference: the tiles must not show, whatever the sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umsf_lib.clustering.inference import Classifier, scene_map
from umsf_lib.clustering.smoothing import guide_of, smooth_pixels
from umsf_lib.config import MapConfig
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.windows import PixelStore, tile_starts

# Scenes are 36..56 x 44..64 px. (stride, tile, overlap): sizes that are no multiple of the stride,
# tiles larger than the scene or of one token, no overlap, an overlap off the grid or larger than a
# tile.
CASES = [
    (1, 16, 4),
    (4, 16, 8),
    (5, 20, 5),
    (8, 24, 8),
    (4, 18, 7),
    (8, 256, 64),
    (4, 16, 0),
    (4, 8, 64),
    (8, 8, 8),
]


def pooled(windows: dict[str, Tensor], stride: int) -> Tensor:
    """Each token from its own pixels only."""
    bands = torch.cat([windows["optical"], windows["sar"]], dim=1)
    return F.avg_pool2d(bands, stride).sin()


def extended(store: PixelStore, scene: int, stride: int) -> tuple[dict[str, Tensor], list[int]]:
    """A whole scene, its edges repeated up to the token grid, as NumPy pads."""
    batch, sizes, found = {}, [], store.scene(scene)
    for key, values in ((key, found[key]) for key in ("optical", "sar")):
        sizes = [math.ceil(n / stride) * stride for n in values.shape[2:]]
        more = [(0, size - n) for size, n in zip(sizes, values.shape[2:], strict=True)]
        padded = np.pad(values.numpy(), ((0, 0), (0, 0), *more), mode="edge")
        batch[key] = torch.from_numpy(padded)
    return batch, sizes


@pytest.mark.parametrize(("stride", "tile", "overlap"), CASES)
def test_a_pointwise_function_is_blended_to_itself(whu_store, stride, tile, overlap) -> None:
    config = MapConfig(tile_px=tile, overlap_px=overlap)
    for scene in range(len(whu_store.records)):
        found = scene_map(lambda w: pooled(w, stride), whu_store, scene, stride, config)
        batch, sizes = extended(whu_store, scene, stride)
        assert found.shape == (5, sizes[0] // stride, sizes[1] // stride)
        assert torch.allclose(found, pooled(batch, stride)[0], atol=1e-5)


def test_tiles_are_blended_by_their_weights(whu_store: PixelStore) -> None:
    """Against a slow loop, with a function that knows where in its tile a token lies."""
    stride, tile, overlap, scene = 4, 24, 8, 1
    side = tile // stride

    def place(windows: dict[str, Tensor]) -> Tensor:
        level = windows["optical"].mean(dim=(1, 2, 3))
        ramp = torch.arange(side * side, dtype=torch.float32).view(1, side, side)
        return (ramp + 100 * level[:, None, None])[:, None]

    config = MapConfig(tile_px=tile, overlap_px=overlap)
    found = scene_map(place, whu_store, scene, stride, config)[0].numpy()
    batch, (height, width) = extended(whu_store, scene, stride)
    line = [math.sin(math.pi * (k + 1) / (side + 1)) ** 2 for k in range(side)]
    total, weights = np.zeros((2, *found.shape))
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            level = float(batch["optical"][0, :, top : top + tile, left : left + tile].mean())
            for i in range(side):
                for j in range(side):
                    at, weight = (top // stride + i, left // stride + j), line[i] * line[j]
                    total[at] += weight * (i * side + j + 100 * level)
                    weights[at] += weight
    np.testing.assert_allclose(found, total / weights, atol=1e-3)


def test_a_network_in_training_keeps_no_graph(whu_store: PixelStore) -> None:
    layer = torch.nn.Conv2d(1, 2, 1)
    found = scene_map(lambda w: layer(w["sar"]), whu_store, 0, 1, MapConfig(16, 4))
    assert not found.requires_grad


# To pixels


def test_smoothing_takes_the_scenes_own_bands(whu: SceneSet, whu_store: PixelStore) -> None:
    record, stride = whu.records[3], 4
    shape = (3, math.ceil(record.height / stride), math.ceil(record.width / stride))
    posteriors = torch.randn(shape, generator=torch.Generator().manual_seed(0)).softmax(0)
    classifier = Classifier("any", 3, stride, lambda scene: posteriors if scene == 3 else None)
    for sigma_px in (0.0, 6.0):
        found = classifier.pixels(whu_store, 3, sigma_px)
        expected = smooth_pixels(posteriors, guide_of(whu_store, 3), stride, sigma_px)
        assert found.shape == (3, record.height, record.width)
        torch.testing.assert_close(found, expected)
