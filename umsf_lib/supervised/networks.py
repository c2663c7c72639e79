"""Supervised fusion networks for optical and SAR windows: images in, logits of each pixel out.

Those that fuse are built on the same backbones (see ``encoders.pyramid``), so that a table compares
how they fuse. Each class says how it differs from what was published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError, SupervisedConfig, check_choice
from ..data.layout import Layout
from ..models.encoders import pyramid
from ..models.fusion import FUSIONS
from ..models.fusion.amm_fusenet import ChannelAttention, DenseAspp
from ..models.fusion.asanet import CascadeFusion, ChannelNorm, SemanticFocus
from ..models.fusion.ref_net import ShareAndDifference
from .decoders import MdfDecoder, UperHead, conv_norm, enlarged, fcn_head

LEVELS = 4  # from the coarsest, of networks that do not read the finest stage of a backbone
HEADS = 8  # of attention between the levels of two sensors
REDUCED = 48  # channels to which AMM-FuseNet reduces each level


@dataclass(frozen=True)
class Form:
    """What a supervised network is built for.

    Attributes:
        bands: sensor -> number of bands; one or both of ``optical`` and ``sar``.
        classes: K.
        backbone: a key of ``encoders.PYRAMIDS``.
        channels: width of the decoder.
        weights: of the backbone, see ``encoders.pyramid``.
        rgb: positions of red, green and blue among the optical bands, for these weights.
    """

    bands: Mapping[str, int]
    classes: int
    backbone: str = "small"
    channels: int = 64
    weights: str = "none"
    rgb: tuple[int, int, int] | None = None

    @classmethod
    def of_layout(cls, layout: Layout, sensors: str, settings: SupervisedConfig) -> Form:
        """Read bands and classes from a layout, for ``sensors`` as in ``model.sensors``."""
        bands = {"optical": len(layout.optical.bands)}
        bands |= {"sar": len(layout.sar.bands)} if layout.sar else {}
        read = {role: count for role, count in bands.items() if sensors in ("both", role)}
        return cls(
            read,
            len(layout.classes),
            settings.backbone,
            settings.channels,
            settings.weights,
            layout.optical.rgb,
        )


class PixelNetwork(nn.Module):
    """Base of all: padded images in, logits at every pixel out.

    Attributes:
        auxiliary: weight of each auxiliary loss beside that of the result.
        multiple: coarsest stride, px.
        takes_one: whether it trains on one window; its batch norms see more than one token.
    """

    auxiliary = 0.0
    takes_one = True

    def __init__(self, form: Form, multiple: int) -> None:
        super().__init__()
        self.roles, self.multiple = list(form.bands), multiple

    def forward(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Compute logits ``(B, K, h, w)``; in training also those of auxiliary heads.

        Images ``(B, bands, h, w)`` whose sides are no multiple of the coarsest stride are filled
        up with the edge, which is cut off again.
        """
        first = self.roles[0]
        height, width = images[first].shape[2:]
        over = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = {role: F.pad(images[role], over, mode="replicate") for role in self.roles}
        found = [enlarged(logits, padded[first]) for logits in self.decode(padded)]
        return [logits[:, :, :height, :width] for logits in found]

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Compute logits at the stride of the finest level that the network reads."""
        raise NotImplementedError


class FusionNetwork(PixelNetwork):
    """Base of networks with one backbone per sensor."""

    def __init__(self, form: Form) -> None:
        super().__init__(form, 16 if form.backbone == "small" else 32)
        built = {
            role: pyramid(
                form.backbone, bands, form.weights, form.rgb if role == "optical" else None
            )
            for role, bands in form.bands.items()
        }
        self.streams = nn.ModuleDict({role: stages for role, (stages, _) in built.items()})
        _, self.widths = next(iter(built.values()))  # channels of the stages

    def levels(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Compute sensor -> maps of all stages ``(B, C_k, h_k, w_k)``, fine to coarse."""
        found: dict[str, list[Tensor]] = {}
        for role, stages in self.streams.items():
            maps, found[role] = images[role], []
            for stage in stages.children():
                maps = stage(maps)
                found[role].append(maps)
        return found


