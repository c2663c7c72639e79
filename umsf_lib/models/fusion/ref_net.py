"""The modules of REF-Net, which fuse what two sensors share and how they differ (Wei et al. 2025).

REF-Net has them at five levels of two ResNets. Here they also fuse the token maps of UMSF-Net.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import ResidualBlock
from .selective_scan import selective_scan
from .windows import within_windows

ROUTES = 4  # row by row and column by column, forwards and backwards
SMALLEST_STEP, LARGEST_STEP, FLOOR = 1e-3, 0.1, 1e-4  # of the scan, at first


class SelectiveScan2d(nn.Module):
    """SS2D: selective scans of a map along four routes, summed (Liu et al. 2024, VMamba).

    It has a state of one number per channel and no gate, as in REF-Net; 89 856 parameters for 128
    channels. ``log_rate`` and ``skip`` are not meant to decay (see ``supervised``; the decay of
    pretraining is too small to matter).
    """

    def __init__(self, channels: int, state: int = 1) -> None:
        super().__init__()
        wide, rank = 2 * channels, math.ceil(channels / 16)
        self.sizes = (rank, state, state)
        self.enter = nn.Linear(channels, wide, bias=False)
        self.conv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.project = nn.Parameter(torch.empty(ROUTES, sum(self.sizes), wide))
        self.expand = nn.Parameter(torch.empty(ROUTES, wide, rank))
        self.bias = nn.Parameter(torch.empty(ROUTES, wide))
        rates = torch.arange(1, state + 1, dtype=torch.float32).log()
        self.log_rate = nn.Parameter(rates[:, None].repeat(ROUTES, 1, wide))  # (4, N, D)
        self.skip = nn.Parameter(torch.ones(ROUTES, wide))
        self.norm = nn.LayerNorm(wide)
        self.leave = nn.Linear(wide, channels, bias=False)
        nn.init.uniform_(self.project, -(wide**-0.5), wide**-0.5)  # as nn.Linear does
        nn.init.uniform_(self.expand, -(rank**-0.5), rank**-0.5)
        low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
        step = torch.empty(ROUTES, wide).uniform_(low, high).exp().clamp_min(FLOOR)
        self.bias.data = step + torch.log(-torch.expm1(-step))  # inverse of softplus

    def forward(self, maps: Tensor) -> Tensor:
        """Scan ``(B, H, W, C)``; the result has the same shape."""
        wide = F.silu(self.conv(self.enter(maps).permute(0, 3, 1, 2)))  # (B, D, H, W)
        result: Tensor = self.leave(self.norm(self.core(wide).permute(0, 2, 3, 1)))
        return result

    def core(self, maps: Tensor) -> Tensor:
        """Scan ``(B, D, H, W)`` along all routes; the result has the same shape."""
        height, width = maps.shape[2:]
        places = maps.permute(2, 3, 0, 1)  # (H, W, B, D)
        rows, columns = places.flatten(0, 1), places.transpose(0, 1).flatten(0, 1)
        there = torch.stack([rows, columns], dim=2)  # (L, B, 2, D)
        found = self.scan(torch.cat([there, there.flip(0)], dim=2))  # (L, B, 4, D)
        rows, columns = (found[:, :, :2] + found[:, :, 2:].flip(0)).unbind(2)  # (L, B, D) each
        by_row = rows.unflatten(0, (height, width))  # (H, W, B, D)
        by_column = columns.unflatten(0, (width, height)).transpose(0, 1)  # (H, W, B, D)
        return (by_row + by_column).permute(2, 3, 0, 1)  # (H, W, B, D) -> (B, D, H, W)

    def scan(self, routes: Tensor) -> Tensor:
        """Scan each route by its own weights: ``(L, B, 4, D)`` to the same shape."""
        # Autocast would multiply decays over hundreds of tokens in bfloat16.
        with torch.autocast(routes.device.type, enabled=False):
            routes = routes.to(self.skip.dtype)
            parts = torch.einsum("lbkd,kpd->lbkp", routes, self.project)
            low, write, read = parts.split(self.sizes, dim=3)
            step = F.softplus(torch.einsum("lbkr,kdr->lbkd", low, self.expand) + self.bias)
            return selective_scan(routes, step, -self.log_rate.exp(), write, read, self.skip)


class VssBlock(nn.Module):
    """Visual state space block: a scan and an MLP, each after a layer norm and added to its input.

    It has 222 080 parameters for 128 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth  # slow to import, see ``encoders``

        self.norm_scan, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.scan = SelectiveScan2d(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.drop_path = StochasticDepth(0.1, "row")

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        x = maps.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = x + self.drop_path(self.scan(self.norm_scan(x)))
        x = x + self.drop_path(self.mlp(self.norm_mlp(x)))
        return x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


class ShareAndDifference(nn.Module):
    """MDF-VSS: fuses what both sensors share with how they differ.

    One VSS block reads each sensor, another one the signed difference o - s. It has 1 034 752
    parameters for 128 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared, self.difference = VssBlock(channels), VssBlock(channels)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.fuse = ResidualBlock(channels, channels, 1, nn.BatchNorm2d)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fuse maps ``(B, C, H, W)``.

        Returns:
            fused, what is shared as each sensor shows it (optical, SAR), and the difference, each
            ``(B, C, H, W)``.
        """
        of_optical, of_sar = self.shared(optical), self.shared(sar)
        difference = self.difference(optical - sar)
        shared = self.mix(torch.cat([of_optical, of_sar], dim=1))
        return self.fuse(shared + difference), of_optical, of_sar, difference


class SensorStreams(nn.Module):
    """MSIE: a map of each sensor to which the difference is added, for losses in training only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.optical, self.sar = (
            ResidualBlock(channels, channels, 1, nn.BatchNorm2d) for _ in range(2)
        )

    def forward(self, optical: Tensor, sar: Tensor, difference: Tensor) -> list[Tensor]:
        """Add the difference to both maps with the same sign: two ``(B, C, H, W)``."""
        return [self.optical(optical + difference), self.sar(sar + difference)]


class RefNetFusion(nn.Module):
    """Share and difference of one level.

    The cross-sensor contrast reads what the sensors share, so it need not erase how they differ.
    """

    def __init__(self, channels: int, heads: int) -> None:
        """Build for C = ``channels``; ``heads`` is unused, it belongs to the shared interface."""
        super().__init__()
        self.split = ShareAndDifference(channels)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Fuse maps ``(B, C, H, W)``, see ``within_windows``.

        Returns:
            fused; aux with ``cross_optical`` and ``cross_sar``, what the sensors share, and
            ``difference``; all ``(B, C, H, W)``.
        """
        return within_windows(self._fuse, optical, sar)

    def _fuse(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        fused, of_optical, of_sar, difference = self.split(optical, sar)
        aux = {"cross_optical": of_optical, "cross_sar": of_sar, "difference": difference}
        return fused, aux
