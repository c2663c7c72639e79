"""Decoders of the supervised networks: maps of several strides in, logits of the finest out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.encoders import ResidualBlock
from ..models.fusion.ref_net import VssBlock

POOLS = (1, 2, 3, 6)  # sides of the pooled maps of UPerNet
DROPOUT = 0.1  # of channels, before the classes


def enlarged(maps: Tensor, like: Tensor) -> Tensor:
    """Upsample ``(B, C, h, w)`` bilinearly to the height and width of another map."""
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def conv_norm(before: int, after: int, side: int, norm: nn.Module | None = None) -> nn.Sequential:
    """Build a convolution without bias, a norm (default: batch norm) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, side, padding=side // 2, bias=False),
        norm or nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


class UperHead(nn.Module):
    """Pyramid pooling of the coarsest map, and a top-down path (Xiao et al. 2018, UPerNet).

    The pooled maps have layer norms, because batch norms cannot train on one window's 1 x 1 map.
    """

    def __init__(self, widths: Sequence[int], classes: int, channels: int) -> None:
        """Build for maps of these channels, from fine to coarse."""
        super().__init__()
        coarsest = widths[-1]
        self.pools = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side),
                conv_norm(coarsest, channels, 1, nn.GroupNorm(1, channels)),
            )
            for side in POOLS
        )
        self.bottleneck = conv_norm(coarsest + len(POOLS) * channels, channels, 3)
        self.laterals = nn.ModuleList(conv_norm(width, channels, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv_norm(channels, channels, 3) for _ in widths[:-1])
        self.mix = conv_norm(len(widths) * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map levels ``(B, C_k, h_k, w_k)``, fine to coarse, to logits ``(B, K, h_0, w_0)``."""
        *finer, last = levels
        pooled = [enlarged(pool(last), last) for pool in self.pools]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))
        maps = [lateral(level) for lateral, level in zip(self.laterals, finer, strict=True)]
        maps = top_down([*maps, top])
        smooth = [layer(one) for layer, one in zip(self.smooth, maps[:-1], strict=True)]
        every = [enlarged(one, maps[0]) for one in (*smooth, maps[-1])]
        logits: Tensor = self.classify(self.mix(torch.cat(every, dim=1)))
        return logits


def top_down(maps: Sequence[Tensor], blocks: Sequence[nn.Module] = ()) -> list[Tensor]:
    """Add to each map, fine to coarse, the enlarged result of the next coarser one.

    ``blocks``, one for each map but the coarsest, are applied to the sums.
    """
    found = [maps[-1]]
    for number in reversed(range(len(maps) - 1)):
        total = maps[number] + enlarged(found[0], maps[number])
        found.insert(0, blocks[number](total) if blocks else total)
    return found


def fcn_head(width: int, classes: int, channels: int) -> nn.Sequential:
    """Build the auxiliary head of one level: ``(B, width, h, w)`` to logits ``(B, K, h, w)``."""
    return nn.Sequential(
        conv_norm(width, channels, 3), nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1)
    )


class MdfDecoder(nn.Module):
    """Decoder of REF-Net: a path of fused maps, and one of each sensor that only training reads.

    With five levels of 128 channels it has 7 609 728 parameters, heads apart.
    """

    def __init__(self, levels: int, channels: int, classes: int) -> None:
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResidualBlock(channels, channels, 1, nn.BatchNorm2d) for _ in range(count)
            )

        self.scans = nn.ModuleList(VssBlock(channels) for _ in range(levels))
        self.path = blocks(levels - 1)
        self.entries = nn.ModuleList(blocks(levels) for _ in range(2))  # optical, SAR
        self.streams = nn.ModuleList(blocks(levels - 1) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(channels, classes, 1) for _ in range(3))

    def forward(
        self, fused: Sequence[Tensor], sensors: Sequence[Sequence[Tensor]], apart: Sequence[Tensor]
    ) -> list[Tensor]:
        """Decode levels ``(B, C, h_k, w_k)``, fine to coarse.

        Args:
            fused: the fused maps.
            sensors: the maps of the optical and of the SAR stream.
            apart: the differences of the sensors, added to both with the same sign.

        Returns:
            Logits ``(B, K, h_0, w_0)`` of the fused path and, in training, of both streams.
        """
        maps = [scan(level) for scan, level in zip(self.scans, fused, strict=True)]
        finest = [top_down(maps, list(self.path))[0]]
        for entries, blocks, levels in zip(self.entries, self.streams, sensors, strict=True):
            if not self.training:
                break
            triples = zip(entries.children(), levels, apart, strict=True)
            own = [block(level + difference) for block, level, difference in triples]
            finest.append(top_down(own, list(blocks.children()))[0])
        return [head(one) for head, one in zip(self.heads, finest, strict=False)]
