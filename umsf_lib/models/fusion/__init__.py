"""Fusion of registered token maps under one contract.

``fuse(optical, sar) -> (fused, aux)``, all ``(B, C, H, W)``; ``aux`` may hold gates and attention.
"""

from torch import nn

from .attention import AttentionFusion
from .simple import AddFusion, ConcatFusion

FUSIONS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "add": AddFusion,
    "attention": AttentionFusion,
}

__all__ = ["FUSIONS", "AddFusion", "AttentionFusion", "ConcatFusion"]
