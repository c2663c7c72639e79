"""Fusion of large maps in windows, for modules whose tokens all depend on one another.

Means, maxima and scans of a whole scene would be others than those of the windows of a training. So
maps of more than 32 x 32 tokens are cut into windows of 16 x 16, which are not blended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

WINDOW = 16  # tokens; larger maps are fused within windows of this side
MAX_TOKENS = 1024
Fused = tuple[Tensor, dict[str, Any]]  # fused map, further maps by name


def within_windows(fuse: Callable[[Tensor, Tensor], Fused], optical: Tensor, sar: Tensor) -> Fused:
    """Call ``fuse`` on maps ``(B, C, H, W)``; those of more than 1024 tokens window by window.

    Windows at the far edges are filled up with the edge, which is cut off again.
    """
    batch, _, height, width = optical.shape
    if height * width <= MAX_TOKENS:
        return fuse(optical, sar)
    over = [-side % WINDOW for side in (height, width)]
    parts = [
        _to_windows(F.pad(m, (0, over[1], 0, over[0]), mode="replicate")) for m in (optical, sar)
    ]
    fused, aux = fuse(*parts)
    shape = (batch, height + over[0], width + over[1])
    maps = {name: _from_windows(m, shape) for name, m in ({"fused": fused} | aux).items()}
    whole = {name: m[:, :, :height, :width] for name, m in maps.items()}
    return whole.pop("fused"), whole


def _to_windows(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B * windows, C, 16, 16)``."""
    batch, channels, height, width = maps.shape
    # (B, C, H, W) -> (B, C, rows, 16, cols, 16) -> (B, rows, cols, C, 16, 16)
    split = maps.view(batch, channels, height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, WINDOW, WINDOW)


def _from_windows(windows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Inverse of ``_to_windows``; ``shape`` is (B, H, W)."""
    batch, height, width = shape
    # (B * windows, C, 16, 16) -> (B, rows, cols, C, 16, 16) -> (B, C, rows, 16, cols, 16)
    split = windows.view(batch, height // WINDOW, width // WINDOW, -1, WINDOW, WINDOW)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)
