"""Two fusions without attention: concatenation with a 1 x 1 convolution, and a sum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConcatFusion(nn.Module):
    """Concatenation and 1 x 1 convolution: f = ReLU(LN(W [o; s])); 2C^2 + 2C parameters."""

    def __init__(self, channels: int, heads: int) -> None:
        """Build for C = ``channels``; ``heads`` is unused, it belongs to the shared interface."""
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Concatenate, mix and normalise two maps ``(B, C, H, W)`` into one."""
        tokens = self.mix(torch.cat([optical, sar], dim=1)).permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.relu(self.norm(tokens)).permute(0, 3, 1, 2), {}  # (B, H, W, C) -> (B, C, H, W)


class AddFusion(nn.Module):
    """Sum of both: f = LN(o + s), normalised over the channels of each token; 2C parameters."""

    def __init__(self, channels: int, heads: int) -> None:
        """Build for C = ``channels``; ``heads`` is unused, it belongs to the shared interface."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Add and normalise two maps ``(B, C, H, W)`` into one."""
        tokens = (optical + sar).permute(0, 2, 3, 1)  # (B, H, W, C)
        return self.norm(tokens).permute(0, 3, 1, 2), {}  # (B, H, W, C) -> (B, C, H, W)
