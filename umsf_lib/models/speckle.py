"""Speckle: simulation, classical filters, statistics, and the random numbers behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from torch import Tensor

from ..run import to_device


def patchwork(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw piecewise constant ln reflectivity ``(N, 1, size, size)``: cells and bright points."""
    sites = torch.rand(count, 12, 2, generator=generator) * size
    levels = torch.randn(count, 12, generator=generator)
    axis = torch.arange(size, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)  # (1, s^2, 2)
    nearest = torch.cdist(grid.expand(count, -1, 2), sites).argmin(dim=2)  # (N, s^2)
    cells = levels.gather(1, nearest).view(count, 1, size, size)  # (N, s^2) -> (N, 1, s, s)
    points = torch.rand(cells.shape, generator=generator) < 0.002
    return cells + 4.0 * points


def add_speckle(clean: Tensor, looks: int, generator: torch.Generator, correlated: bool) -> Tensor:
    """Multiply by fresh speckle: ln intensity ``clean (B, 1, h, w)`` -> same shape, with speckle.

    See ``draw_speckle`` for ``looks`` and ``correlated``.
    """
    shape = (clean.shape[0], clean.shape[1], clean.shape[2], clean.shape[3])
    source = noise_source(generator, clean.device)
    noise = draw_speckle(shape, looks, source, clean.device, correlated=correlated)
    return clean + noise.clamp_min(1e-6).log()


def enl(intensity: np.ndarray) -> float:
    """Compute the equivalent number of looks of a homogeneous area: mean^2 / variance."""
    return float(intensity.mean() ** 2 / intensity.var())


def boxcar(intensity: np.ndarray, size: int) -> np.ndarray:
    """Average ``(h, w)`` over ``size`` x ``size`` px; the ENL of white speckle grows by size^2."""
    return uniform_filter(intensity.astype(np.float64), size, mode="mirror")


def lee(intensity: np.ndarray, size: int, looks: float) -> np.ndarray:
    """Move intensity ``(h, w)`` towards its local mean in flat areas (Lee filter, Lee 1980).

    The weight of the pixel itself is 1 - C_u^2 / C_i^2, clipped to [0, 1], where C_u^2 = 1 / looks
    and C_i is the local coefficient of variation.
    """
    mean = boxcar(intensity, size)
    variance = np.maximum(boxcar(intensity.astype(np.float64) ** 2, size) - mean**2, 0)
    weight = 1 - mean**2 / looks / np.maximum(variance, 1e-30)
    return mean + np.clip(weight, 0, 1) * (intensity - mean)


def ratio_statistics(intensity: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    """Describe the ratio of intensity to estimate, both ``(h, w)`` (Gomez et al. 2017).

    A good filter leaves pure speckle in the ratio.

    Returns:
        ``mean`` (ideally 1), ``enl`` (ideally that of the input speckle) and ``lag1``, the
        correlation of horizontal neighbours (ideally that of the input speckle; 0 if white).
    """
    ratio = intensity / estimate
    lag1 = np.corrcoef(ratio[:, :-1].ravel(), ratio[:, 1:].ravel())[0, 1]
    return {"mean": float(ratio.mean()), "enl": enl(ratio), "lag1": float(lag1)}


@dataclass(frozen=True)
class Share:
    """Source of random numbers for a batch that several processes share.

    Each process draws the numbers of the whole batch and keeps the rows of its own windows. So all
    generators stay equal, and a window's numbers do not depend on the process that computes it.
    """

    generator: torch.Generator
    rank: int = 0
    world_size: int = 1


Source = torch.Generator | Share


def draw(shape: tuple[int, ...], source: Source, device: torch.device) -> Tensor:
    """Draw standard normal numbers from a generator that may be on another device."""
    return _draw(torch.randn, shape, source, device)


def draw_uniform(shape: tuple[int, ...], source: Source, device: torch.device) -> Tensor:
    """Draw uniform numbers in [0, 1) from a generator that may be on another device."""
    return _draw(torch.rand, shape, source, device)


def _draw(
    make: Callable[..., Tensor], shape: tuple[int, ...], source: Source, device: torch.device
) -> Tensor:
    share = source if isinstance(source, Share) else Share(source)
    rows, home = shape[0], share.generator
    whole = (rows * share.world_size, *shape[1:])
    numbers = make(whole, generator=home, device=home.device)
    return to_device(numbers[share.rank * rows :][:rows], device)


def noise_source(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator for draws at every pixel: on a GPU a new one there, else the given one.

    Args:
        generator: CPU generator; it seeds the one on the GPU.
        device: device of the pixels.
    """
    if device.type != "cuda":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


@functools.cache
def kernel_3x3(edge: float, device: torch.device) -> Tensor:
    """Return the outer product ``(3, 3)`` of (edge, 1, edge) with itself, cached on the device."""
    line = torch.tensor([edge, 1.0, edge])
    return (line[:, None] * line).to(device)  # (3, 1) x (3,) -> (3, 3)


def draw_speckle(
    shape: tuple[int, int, int, int],
    looks: int,
    source: Source,
    device: torch.device,
    *,
    correlated: bool = True,
) -> Tensor:
    """Draw intensity speckle ``(B, C, h, w)`` of mean 1: Gamma with shape ``looks``, scale 1/looks.

    It follows the physics (Goodman 1976): the mean over looks of the squared modulus of a complex
    Gaussian field. Blurring the field first correlates neighbours, as in resampled detected
    products, and keeps the Gamma distribution exact.
    """
    batch, channels, height, width = shape
    field = draw((batch * channels, 2 * looks, height + 2, width + 2), source, device)
    edge = 0.5 if correlated else 0.0
    kernel = kernel_3x3(edge, device) / (1 + 2 * edge**2)  # unit energy
    kernel = kernel.expand(2 * looks, 1, 3, 3)
    field = F.conv2d(field, kernel, groups=2 * looks)  # (B*C, 2L, h, w), unit variance
    return field.square().mean(dim=1).view(shape)  # (B*C, 2L, h, w) -> (B, C, h, w)
