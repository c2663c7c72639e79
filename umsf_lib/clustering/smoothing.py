"""Edge-aware smoothing of cluster posteriors: the fast guided filter (He & Sun 2015).

Around each place the posteriors are fitted as a linear function of the bands, and overlapping fits
are averaged. On uniform ground this is a plain average. Where the bands change, the posteriors
change with them. A Gaussian of the same width would mix neighbouring fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.windows import PixelStore

NODATA_WEIGHT = 1e-4  # instead of 0: sums of weights stay positive where no ground is near
RIDGE = 0.01  # variance of the standardised bands below which ground counts as uniform
STEP_PX = 4  # the fits are made at least this coarse; they vary slowly
GRAIN_PX = 1.0  # sigma of the blur of the guide: a single speckle pixel is no edge


@dataclass(frozen=True)
class Ground:
    """The bands of a scene, and averages to which nodata contributes nearly nothing.

    Attributes:
        bands: ``(C, H, W)`` float32, standardised.
        weight: ``(1, H, W)``, 1 on valid ground and ``NODATA_WEIGHT`` elsewhere; None if all is
            valid.
    """

    bands: Tensor
    weight: Tensor | None = None

    def blur(self, maps: Tensor, sigma: float) -> Tensor:
        """Average maps ``(K, H, W)`` around each place by a Gaussian of ``sigma`` px."""
        return self._mean(maps, lambda x: gaussian_blur(x, sigma))

    def pool(self, maps: Tensor, size: int) -> Tensor:
        """Average each ``size`` x ``size`` block of maps ``(K, H, W)``."""
        return self._mean(maps, lambda x: _block_means(x, size))

    def coarser(self, size: int) -> Ground:
        """Return the ground with one pixel per ``size`` x ``size`` block."""
        weight = None if self.weight is None else _block_means(self.weight, size)
        return Ground(self.pool(self.bands, size), weight)

    def _mean(self, maps: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean: normalized convolution (Knutsson & Westin 1993)."""
        if self.weight is None:
            return average(maps)
        return average(maps * self.weight) / average(self.weight)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Smooth ``(..., C, H, W)`` by a Gaussian, cut off at 3 sigma; borders repeat the edge."""
    reach, channels = max(1, math.ceil(3 * sigma)), images.shape[-3]
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    line = torch.exp(-0.5 * (x / sigma) ** 2)
    line /= line.sum()
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    images = F.conv2d(images, line.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(images, line[:, None].expand(channels, 1, -1, 1), groups=channels)


def _block_means(maps: Tensor, size: int) -> Tensor:
    """Blocks at the far edges may be smaller: ``(K, H, W)`` -> ``(K, ceil(H/size), ...)``."""
    return F.avg_pool2d(maps, size, ceil_mode=True)


def valid_weight(store: PixelStore, scene: int) -> Tensor | None:
    """Return the weight of a scene's pixels, see ``Ground``."""
    if store.whole[scene]:
        return None
    return store.valid(scene)[None].float().clamp_min(NODATA_WEIGHT)


def guide_of(store: PixelStore, scene: int) -> Ground:
    """Return the bands of all sensors of a scene."""
    windows = store.scene(scene)
    bands = torch.cat([windows[role][0] for role in store.roles])
    return Ground(bands, valid_weight(store, scene))


def smooth_tokens(posteriors: Tensor, guide: Ground, stride: int, sigma_px: float) -> Tensor:
    """Smooth posteriors ``(K, h, w)`` at ``stride`` along the edges of the guide ``(C, H, W)``.

    ``sigma_px`` is the sigma of the Gaussian neighbourhood of a fit; 0 means no smoothing.
    """
    if sigma_px == 0:
        return posteriors
    coarse = guide.coarser(stride)
    slopes, offsets = linear_fits(posteriors, coarse, sigma_px / stride)
    # (C, K, h, w) x (C, h, w) -> (K, h, w)
    return _posteriors(offsets + torch.einsum("ckhw,chw->khw", slopes, coarse.bands))


def smooth_pixels(posteriors: Tensor, guide: Ground, stride: int, sigma_px: float) -> Tensor:
    """Bring posteriors ``(K, h, w)`` at ``stride`` to the pixels ``(K, H, W)`` of the guide.

    The fits are made at ``max(stride, STEP_PX)`` and applied to the bands of each pixel, so borders
    lie where the image has them. With ``sigma_px`` 0 the tokens are only interpolated.
    """
    height, width = guide.bands.shape[1:]
    if sigma_px == 0:
        return _enlarge(posteriors, stride, height, width)
    pooled = max(1, STEP_PX // stride)
    step = pooled * stride
    coarse = guide.coarser(stride).pool(posteriors, pooled)
    slopes, offsets = linear_fits(coarse, guide.coarser(step), sigma_px / step)
    result = _enlarge(offsets, step, height, width)
    for slope, band in zip(slopes, guide.bands, strict=True):  # C K maps would fill the memory
        fine = guide.blur(band[None], GRAIN_PX)  # (1, H, W)
        result.addcmul_(_enlarge(slope, step, height, width), fine)
    return _posteriors(result)


def linear_fits(maps: Tensor, ground: Ground, sigma: float) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of ``maps (K, h, w)`` on the bands ``(C, h, w)`` around each place.

    Each fit is weighted by a Gaussian. Each place gets the mean of all fits that reach it, weighted
    in the same way.

    Returns:
        Slopes ``(C, K, h, w)`` and offsets ``(K, h, w)``.
    """
    bands = ground.bands
    mean, centre = ground.blur(maps, sigma), ground.blur(bands, sigma)
    pairs = list(zip(bands, centre, strict=True))
    # Local covariances of the bands (C, C, h, w), and of the bands with the maps (C, K, h, w).
    spread = torch.stack([ground.blur(bands * b, sigma) - centre * middle for b, middle in pairs])
    shared = torch.stack([ground.blur(maps * b, sigma) - mean * middle for b, middle in pairs])
    ridge = RIDGE * torch.eye(len(bands), device=bands.device)
    # The ridge makes it solvable, so solve_ex may skip the check, which would wait for the GPU.
    # (C, ., h, w) -> (h, w, C, .)
    slopes, _ = torch.linalg.solve_ex(
        spread.permute(2, 3, 0, 1) + ridge, shared.permute(2, 3, 0, 1)
    )
    slopes = slopes.permute(2, 3, 0, 1)  # (h, w, C, K) -> (C, K, h, w)
    offsets = mean - torch.einsum("ckhw,chw->khw", slopes, centre)  # (C, K, h, w) -> (K, h, w)
    return torch.stack([ground.blur(x, sigma) for x in slopes]), ground.blur(offsets, sigma)


def _enlarge(maps: Tensor, step: int, height: int, width: int) -> Tensor:
    """Upsample ``(K, h, w)`` bilinearly, with aligned token centres, and crop to the scene."""
    if step > 1:
        maps = F.interpolate(maps[None], scale_factor=step, mode="bilinear", align_corners=False)[0]
    return maps[:, :height, :width]


def _posteriors(maps: Tensor) -> Tensor:
    """Clip and renormalise: linear fits sum to 1 over K but may leave [0, 1] a little."""
    maps = maps.clamp_min_(0)
    return maps.div_(maps.sum(dim=0))
