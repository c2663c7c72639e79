"""Inference on whole scenes, in overlapping tiles that are blended so that no seam shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import MapConfig
from ..data.windows import PixelStore, tile_scene
from ..models.umsf_net import UmsfNet
from .smoothing import guide_of, smooth_pixels

TILES_AT_ONCE = 4
# Batch of windows (sensor -> bands) -> the network's output (B, C, h, w) at its stride.
MapFunction = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Classifier:
    """Any method as a classifier of whole scenes: a scene's index in, posteriors out.

    Attributes:
        name: name of the method in records and tables.
        num_clusters: K'.
        stride: px per token of the posteriors.
        posteriors: scene index -> ``(K', h, w)``, sums to 1 over K'.
        predicts_classes: whether it has learnt from labels which class each output is.
    """

    name: str
    num_clusters: int
    stride: int
    posteriors: Callable[[int], Tensor]
    predicts_classes: bool = False

    def pixels(self, store: PixelStore, scene: int, smoothing_px: float) -> Tensor:
        """Compute smoothed posteriors ``(K', H, W)`` of a scene, smoothed alike for all methods."""
        guide = guide_of(store, scene)
        return smooth_pixels(self.posteriors(scene), guide, self.stride, smoothing_px)


def network_posteriors(
    network: UmsfNet, store: PixelStore, config: MapConfig
) -> Callable[[int], Tensor]:
    """Make a function: scene -> posteriors ``(K, h, w)`` of a network's clustering head."""

    def posteriors(windows: dict[str, Tensor]) -> Tensor:
        return network(windows).softmax(dim=1)  # (B, K, h, w)

    return partial(scene_map, posteriors, store, stride=network.stride, config=config)


@torch.no_grad()
def scene_map(
    function: MapFunction, store: PixelStore, scene: int, stride: int, config: MapConfig
) -> Tensor:
    """Run ``function`` over a whole scene tile by tile and blend the overlaps.

    Args:
        function: batch of windows -> maps ``(B, C, h, w)`` at ``stride``.
        store: source of the windows.
        scene: index of the scene.
        stride: px per token; tiles start at its multiples, so that tokens coincide.
        config: tile side and overlap, px.

    Returns:
        ``(C, ceil(H / stride), ceil(W / stride))`` float32 on the device.
    """
    record = store.records[scene]
    height, width = (math.ceil(side / stride) for side in (record.height, record.width))  # tokens
    side = min(max(1, config.tile_px // stride), height, width)
    overlap = min(max(1, config.overlap_px // stride), side - 1)
    corners = torch.from_numpy(tile_scene(height, width, side, overlap))  # (T, 2)
    # A raised cosine, small but not 0 at the border of a tile.
    line = torch.hann_window(side + 2, periodic=False, device=store.device)[1:-1]
    weight = line[:, None] * line  # (side, 1) x (side,) -> (side, side)
    total, weights = None, torch.zeros(height, width, device=store.device)
    for some in corners.split(TILES_AT_ONCE):
        index = torch.full((len(some),), scene)
        row, col = some.T * stride  # px
        maps = function(store.windows(index, row, col, side * stride)).float()
        if total is None:
            total = torch.zeros(maps.shape[1], height, width, device=store.device)
        for one, (top, left) in zip(maps, some.tolist(), strict=True):
            here = (..., slice(top, top + side), slice(left, left + side))
            total[here] += weight * one
            weights[here] += weight
    assert total is not None
    return total / weights