class LevelFusion(FusionNetwork):
    """A fusion of ``FUSIONS`` at each of four levels, and UPerNet's decoder.

    With one sensor there is nothing to fuse: the control of the others.
    """

    def __init__(self, form: Form, fusion: str = "concat") -> None:
        super().__init__(form)
        widths = self.widths[-LEVELS:]
        both = len(form.bands) == 2
        self.fusions = nn.ModuleList(FUSIONS[fusion](c, HEADS) for c in widths if both)
        self.head = UperHead(widths, form.classes, form.channels)

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Fuse level by level; see ``PixelNetwork``."""
        streams = [maps[-LEVELS:] for maps in self.levels(images).values()]
        fused: Sequence[Tensor] = streams[0]
        if self.fusions:
            pairs = zip(self.fusions, *streams, strict=True)
            fused = [fuse(o, s)[0] for fuse, o, s in pairs]
        return [self.head(fused)]


class Asanet(FusionNetwork):
    """ASANet (Zhang et al. 2024): a stage reads what the one before has recalibrated and normed.

    Published with two ConvNeXt-V2-Tiny, 256 channels and 82 M parameters. torchvision has V1, whose
    blocks have a layer scale instead of a global response normalisation, both of few parameters:
    82 M without the side head that only training reads. ``faithful``: see ``CascadeFusion``.
    """

    auxiliary = 0.4

    def __init__(self, form: Form, faithful: bool = False) -> None:
        super().__init__(form)
        widths = self.widths[-LEVELS:]
        self.focus = nn.ModuleList(SemanticFocus(width) for width in widths)
        self.norms = nn.ModuleList(
            nn.ModuleList(ChannelNorm(width) for width in widths) for _ in range(2)
        )
        self.fuse = nn.ModuleList(CascadeFusion(width, faithful) for width in widths)
        self.head = UperHead(widths, form.classes, form.channels)
        self.side = fcn_head(widths[-2], form.classes, form.channels // 2)

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Interleave stages and recalibration; see ``PixelNetwork``."""
        maps, fused = [images["optical"], images["sar"]], []
        skipped = len(self.widths) - LEVELS  # a stage before the first fused level
        norms = list(zip(*(norm.children() for norm in self.norms), strict=True))  # of each level
        both = zip(*(stream.children() for stream in self.streams.values()), strict=True)
        for number, stages in enumerate(both):
            maps = [stage(one) for stage, one in zip(stages, maps, strict=True)]
            if (level := number - skipped) >= 0:
                pairs = zip(norms[level], self.focus[level](*maps), strict=True)
                maps = [norm(one) for norm, one in pairs]
                fused.append(self.fuse[level](*maps))
        aside = [self.side(fused[-2])] if self.training else []
        return [self.head(fused), *aside]


class AmmFusenet(FusionNetwork):
    """AMM-FuseNet (Ma et al. 2022): attention-weighted pyramids of both sensors, concatenated.

    Published with two ResNet-50 and 256 channels: for 13 and 2 bands and 7 classes 62 332 663
    parameters, of which 132 096 are of convolutions that its code never reads and this one lacks.
    Its ResNets have a stride of 16, by dilation; here they have 32.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        widths, channels = self.widths[-LEVELS:], form.channels
        self.reduce = nn.ModuleDict(
            {
                role: nn.ModuleList(
                    nn.Sequential(conv_norm(width, REDUCED, 1), ChannelAttention())
                    for width in widths
                )
                for role in form.bands
            }
        )
        self.dense = nn.ModuleDict({role: DenseAspp(widths[0], channels) for role in form.bands})
        each = LEVELS * REDUCED + channels
        self.mix = conv_norm(len(form.bands) * each, channels, 3)
        self.classify = nn.Conv2d(channels, form.classes, 1)

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Concatenate all maps at the finest level; see ``PixelNetwork``."""
        every = []
        for role, maps in self.levels(images).items():
            levels = maps[-LEVELS:]
            pairs = zip(self.reduce[role].children(), levels, strict=True)
            every += [enlarged(reduce(level), levels[0]) for reduce, level in pairs]
            every.append(self.dense[role](levels[0]))
        return [self.classify(self.mix(torch.cat(every, dim=1)))]


