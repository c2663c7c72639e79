"""The modules of ASANet, which bring two sensors closer and select channels (Zhang et al. 2024).

ASANet has them at every stage of two ConvNeXts. Here they also fuse the token maps of UMSF-Net.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .windows import within_windows


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of ``(B, C, H, W)``."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise; the shape stays the same."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SemanticFocus(nn.Module):
    """SFM: o' = o (1 + sigmoid(phi(max(o - s)))), and s' with the sensors exchanged.

    What one sensor shows and the other does not is amplified. The gains lie in (1, 2), one per
    channel; the maximum is taken over the map, and both sensors share the bottleneck phi.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(32, channels // 16)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        """Recalibrate two maps ``(B, C, H, W)``."""
        gains = [self._gain(optical - sar), self._gain(sar - optical)]
        return optical * gains[0], sar * gains[1]

    def _gain(self, difference: Tensor) -> Tensor:
        strongest = difference.amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return 1 + torch.sigmoid(self.bottleneck(strongest))


class CascadeFusion(nn.Module):
    """CFM: channels are weighed by the mean of both maps, then selected token by token.

    Three details of the published code are changed, unless ``faithful``:

    - Its weights are a softmax over the channels, so the result is about C times smaller than the
      maps. Here the softmax is over the two sensors, which chooses between them.
    - Its batch norms see maps of 1 x 1, so a batch of one cannot train. Here they are layer norms.
    - Its depth-wise 3 x 3 convolutions see maps of 1 x 1, so eight of nine weights never learn.
      Here they are 1 x 1.

    The faithful module has 22 C^2 + 104 C parameters.
    """

    def __init__(self, channels: int, faithful: bool = False) -> None:
        super().__init__()
        self.faithful = faithful
        self.joint = nn.Conv2d(2 * channels, channels, 1)
        self.gates = nn.ModuleList(_channel_gate(channels, faithful) for _ in range(2))
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.selectors = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Fuse two maps ``(B, C, H, W)`` into one."""
        both = torch.cat([optical, sar], dim=1)  # (B, 2C, H, W)
        mean = self.joint(both.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        of_optical, of_sar = (torch.sigmoid(gate(mean)) for gate in self.gates)
        maps = [optical * of_optical, sar * of_sar]
        mixed = self.mix(torch.cat(maps, dim=1))  # (B, C, H, W)
        scores = torch.stack([select(mixed) for select in self.selectors])  # (2, B, C, H, W)
        weights = scores.softmax(dim=2 if self.faithful else 0)
        return (weights * torch.stack(maps)).sum(dim=0)


def _channel_gate(channels: int, faithful: bool) -> nn.Sequential:
    """Build the MLP ``(B, C, 1, 1) -> (B, C, 1, 1)`` of one sensor."""
    norm = nn.BatchNorm2d if faithful else partial(nn.GroupNorm, 1)
    side, wide = (3 if faithful else 1), 4 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False),
        norm(wide),
        nn.Conv2d(wide, wide, side, padding=side // 2, groups=wide),
        nn.ReLU6(inplace=True),
        nn.Conv2d(wide, channels, 1, bias=False),
        norm(channels),
    )


class AsanetFusion(nn.Module):
    """Semantic focus and cascade fusion, with the norms of one stage of ASANet.

    The result is normalised again, as those of the other fusions are.
    """

    def __init__(self, channels: int, heads: int) -> None:
        """Build for C = ``channels``; ``heads`` is unused, it belongs to the shared interface."""
        super().__init__()
        self.focus, self.fuse = SemanticFocus(channels), CascadeFusion(channels)
        self.norm_optical, self.norm_sar, self.norm = (ChannelNorm(channels) for _ in range(3))

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Fuse maps ``(B, C, H, W)``, see ``within_windows``."""
        return within_windows(self._fuse, optical, sar)

    def _fuse(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, dict[str, Any]]:
        optical, sar = self.focus(optical, sar)
        return self.norm(self.fuse(self.norm_optical(optical), self.norm_sar(sar))), {}
