"""Sum and layer norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class AddFusion(nn.Module):
    """f = LN(o + s) over the channels of each token; 2C parameters."""

    def __init__(self, channels: int, heads: int) -> None:
        """``heads`` is of the contract; only attention has any."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Add and normalise: ``(B, C, H, W)`` twice -> once."""
        tokens = (optical + sar).permute(0, 2, 3, 1)  # (B, H, W, C)
        return self.norm(tokens).permute(0, 3, 1, 2), {}
