"""The whole network: two encoders, fusion, projection heads, clustering head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..data.layout import Layout
from .encoders import Despeckle, SarEncoder, encoder, group_norm
from .fusion import FUSIONS, AttentionFusion, RefNetFusion
from .fusion.ref_net import SensorStreams

PROJECTORS = {
    "both": ("optical", "sar", "cross_optical", "cross_sar", "fused"),
    "optical": ("fused",),
    "sar": ("fused",),
}
FORMS_OF_BLOCKS = 64  # that may be compiled
# Projector -> feature map it reads, if there is none of its own name.
SOURCE = {"cross_optical": "optical", "cross_sar": "sar"}
OF_FUSION = ("cross_optical", "cross_sar", "difference")  # further maps of some fusions


def projection_head(channels: int, hidden: int, dim: int, norm: str) -> nn.Sequential:
    """Build a two-layer head ``(N, C) -> (N, D)``; its output is not normalised."""
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=False),
        nn.BatchNorm1d(hidden) if norm == "batch" else group_norm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim),
    )


def clustering_head(channels: int, hidden: int, num_clusters: int) -> nn.Sequential:
    """Build a two-layer head: tokens ``(B, C, H, W)`` -> logits ``(B, K, H, W)``."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, num_clusters, 1)
    )


class UmsfNet(nn.Module):
    """UMSF-Net for one or two sensors.

    The cross-modal contrast has its own projectors, so aligning the sensors does not erase what
    only one of them sees (DeCUR, Wang et al. 2024). With one sensor nothing is fused: ``fused`` is
    that sensor's map.
    """

    def __init__(self, model: ModelConfig, layout: Layout, despeckle_channels: int = 16) -> None:
        """Build the network for the bands of a layout, with a front end of this width."""
        super().__init__()
        self.model, self.sensors, self.stride = model, model.sensors, model.stride
        self.projection_dim = model.projection_dim
        common: dict[str, Any] = {"channels": model.channels, "stride": model.stride}
        # umsf-small is for the whole network, see ``kept.start_from_kept``.
        imagenet = model.weights if model.weights == "imagenet" else "none"
        common |= {"norm": model.norm, "weights": imagenet}
        self.optical = self.sar = self.fusion = None
        if self.sensors != "sar":
            bands = len(layout.optical.bands)
            self.optical = encoder(model.backbone, bands, rgb=layout.optical.rgb, **common)
        if self.sensors != "optical" and layout.sar is not None:
            front = Despeckle(despeckle_channels) if model.despeckle else None
            bands = len(layout.sar.bands) * (2 if front else 1)
            self.sar = SarEncoder(encoder(model.backbone, bands, **common), front)
        if self.sensors == "both":
            self.fusion = FUSIONS[model.fusion](model.channels, model.heads)
        sizes = (model.channels, model.projection_hidden, model.projection_dim, model.norm)
        names = PROJECTORS[self.sensors]
        self.projectors = nn.ModuleDict({name: projection_head(*sizes) for name in names})
        self.clustering: nn.Module | None = None
        self.streams: nn.Module | None = None  # of the fusion, for training of the head only
        self.to(memory_format=torch.channels_last)  # faster on a GPU and, by a tenth, on a CPU

    @property
    def despeckler(self) -> Despeckle | None:
        """Front end of the SAR encoder, or None."""
        return None if self.sar is None else self.sar.despeckler

    def set_num_clusters(self, num_clusters: int) -> None:
        """Attach a fresh clustering head, with the streams of REF-Net's fusion."""
        hidden, channels = self.model.cluster_hidden, self.model.channels
        self.clustering = clustering_head(channels, hidden, num_clusters)
        self.streams = SensorStreams(channels) if isinstance(self.fusion, RefNetFusion) else None

    def compile_blocks(self) -> None:
        """Compile residual blocks, despeckler and fusion one by one, in place.

        Blocks of the same form share their code (torch >= 2.5), even across networks, so this takes
        a third of the time that whole encoders would take. The speed-up comes from within a block:
        batch norm, ReLU and the sum run in few kernels.
        """
        # ResNet-50 has 8 forms of blocks, each in two modes; by default 8 are compiled.
        public: Any = getattr(torch.compiler, "config", None)
        if hasattr(public, "recompile_limit"):
            public.recompile_limit = FORMS_OF_BLOCKS
        else:  # of older releases of torch
            torch._dynamo.config.cache_size_limit = FORMS_OF_BLOCKS
        parts = {"BasicBlock", "Bottleneck", "ResidualBlock", "Despeckle"}
        for module in self.modules():
            if type(module).__name__ in parts or module is self.fusion:
                module.compile(dynamic=False)  # blocks of other sizes are compiled separately

    def features(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the token maps ``fused`` and, with two sensors, ``optical`` and ``sar``.

        Args:
            images: standardised ``optical (B, Co, h, w)``, ``sar (B, Cs, h, w)`` or both; with SAR
                ``sar_log_std (B, Cs, 1, 1)``; as ``PixelStore.windows`` returns them.

        Returns:
            Name -> ``(B, C, H, W)``; with some fusions also ``OF_FUSION``.
        """
        maps = {}
        if self.optical is not None:
            maps["optical"] = self.optical(images["optical"])
        if self.sar is not None:
            maps["sar"] = self.sar(images["sar"], images["sar_log_std"])
        if self.fusion is None:
            return {"fused": maps[self.sensors]}
        fused, aux = self.fusion(maps["optical"], maps["sar"])
        return maps | {"fused": fused} | {name: aux[name] for name in OF_FUSION if name in aux}

    def project(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Project rows ``(N, C)`` of ``features``: projector -> ``(N, D)``, not normalised."""
        return {
            name: head(rows[name if name in rows else SOURCE[name]])
            for name, head in self.projectors.items()
        }

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Compute the head's logits ``(B, K, H, W)``; call ``set_num_clusters`` first."""
        return self.logits(self.features(images))[0]

    def logits(self, maps: Mapping[str, Tensor], streams: bool = False) -> list[Tensor]:
        """Compute the head's logits ``(B, K, H, W)`` from ``features``.

        With ``streams``, also those of the streams of each sensor, where the fusion has them.
        """
        assert self.clustering is not None
        read = [maps["fused"]]
        if streams and self.streams is not None:
            read += self.streams(maps["optical"], maps["sar"], maps["difference"])
        return [self.clustering(one) for one in read]


@torch.no_grad()
def central_attention(network: UmsfNet, window: dict[str, Tensor]) -> dict[str, Any]:
    """Find where the optical token in the middle of a window attends in the SAR map.

    Args:
        network: in eval mode.
        window: a batch of one, on the network's device; see ``UmsfNet.features``.

    Returns:
        Arguments of ``figures.attention_figure``: ``attention (heads, N)`` float32, rows sum to 1,
        or None where the network has no attention; ``token``, its (row, column); ``grid`` (H, W)
        with H W = N; ``gates (2, H, W)`` float32, only with attention.
    """
    if not isinstance(network.fusion, AttentionFusion):
        return {"attention": None, "token": (0, 0), "grid": (1, 1)}
    maps = network.features(window)
    _, aux = network.fusion(maps["optical"], maps["sar"], need_weights=True)
    height, width = maps["fused"].shape[2:]
    row, column = height // 2, width // 2
    weights = aux["attention_optical"][0, :, row * width + column]  # (heads, N)
    found = {"attention": weights.cpu().numpy(), "gates": aux["gates"][0].cpu().numpy()}
    return found | {"token": (row, column), "grid": (height, width)}
