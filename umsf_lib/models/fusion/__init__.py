"""Fusion of registered token maps; all modules share one interface.

``fuse(optical, sar) -> (fused, aux)``: the maps are ``(B, C, H, W)``; the dict ``aux`` may hold
gates and attention.
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