class RefNet(FusionNetwork):
    """REF-Net (Wei et al. 2025): what two sensors share and how they differ, at every stage.

    Published with two ResNet-50 and 128 channels: for 3 and 2 bands and 9 classes 60 799 323
    parameters.
    """

    auxiliary = 0.005

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        channels = form.channels
        # The finest level that it reads has a stride of 2 at least.
        widths = self.widths[-LEVELS:] if form.backbone == "small" else self.widths
        self.project = nn.ModuleDict(
            {
                role: nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in widths)
                for role in form.bands
            }
        )
        self.split = nn.ModuleList(ShareAndDifference(channels) for _ in widths)
        self.decoder = MdfDecoder(len(widths), channels, form.classes)

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Split, fuse and decode all levels; see ``PixelNetwork``."""
        maps = []
        for role, levels in self.levels(images).items():
            pairs = zip(self.project[role].children(), levels[-len(self.split) :], strict=True)
            maps.append([project(level) for project, level in pairs])
        found = [split(o, s) for split, o, s in zip(self.split, *maps, strict=True)]
        return self.decoder(
            [fused for fused, *_ in found], maps, [difference for *_, difference in found]
        )


class EarlyFusion(PixelNetwork):
    """A usual network that reads the bands of all sensors as one image.

    It is that of segmentation-models-pytorch with random weights. That package has not the
    backbone ``small``; ResNet-18 takes its place.
    """

    def __init__(self, form: Form, name: str) -> None:
        """Build one of ``EARLY``.

        Raises:
            ConfigError: segmentation-models-pytorch is not installed, or lacks the backbone; or the
                weights are those of ImageNet.
        """
        super().__init__(form, 32)
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise ConfigError(
                f"fusion {name} needs segmentation-models-pytorch, which is not installed; run "
                "pip install segmentation-models-pytorch, or leave out this method."
            ) from error
        backbone = "resnet18" if form.backbone == "small" else form.backbone
        if not backbone.startswith("resnet"):
            raise ConfigError(
                f"fusion {name} has no backbone {backbone!r}; set supervised.backbone to small, "
                "resnet18 or resnet50."
            )
        if form.weights == "imagenet":
            raise ConfigError(
                f"supervised.weights is imagenet, but fusion {name} starts from random weights; "
                "set supervised.weights=none."
            )
        self.takes_one = name != "deeplabv3plus"  # it pools the whole window
        bands = sum(form.bands.values())
        self.body = smp.create_model(name, backbone, None, bands, form.classes)

    def decode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Concatenate the bands; see ``PixelNetwork``."""
        return [self.body(torch.cat([images[role] for role in self.roles], dim=1))]


WHOLE: dict[str, type[FusionNetwork]] = {
    "asanet": Asanet,
    "amm_fusenet": AmmFusenet,
    "ref_net": RefNet,
}
EARLY = ("unet", "deeplabv3plus")  # Ronneberger et al. 2015, Chen et al. 2018
FUSING = ("concat", "add", "attention", *WHOLE)
NETWORKS = (*FUSING, *EARLY)


def supervised_network(name: str, form: Form) -> PixelNetwork:
    """Build one of ``NETWORKS``; with one sensor, a control without a fusion.

    Raises:
        ConfigError: the name or the backbone is unknown, or a package is missing.
    """
    check_choice("fusion", name, NETWORKS)
    if name in EARLY:
        return EarlyFusion(form, name)
    if len(form.bands) == 1 or name not in WHOLE:
        return LevelFusion(form, name if name not in WHOLE else "concat")
    return WHOLE[name](form)
