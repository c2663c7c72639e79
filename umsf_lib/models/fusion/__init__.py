"""Fusion of registered token maps; all modules share one interface.

``fuse(optical, sar) -> (fused, aux)``: the maps are ``(B, C, H, W)``; the dict ``aux`` may hold
gates, attention, and maps that other parts of the training read.
"""

from torch import nn

from .amm_fusenet import AmmFusenetFusion
from .asanet import AsanetFusion
from .attention import AttentionFusion
from .ref_net import RefNetFusion
from .simple import AddFusion, ConcatFusion

FUSIONS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "add": AddFusion,
    "attention": AttentionFusion,
    "asanet": AsanetFusion,
    "amm_fusenet": AmmFusenetFusion,
    "ref_net": RefNetFusion,
}

__all__ = [
    "FUSIONS",
    "AddFusion",
    "AmmFusenetFusion",
    "AsanetFusion",
    "AttentionFusion",
    "ConcatFusion",
    "RefNetFusion",
]
