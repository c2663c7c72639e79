"""Optical and SAR encoders, from images to token maps, and the SAR despeckling front end.

There is a small ResNet for laptops, and torchvision's ResNets for GPUs. Every encoder takes any
number of bands. ImageNet weights are optional and are inflated to the given bands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError, check_choice

# Importing torchvision also imports torch's compiler, a third of all start-up time. The small
# ResNet needs neither, so torchvision is imported only where its networks are built.
if TYPE_CHECKING:
    from torchvision.models import ResNet

BOXES = (3, 7, 15)  # px; the first box shows detail, the last estimates the mean level
PYRAMIDS = {
    "small": (16, 32, 64, 128, 256),
    "resnet18": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "convnext_tiny": (96, 192, 384, 768),
}  # channels of the stages, see ``pyramid``
STRIDES = {"small": (4,), "resnet18": (4, 8, 16, 32), "resnet50": (4, 8, 16, 32)}


def group_norm(channels: int) -> nn.GroupNorm:
    """Build group norm with groups of 16 channels.

    It uses the statistics of one sample only (a window, or a row in a projection head), so nothing
    leaks within a batch. But it subtracts the sample's own mean, so a window of only water looks
    like a window of only fields.
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
            # Max pooling over one pixel applies the stride. A strided 1 x 1 convolution would do
            # the same, but oneDNN's kernel for it (AVX2, torch 2.15) overruns its memory in
            # channels last with fewer than eight channels.
            self.shortcut = nn.Sequential(
                nn.MaxPool2d(1, stride), nn.Conv2d(before, after, 1, bias=False), norm(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, before, h, w)`` to ``(B, after, h / stride, w / stride)``."""
        return F.relu(self.shortcut(x) + self.body(x))


def small_resnet(bands: int, channels: int, norm: str) -> nn.Sequential:
    """Build a ResNet of stride 4 (shows roads) and receptive field about 40 px (covers a village).

    It maps ``(B, bands, h, w)`` to ``(B, channels, h / 4, w / 4)``.
    """
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
    """Build a torchvision ResNet without its pooling and classifier; see ``encoder``.

    Below a stride of 32, later stages are dilated instead of strided.

    Raises:
        ConfigError: if ImageNet weights are combined with group norm or cannot be fetched.
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
    return nn.Sequential(*list(net.children())[:-2])


def fetch_weights(name: str) -> dict[str, Tensor]:
    """Load the ImageNet weights of a torchvision ResNet from the local cache, or download them.

    Raises:
        ConfigError: if they cannot be fetched.
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
    """Adapt the first convolution: red, green and blue keep their filters, others get the mean.

    The filters are scaled so that equal bands give the response that three equal bands gave.
    """
    old = conv.weight.detach()  # (out, 3, 7, 7)
    new = old.mean(dim=1, keepdim=True).repeat(1, bands, 1, 1)  # (out, bands, 7, 7)
    for colour, band in enumerate(rgb or ()):
        new[:, band] = old[:, colour]
    new *= old.sum(dim=1, keepdim=True).abs().mean() / new.sum(dim=1, keepdim=True).abs().mean()
    made = nn.Conv2d(bands, conv.out_channels, 7, 2, 3, bias=False)
    made.weight = nn.Parameter(new)
    return made


def _set_stride(net: ResNet, stride: int) -> None:
    """Remove the strides of the later stages, and dilate the convolutions that follow.

    Each token of the strided network is then a token of the denser one (a trous algorithm,
    Holschneider 1989).
    """
    dilation = 1
    for layer, usual in ((net.layer2, 8), (net.layer3, 16), (net.layer4, 32)):
        if usual <= stride:
            continue
        for conv in (m for m in layer.modules() if isinstance(m, nn.Conv2d)):  # in data's order
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
                if conv.stride == (2, 2):
                    dilation *= 2  # not for this convolution: its input grid is unchanged
            conv.stride = (1, 1)


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
    """Build an encoder: ``(B, bands, h, w) -> (B, channels, h / stride, w / stride)``.

    Args:
        backbone: ``small``, ``resnet18`` or ``resnet50``.
        bands: number of input bands.
        channels: token width; a 1 x 1 convolution adapts a ResNet of another width.
        stride: px per token.
        norm: ``group`` or ``batch``; ImageNet weights need ``batch``.
        weights: ``none`` or ``imagenet``.
        rgb: positions of red, green and blue among the bands, for the weights; None for SAR.

    Raises:
        ConfigError: if the backbone does not support this stride or these weights.
    """
    if stride not in STRIDES[backbone]:
        raise ConfigError(
            f"model.stride is {stride}, but backbone {backbone} supports {STRIDES[backbone]}; "
            "set model.stride to one of these."
        )
    if backbone == "small":
        if weights != "none":
            raise ConfigError(
                "model.weights is imagenet, but backbone 'small' has no ImageNet weights; set "
                "model.weights=none."
            )
        return small_resnet(bands, channels, norm)
    body = torchvision_resnet(backbone, bands, stride, norm, weights, rgb)
    width = 512 if backbone == "resnet18" else 2048
    if width != channels:
        body.append(nn.Conv2d(width, channels, 1))
    return body


def pyramid(
    backbone: str, bands: int, weights: str = "none", rgb: tuple[int, int, int] | None = None
) -> tuple[nn.ModuleList, tuple[int, ...]]:
    """Build the stages of an encoder, from fine to coarse, each of which reads the one before.

    ``small`` has five, with strides 1, 2, 4, 8, 16, of which the first three are those of
    ``small_resnet``; ResNets have five, with strides 2, 4, 8, 16, 32; ``convnext_tiny`` has four,
    with strides 4, 8, 16, 32, and drops blocks as often as in ASANet.

    Args:
        backbone: a key of ``PYRAMIDS``.
        bands: number of input bands.
        weights: ``imagenet``, or random ones.
        rgb: see ``encoder``.

    Returns:
        The stages and the number of channels of each.

    Raises:
        ConfigError: the backbone is unknown, or has no ImageNet weights here.
    """
    check_choice("backbone", backbone, PYRAMIDS)
    if weights == "imagenet" and not backbone.startswith("resnet"):
        raise ConfigError(
            f"supervised.weights is imagenet, which backbone {backbone!r} does not have here; set "
            "supervised.weights=none, or supervised.backbone to resnet18 or resnet50."
        )
    if backbone == "small":
        body = small_resnet(bands, 64, "batch")
        deeper = [ResidualBlock(c, 2 * c, 2, nn.BatchNorm2d) for c in (64, 128)]
        return nn.ModuleList([body[:3], body[3], body[4:], *deeper]), PYRAMIDS[backbone]
    from torchvision.models import get_model

    if backbone == "convnext_tiny":
        parts = list(get_model(backbone, weights=None, stochastic_depth_prob=0.4).features)
        parts[0][0] = nn.Conv2d(bands, 96, 4, 4)
        pairs = zip(parts[::2], parts[1::2], strict=True)  # a stem or reduction, then the blocks
        stages = [nn.Sequential(*pair) for pair in pairs]
    else:
        net = get_model(backbone, weights=None)
        if weights == "imagenet":
            net.load_state_dict(fetch_weights(backbone))
            conv = inflate(net.conv1, bands, rgb)
        else:
            conv = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        stem, first = nn.Sequential(conv, net.bn1, net.relu), nn.Sequential(net.maxpool, net.layer1)
        stages = [stem, first, net.layer2, net.layer3, net.layer4]
    return nn.ModuleList(stages), PYRAMIDS[backbone]


class Despeckle(nn.Module):
    """Residual network from ln I to ln of the despeckled intensity: it subtracts estimated speckle.

    It sees ln I relative to box means of several sizes, so scaling the intensity only shifts the
    result in the log: f(c I) = c f(I). The last layer starts at zero, so training starts from the
    identity. The layout follows SAR-DRN (Zhang et al. 2018): 3 x 3 convolutions whose dilation
    rises and falls.
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
        """Despeckle ln I ``(B, C, h, w)``, each band by itself; the shape stays the same."""
        y = log_intensity.flatten(0, 1)[:, None]  # (B, C, h, w) -> (B C, 1, h, w)
        level = y.mean(dim=(2, 3), keepdim=True)  # exp() of centred values cannot overflow
        intensity = (y - level).clamp(-20, 20).exp()
        x = torch.cat([y - level - box_mean(intensity, k).log() for k in BOXES], dim=1)
        for number, layer in enumerate(self.layers[:-1]):
            new = F.relu(layer(x))
            x = new if number == 0 else x + new
        return (y - self.layers[-1](x)).view_as(log_intensity)  # (B C, 1, h, w) -> (B, C, h, w)


def box_mean(images: Tensor, size: int) -> Tensor:
    """Average ``(B, 1, h, w)`` over ``size`` x ``size`` px; the shape stays the same.

    Borders are mirrored, or repeated where the image is too small for that.
    """
    reach = size // 2
    mode = "reflect" if min(images.shape[2:]) > reach else "replicate"
    images = F.pad(images, (reach, reach, reach, reach), mode=mode)
    return F.avg_pool2d(F.avg_pool2d(images, (1, size), 1), (size, 1), 1)


class SarEncoder(nn.Module):
    """Despeckling front end, then a backbone that sees both the despeckled and the original bands.

    The input is standardised ln intensity. Its std, which may differ from scene to scene, converts
    it back to natural log units, in which the statistics of speckle are known.
    """

    def __init__(self, backbone: nn.Module, despeckler: Despeckle | None) -> None:
        super().__init__()
        self.despeckler, self.backbone = despeckler, backbone

    def forward(self, x: Tensor, log_std: Tensor) -> Tensor:
        """Encode standardised ln intensity ``(B, Cs, h, w)`` as tokens ``(B, C, H, W)``.

        ``log_std (B, Cs, 1, 1)`` is the std that standardised it.
        """
        if self.despeckler is None:
            return self.backbone(x)
        clean = self.despeckler(x * log_std) / log_std
        return self.backbone(torch.cat([clean, x], dim=1))  # (B, 2 Cs, h, w)
