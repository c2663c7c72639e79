"""The modules of AMM-FuseNet, attention to channels and dense atrous pyramids (Ma et al. 2022).

AMM-FuseNet concatenates what they make of four stages of two ResNets. Here they also fuse the token
maps of UMSF-Net.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .windows import within_windows

RATES = (3, 6, 12, 18)  # of the atrous convolutions, tokens


class ChannelAttention(nn.Module):
    """ECA: each channel is weighed by its own mean and those of two neighbours (Wang et al. 2020).

    It has three parameters, for any number of channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Weigh the channels of ``maps (B, C, H, W)``, each by a number in (0, 1)."""
        means = maps.mean(dim=(2, 3))[:, None]  # (B, 1, C)
        return maps * torch.sigmoid(self.conv(means))[:, 0, :, None, None]


class DenseAspp(nn.Module):
    """Atrous convolutions of growing rates, each of which sees all before it (Yang et al. 2018).

    Their results, the input and its mean over the map are mixed. The branch of the mean has a layer
    norm where the published code has a batch norm, which cannot train on a batch of one. With 256
    channels throughout it has 6 360 076 parameters.
    """

    def __init__(self, before: int, channels: int) -> None:
        """Build for maps of ``before`` channels; each branch and the result have ``channels``."""
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    before + i * channels, channels, 3, padding=rate, dilation=rate, bias=False
                ),
                nn.BatchNorm2d(channels),
                ChannelAttention(),
                nn.ReLU(inplace=True),
            )
            for i, rate in enumerate(RATES)
        )
        self.mean = nn.Sequential(
            nn.Conv2d(before, channels, 1, bias=False),
            nn.GroupNorm(1, channels),
            nn.ReLU(inplace=True),
        )
        self.mix = nn.Sequential(
            nn.Conv2d(before + (len(RATES) + 1) * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(B, before, H, W)`` to ``(B, channels, H, W)``."""
        dense = maps
        for branch in self.branches:
            dense = torch.cat([dense, branch(dense)], dim=1)
        mean = self.mean(maps.mean(dim=(2, 3), keepdim=True))  # (B, channels, 1, 1)
        mixed: Tensor = self.mix(torch.cat([dense, mean.expand(-1, -1, *maps.shape[2:])], dim=1))
        return mixed


class AmmFusenetFusion(nn.Module):
    """Channel attention to each sensor, concatenation, and a dense atrous pyramid.

    On maps of 16 x 16 tokens the largest rate, 18, reaches no further than the token itself.
    """

    def __init__(self, channels: int, heads: int) -> None:
        """Build for C = ``channels``; ``heads`` is unused, it belongs to the shared interface."""
        super().__init__()
        self.attend_optical, self.attend_sar = ChannelAttention(), ChannelAttention()
        self.pyramid = DenseAspp(2 * channels, channels)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Fuse maps ``(B, C, H, W)``, see ``within_windows``."""
        return within_windows(self._fuse, optical, sar)

    def _fuse(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        both = torch.cat([self.attend_optical(optical), self.attend_sar(sar)], dim=1)
        return self.pyramid(both), {}
