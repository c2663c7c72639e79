"""Optical and SAR encoders: images in, token maps out; the despeckling front end of the SAR one.

A small ResNet for laptops, torchvision's ResNets for GPUs; any number of bands; ImageNet weights
on request, inflated to the bands at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError

# torchvision brings torch's compiler along, a third of all start-up time, and the small ResNet
# needs neither: it is imported where its networks are made.
if TYPE_CHECKING:
    from torchvision.models import ResNet

BOXES = (3, 7, 15)  # px; the first gives detail, the last an estimate of the level
STRIDES = {"small": (4,), "resnet18": (4, 8, 16, 32), "resnet50": (4, 8, 16, 32)}


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels.

    Statistics of one sample only (a window, in a projection head a row): nothing leaks within a
    batch, but its own level is subtracted, and a window of nothing but water looks like one of
    nothing but fields.
    """
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "batch": nn.BatchNorm2d}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(
        self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            norm(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            norm(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            # Pooling over one pixel is a stride: oneDNN's strided 1 x 1 kernel (AVX2, torch 2.15)
            # overruns its memory in channels last with fewer than eight channels.
            self.shortcut = nn.Sequential(
                nn.MaxPool2d(1, stride), nn.Conv2d(before, after, 1, bias=False), norm(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, before, h, w)`` -> ``(B, after, h / stride, w / stride)``."""
        return F.relu(self.shortcut(x) + self.body(x))


def small_resnet(bands: int, channels: int, norm: str) -> nn.Sequential:
    """Stride 4, receptive field about 40 px: enough for a village, fine enough for a road."""
    make = NORMS[norm]
    narrow, middle = channels // 4, channels // 2
    return nn.Sequential(
        nn.Conv2d(bands, narrow, 3, 1, 1, bias=False),  # full resolution: thin roads
        make(narrow),
        nn.ReLU(inplace=True),
        ResidualBlock(narrow, middle, 2, make),
        ResidualBlock(middle, channels, 2, make),
        ResidualBlock(channels, channels, 1, make),
    )


def torchvision_resnet(
    name: str, bands: int, stride: int, norm: str, weights: str, rgb: tuple[int, int, int] | None
) -> nn.Sequential:
    """The body of a torchvision ResNet, without pooling and classifier.

    Args:
        name: ``resnet18`` (512 channels) or ``resnet50`` (2048).
        bands: of the input.
        stride: 4, 8, 16 or 32 px per token; where it is below 32, later stages are
            dilated instead of strided.
        norm: ``group`` or ``batch``; ImageNet weights need ``batch``.
        weights: ``none`` or ``imagenet``.
        rgb: positions of red, green, blue among the bands, for the weights; None for SAR.

    Raises:
        ConfigError: weights with group norm, or weights that cannot be fetched.
    """
    from torchvision.models import get_model

    net: ResNet = get_model(name, weights=None, norm_layer=NORMS[norm])
    if weights == "imagenet":
        if norm != "batch":
            raise ConfigError(
                f"model.weights is imagenet but model.norm is {norm!r}: ImageNet ResNets were "
                "trained with batch norm; set model.norm=batch."
            )
        net.load_state_dict(fetch_weights(name))
    net.conv1 = inflate(net.conv1, bands, rgb)
    _set_stride(net, stride)
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    return nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, *stages)


def fetch_weights(name: str) -> dict[str, Tensor]:
    """ImageNet state of a torchvision ResNet, from its cache or the network.

    Raises:
        ConfigError: it cannot be fetched.
    """
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name)["DEFAULT"]
    try:
        state: dict[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise ConfigError(
            f"ImageNet weights {chosen} cannot be fetched ({error}); set model.weights=none, or "
            f"put the file {chosen.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return state


def inflate(conv: nn.Conv2d, bands: int, rgb: tuple[int, int, int] | None) -> nn.Conv2d:
    """First convolution for any bands: red, green, blue keep their filters, others get the mean.

    Scaled so that equal bands give the response that three equal bands gave.
    """
    old = conv.weight.detach()  # (out, 3, 7, 7)
    new = old.mean(dim=1, keepdim=True).repeat(1, bands, 1, 1)
    for colour, band in enumerate(rgb or ()):
        new[:, band] = old[:, colour]
    new *= old.sum(dim=1, keepdim=True).abs().mean() / new.sum(dim=1, keepdim=True).abs().mean()
    made = nn.Conv2d(bands, conv.out_channels, 7, 2, 3, bias=False)
    made.weight = nn.Parameter(new)
    return made


def _set_stride(net: ResNet, stride: int) -> None:
    """Drop the strides of the later stages; dilate what follows, so that its filters still fit.

    Every token of the strided net is a token of the denser one (a trous, Holschneider 1989).
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    dilation = 1
    for layer, usual in ((net.layer2, 8), (net.layer3, 16), (net.layer4, 32)):
        if usual <= stride:
            continue
        for module in layer.modules():  # in the order in which data passes
            if isinstance(module, BasicBlock | Bottleneck):
                module.stride = 1
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
                if module.stride == (2, 2):
                    dilation *= 2  # the convolution that strode still sees the grid before it
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)


def encoder(
    backbone: str,
    bands: int,
    *,
    channels: int,
    stride: int,
    norm: str = "group",
    weights: str = "none",
    rgb: tuple[int, int, int] | None = None,
) -> nn.Sequential:
    """Images ``(B, bands, h, w)`` -> token maps ``(B, channels, h / stride, w / stride)``.

    Args:
        backbone: ``small``, ``resnet18`` or ``resnet50``.
        bands: of the input.
        channels: of the tokens; a 1 x 1 convolution brings a ResNet's own width to it.
        stride: px per token.
        norm: ``group`` or ``batch``.
        weights: ``none`` or ``imagenet``.
        rgb: see ``torchvision_resnet``.

    Raises:
        ConfigError: a stride the backbone cannot have; weights that do not fit it.
    """
    if stride not in STRIDES[backbone]:
        raise ConfigError(f"model.stride is {stride}, but {backbone} has {STRIDES[backbone]}.")
    if backbone == "small":
        if weights != "none":
            raise ConfigError("model.weights is imagenet, but backbone 'small' has none; use none.")
        return small_resnet(bands, channels, norm)
    body = torchvision_resnet(backbone, bands, stride, norm, weights, rgb)
    width = 512 if backbone == "resnet18" else 2048
    if width != channels:
        body.append(nn.Conv2d(width, channels, 1))
    return body


class Despeckle(nn.Module):
    """ln I -> ln of the despeckled intensity, as the input minus an estimated residual.

    The residual network sees ln I relative to box means of several sizes, so that scaling the
    intensity only shifts the result: f(I c) = c f(I). The last layer starts at zero: identity.
    Layout after SAR-DRN (Zhang et al. 2018): 3 x 3 convolutions of growing and falling dilation.
    """

    def __init__(self, channels: int = 16, dilations: Sequence[int] = (1, 2, 2, 1)) -> None:
        super().__init__()
        widths = [len(BOXES), *[channels] * (len(dilations) - 1), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=d, dilation=d)
            for before, after, d in zip(widths, widths[1:], dilations, strict=False)
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, log_intensity: Tensor) -> Tensor:
        """``(B, C, h, w)`` ln I -> same shape; each band by itself."""
        y = log_intensity.flatten(0, 1)[:, None]  # (B C, 1, h, w)
        level = y.mean(dim=(2, 3), keepdim=True)  # exp() of centred values cannot overflow
        intensity = (y - level).clamp(-20, 20).exp()
        x = torch.cat([y - level - box_mean(intensity, k).log() for k in BOXES], dim=1)
        for number, layer in enumerate(self.layers[:-1]):
            new = F.relu(layer(x))
            x = new if number == 0 else x + new
        return (y - self.layers[-1](x)).view_as(log_intensity)


def box_mean(images: Tensor, size: int) -> Tensor:
    """Mean over ``size`` x ``size`` px of ``(B, 1, h, w)``; mirrored borders (repeated if tiny)."""
    reach = size // 2
    mode = "reflect" if min(images.shape[2:]) > reach else "replicate"
    images = F.pad(images, (reach, reach, reach, reach), mode=mode)
    return F.avg_pool2d(F.avg_pool2d(images, (1, size), 1), (size, 1), 1)


class SarEncoder(nn.Module):
    """Despeckling front end, then a backbone that sees both the despeckled and the original bands.

    Input is standardised ln intensity; the std that standardised it, which may differ from scene
    to scene, takes it back to natural log units, where speckle has its known statistics.
    """

    def __init__(self, backbone: nn.Module, despeckler: Despeckle | None) -> None:
        super().__init__()
        self.despeckler, self.backbone = despeckler, backbone

    def forward(self, x: Tensor, log_std: Tensor) -> Tensor:
        """Standardised ln intensity ``(B, Cs, h, w)`` -> tokens ``(B, C, H, W)``.

        ``log_std (B, Cs, 1, 1)`` is the std that standardised it.
        """
        if self.despeckler is None:
            return self.backbone(x)
        clean = self.despeckler(x * log_std) / log_std
        return self.backbone(torch.cat([clean, x], dim=1))  # (B, 2 Cs, h, w)
