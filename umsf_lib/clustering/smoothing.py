"""Edge-aware smoothing of cluster posteriors: the fast guided filter (He & Sun 2015).

Around each place the posteriors are fitted as a linear function of the bands, and overlapping fits
are averaged. On uniform ground this is a plain average. Where the bands change, the posteriors
change with them. A Gaussian of the same width would mix neighbouring fields.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.windows import PixelStore


def gaussian_line(sigma: float, device: torch.device) -> Tensor:
    """Return a normalised 1-D Gaussian, truncated at three sigma."""
    reach = max(1, math.ceil(3 * sigma))
    x = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    line = torch.exp(-0.5 * (x / sigma) ** 2)
    return line / line.sum()


def gaussian_blur(images: Tensor, sigma: float, weight: Tensor | None = None) -> Tensor:
    """Smooth ``(B, C, H, W)`` by a Gaussian; borders repeat the edge.

    A ``weight`` that broadcasts to the images makes it a weighted mean (normalized convolution,
    Knutsson & Westin 1993).
    """
    if weight is not None:
        return gaussian_blur(images * weight, sigma) / gaussian_blur(weight, sigma)
    line = gaussian_line(sigma, images.device)
    reach, channels = len(line) // 2, images.shape[1]
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    images = F.conv2d(images, line.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(images, line[:, None].expand(channels, 1, -1, 1), groups=channels)


def pool(images: Tensor, size: int, weight: Tensor | None = None) -> Tensor:
    """Average each ``size`` x ``size`` block of ``(..., H, W)``, weighted if asked."""
    if weight is not None:
        return pool(images * weight, size) / pool(weight, size)
    return F.avg_pool2d(images, size, ceil_mode=True)


NODATA_WEIGHT = 1e-4  # instead of 0: sums of weights stay positive where no ground is near


def valid_weight(store: PixelStore, scene: int) -> Tensor | None:
    """Return ``(1, H, W)``: 1 on valid ground, nearly 0 elsewhere; None if all is valid."""
    if store.whole[scene]:
        return None
    return store.valid(scene)[None].float().clamp_min(NODATA_WEIGHT)


RIDGE = 0.01  # variance of the standardised bands below which ground counts as uniform
STEP_PX = 4  # the fits are made at least this coarse; they vary slowly
GRAIN_PX = 1.0  # sigma of the blur of the guide: a single speckle pixel is no edge


def guide_of(store: PixelStore, scene: int) -> Tensor:
    """Return the standardised bands ``(C, H, W)`` of all sensors of a scene."""
    windows = store.scene(scene)
    return torch.cat([windows[role][0] for role in store.roles])


def smooth_tokens(
    posteriors: Tensor,
    guide: Tensor,
    stride: int,
    sigma_px: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Smooth posteriors ``(K, h, w)`` at ``stride`` along the edges of the guide ``(C, H, W)``.

    Args:
        posteriors: sum to 1 over K, as the result does.
        guide: float32, standardised.
        stride: px per token.
        sigma_px: sigma of the Gaussian neighbourhood of a fit, px; 0 for no smoothing.
        weight: ``(1, H, W)`` of the pixels, see ``valid_weight``.
    """
    if sigma_px == 0:
        return posteriors
    bands = pool(guide, stride, weight)
    weight = None if weight is None else pool(weight, stride)
    slopes, offsets = linear_fits(posteriors, bands, sigma_px / stride, weight)
    return _posteriors(offsets + torch.einsum("ckhw,chw->khw", slopes, bands))


def smooth_pixels(
    posteriors: Tensor,
    guide: Tensor,
    stride: int,
    sigma_px: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Bring posteriors ``(K, h, w)`` at ``stride`` to the pixels ``(K, H, W)`` of the guide.

    The fits are made at ``max(stride, STEP_PX)`` and applied to the bands of each pixel, so borders
    lie where the image has them. The arguments are those of ``smooth_tokens``; with ``sigma_px`` 0
    the tokens are only interpolated.
    """
    height, width = guide.shape[1:]
    if sigma_px == 0:
        return _enlarge(posteriors, stride, height, width)
    pooled = max(1, STEP_PX // stride)
    step = pooled * stride
    coarse = pool(posteriors, pooled, None if weight is None else pool(weight, stride))
    bands, coarse_weight = pool(guide, step, weight), None
    if weight is not None:
        coarse_weight, weight = pool(weight, step), weight[None]
    slopes, offsets = linear_fits(coarse, bands, sigma_px / step, coarse_weight)
    result = _enlarge(offsets, step, height, width)
    for slope, band in zip(slopes, guide, strict=True):  # C K maps at once would fill the memory
        fine = gaussian_blur(band[None, None], GRAIN_PX, weight)[0]
        result.addcmul_(_enlarge(slope, step, height, width), fine)
    return _posteriors(result)


def linear_fits(
    maps: Tensor, bands: Tensor, sigma: float, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of ``maps (K, h, w)`` on ``bands (C, h, w)`` around each place.

    Each fit is weighted by a Gaussian, and by ``weight (1, h, w)`` if there is one. Each place gets
    the mean of all fits that reach it, weighted in the same way.

    Returns:
        Slopes ``(C, K, h, w)`` and offsets ``(K, h, w)``.
    """

    def local(x: Tensor) -> Tensor:
        return gaussian_blur(x[None], sigma, None if weight is None else weight[None])[0]

    mean, centre = local(maps), local(bands)
    pairs = list(zip(bands, centre, strict=True))
    # Local covariances of the bands (C, C, h, w), and of the bands with the maps (C, K, h, w).
    spread = torch.stack([local(bands * band) - centre * middle for band, middle in pairs])
    shared = torch.stack([local(maps * band) - mean * middle for band, middle in pairs])
    ridge = RIDGE * torch.eye(len(bands), device=bands.device)
    # The ridge makes it solvable, so solve_ex may skip the check, which would wait for the GPU.
    # (C, ., h, w) -> (h, w, C, .)
    slopes, _ = torch.linalg.solve_ex(
        spread.permute(2, 3, 0, 1) + ridge, shared.permute(2, 3, 0, 1)
    )
    slopes = slopes.permute(2, 3, 0, 1)  # (h, w, C, K) -> (C, K, h, w)
    offsets = mean - torch.einsum("ckhw,chw->khw", slopes, centre)  # (C, K, h, w) -> (K, h, w)
    return torch.stack([local(slope) for slope in slopes]), local(offsets)


def _enlarge(maps: Tensor, step: int, height: int, width: int) -> Tensor:
    """Upsample ``(K, h, w)`` bilinearly, with aligned token centres, and crop to the scene."""
    if step > 1:
        maps = F.interpolate(maps[None], scale_factor=step, mode="bilinear", align_corners=False)[0]
    return maps[:, :height, :width]


def _posteriors(maps: Tensor) -> Tensor:
    """Clip and renormalise: linear fits sum to 1 over K but may leave [0, 1] a little."""
    maps = maps.clamp_min_(0)
    return maps.div_(maps.sum(dim=0))
