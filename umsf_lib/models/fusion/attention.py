"""Multi-head cross-attention between the tokens of two sensors, with a gate per token (UMSF-Net).

Each sensor attends to the other: queries come from one sensor, keys and values from the other. All
tokens of the map take part. With a single pooled token the softmax would always be 1, and the query
and key projections would never learn.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windows import within_windows


class CrossAttention(nn.Module):
    """Multi-head attention of tokens ``(B, N, C)`` to other tokens, with a bias on the logits."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, query: Tensor, other: Tensor, bias: Tensor) -> Tensor:
        """Compute ``W_O MHA(Q = query, K = V = other)``, ``(B, N, C)``; ``bias (heads, N, N)``."""
        # (B, N, C) -> (B, h, N, d)
        q, k, v = self._split(self.q(query)), self._split(self.k(other)), self._split(self.v(other))
        mask = bias.to(q.dtype)[None]  # (1, h, N, N): the fast kernel needs four dimensions
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, N, d)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, h, N, d) -> (B, N, C)
        return result

    def weights(self, query: Tensor, other: Tensor, bias: Tensor) -> Tensor:
        """Compute attention ``(B, heads, N, N)``, rows sum to 1; for inspection, not training."""
        q, k = self._split(self.q(query)), self._split(self.k(other))
        # (B, h, N, d) x (B, h, d, N) -> (B, h, N, N)
        return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + bias).softmax(dim=3)

    def _split(self, tokens: Tensor) -> Tensor:
        # (B, N, C) -> (B, N, h, d) -> (B, h, N, d)
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class AttentionFusion(nn.Module):
    """Cross-attention in both directions, then f = LN(g1 o' + g2 s') with a gate per token.

    It has 10 C^2 + 17 C + 2 parameters. Nearby tokens of the other sensor count most, because
    ``slope * distance`` is subtracted from the logits (ALiBi, Press et al. 2022; in 2-D as in
    CROMA, Fuller et al. 2023).
    """

    slopes: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.from_sar = CrossAttention(channels, heads)  # optical queries
        self.from_optical = CrossAttention(channels, heads)  # SAR queries
        self.gate = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, 2)
        )
        self.norm_optical, self.norm_sar = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        ratio = 2.0 ** (-8 / heads)
        slopes = ratio ** torch.arange(1, heads + 1, dtype=torch.float32)
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(
        self, optical: Tensor, sar: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Fuse maps ``(B, C, H, W)``; those of more than 1024 tokens attend within windows.

        Returns:
            fused ``(B, C, H, W)``; aux with ``gates (B, 2, H, W)``. With ``need_weights`` there
            are no windows, and aux has ``attention_optical``, ``attention_sar (B, heads, N, N)``.
        """
        if need_weights:
            return self._attend(optical, sar, need_weights)
        return within_windows(self._attend, optical, sar)

    def _attend(
        self, optical: Tensor, sar: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        height, width = optical.shape[2:]
        bias = self.distance_bias(height, width)
        o, s = (maps.flatten(2).transpose(1, 2) for maps in (optical, sar))  # (B, N, C)
        # Autocast computes norms in float32 and would cast the result again at each use.
        o_n, s_n = self.norm_optical(o).to(o.dtype), self.norm_sar(s).to(s.dtype)
        o_new, s_new = o + self.from_sar(o_n, s_n, bias), s + self.from_optical(s_n, o_n, bias)
        gates = self.gate(torch.cat([o_new, s_new], dim=2)).softmax(dim=2)  # (B, N, 2)
        fused = self.norm(gates[:, :, :1] * o_new + gates[:, :, 1:] * s_new)  # (B, N, C)
        aux = {"gates": gates.transpose(1, 2).unflatten(2, (height, width))}  # (B, 2, H, W)
        if need_weights:
            aux["attention_optical"] = self.from_sar.weights(o_n, s_n, bias)
            aux["attention_sar"] = self.from_optical.weights(s_n, o_n, bias)
        return fused.transpose(1, 2).unflatten(2, (height, width)), aux  # (B, C, H, W)

    def distance_bias(self, height: int, width: int) -> Tensor:
        """Compute the bias ``(heads, N, N)``: minus slope times distance in tokens."""
        axes = [torch.arange(n, device=self.slopes.device) for n in (height, width)]
        # (H, W, 2) -> (N, 2)
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 2).float()
        return -self.slopes[:, None, None] * torch.cdist(places, places)
