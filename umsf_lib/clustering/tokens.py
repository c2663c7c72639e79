"""Tokens to cluster: local statistics of a scene, or the features of a network.

Both are functions from a scene's index to a map ``(D, h, w)`` with one token per ``stride`` pixels,
so k-means, mixtures and plots accept either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor

from ..data.windows import PixelStore
from ..progress import Progress, each
from .smoothing import Ground, valid_weight

TokenMap = Callable[[int], Tensor]  # scene index -> (D, h, w)


class StatisticTokens:
    """Local statistics, standardised without labels as the bands of their sensor are.

    Mean and std of each dimension are mixed from those of all training scenes and those of the
    scene, in the shares of the layout's ``standardise``; spectral indices follow optical bands. The
    statistics are those of bands on one scale, so that nothing is standardised twice.
    """

    def __init__(
        self, store: PixelStore, train: Sequence[int], sigmas_px: Sequence[float], stride: int
    ):
        self.store, self.sigmas_px, self.stride = store, sigmas_px, stride
        self.fixed = moments(  # of all training scenes
            self._raw(scene)[:, token_validity(store, scene, stride)] for scene in train
        )

    def __call__(self, scene: int) -> Tensor:
        """Return the tokens ``(D, h, w)`` of a scene."""
        raw, valid = self._raw(scene), token_validity(self.store, scene, self.stride)
        valid = valid if valid.any() else torch.ones_like(valid)  # a scene of border only
        own = self._own_share(len(raw)).to(raw)
        mean, std = (
            (own * mine + (1 - own) * shared)[:, None, None]
            for mine, shared in zip(moments([raw[:, valid]]), self.fixed, strict=True)
        )
        return (raw - mean) / std

    def _raw(self, scene: int) -> Tensor:
        bands, _ = pixel_bands(self.store, scene)
        ground = Ground(bands, valid_weight(self.store, scene))
        return local_statistics(ground, self.sigmas_px, self.stride)

    def _own_share(self, dims: int) -> Tensor:
        """Return the share ``(D,)`` of the scene's own moments in those of each dimension."""
        layout, repeats = self.store.layout, 2 * len(self.sigmas_px)
        sar = len(layout.sensor("sar").bands) if "sar" in self.store.roles else 0
        shares = [layout.optical.own_share] * (dims // repeats - sar)
        shares += [layout.sensor("sar").own_share] * sar if sar else []
        return torch.tensor(shares).repeat(repeats)


def pixel_bands(store: PixelStore, scene: int) -> tuple[Tensor, list[str]]:
    """Return the bands of a scene on one scale, and the spectral indices they allow.

    Returns:
        ``(C, H, W)`` float32 and the ``C`` names: optical bands, ``ndvi``, ``ndwi`` (from
        stretched bands if the data is stretched), SAR bands as ln intensity. Bands are standardised
        by the moments of the training scenes, whatever the layout's ``standardise`` is.
    """
    windows, layout = store.scene(scene), store.layout
    parts: list[Tensor] = []
    names: list[str] = []
    if "optical" in windows:
        optical, bands = windows["optical"][0], layout.optical.bands
        parts.append(store.on_one_scale(optical, "optical", scene))
        names += bands
        raw = store.unscaled(optical, "optical", scene)
        for index, plus, minus in (("ndvi", "nir", "red"), ("ndwi", "green", "nir")):
            if plus in bands and minus in bands:
                a, b = raw[bands.index(plus)], raw[bands.index(minus)]  # (H, W) each
                # Reflectance may be negative over dark ground: keep the index in its bounds.
                parts.append(((a - b) / (a + b).clamp_min(1e-6)).clamp(-1, 1)[None])
                names.append(index)
    if "sar" in windows and layout.sar is not None:
        parts.append(store.on_one_scale(windows["sar"][0], "sar", scene))
        names += layout.sar.bands
    return torch.cat(parts), names


def local_statistics(ground: Ground, sigmas_px: Sequence[float], stride: int) -> Tensor:
    """Compute mean and log standard deviation around each token at several scales.

    Args:
        ground: with bands ``(C, H, W)``.
        sigmas_px: S sigmas of the Gaussian neighbourhoods, px.
        stride: px per token.

    Returns:
        ``(2 S C, ceil(H / stride), ceil(W / stride))``: per scale all means, then all log stds.
    """
    statistics = []
    for sigma in sigmas_px:
        mean = ground.blur(ground.bands, sigma)
        variance = ground.blur(ground.bands.square(), sigma) - mean.square()
        for values in (mean, 0.5 * variance.clamp_min(1e-4).log()):
            # Pooled at once: for a large scene, all of them at full size would fill the memory.
            statistics.append(ground.pool(values, stride))
    return torch.cat(statistics)


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute mean and std ``(D,)`` float32 of tokens from parts ``(D, n)``, one part at a time."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for tokens in parts:
        exact = tokens.double()
        count += tokens.shape[1]
        total, squares = total + exact.sum(dim=1), squares + exact.square().sum(dim=1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-6).float()


def token_validity(store: PixelStore, scene: int, stride: int) -> Tensor:
    """Mark tokens ``(h, w)`` bool of which at least half of the pixels are valid."""
    valid = store.valid(scene)[None].float()
    return F.avg_pool2d(valid, stride, ceil_mode=True)[0] >= 0.5


class PrincipalTokens:
    """First principal components of other tokens, fitted to a sample ``(n, D)`` of them."""

    def __init__(self, token_map: TokenMap, sample: np.ndarray, dims: int) -> None:
        self.token_map = token_map
        self.pca = PCA(dims, random_state=0).fit(sample)

    def __call__(self, scene: int) -> Tensor:
        """Return the tokens ``(dims, h, w)`` of a scene."""
        tokens = self.token_map(scene)  # (D, h, w)
        components = torch.from_numpy(self.pca.components_).to(tokens)  # (d, D)
        centred = tokens - torch.from_numpy(self.pca.mean_).to(tokens)[:, None, None]
        return torch.einsum("dc,chw->dhw", components, centred)  # (d, D) x (D, h, w)


class JoinedTokens:
    """Tokens of several kinds side by side, each kind scaled to a total variance of 1."""

    def __init__(self, kinds: Sequence[TokenMap], samples: Sequence[np.ndarray]) -> None:
        """Join kinds of tokens, given a sample ``(n, D)`` of each."""
        self.kinds = kinds
        self.scales = [1 / np.sqrt(sample.var(axis=0).sum()) for sample in samples]

    def __call__(self, scene: int) -> Tensor:
        """Return the tokens ``(sum of D, h, w)`` of a scene."""
        pairs = zip(self.kinds, self.scales, strict=True)
        return torch.cat([kind(scene) * scale for kind, scale in pairs])


def draw_tokens(
    token_map: TokenMap,
    store: PixelStore,
    scenes: Sequence[int],
    stride: int,
    count: int,
    seed: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Draw about ``count`` tokens ``(n, D)`` float64, see ``draw_places``."""
    drawn = []
    places_of = list(draw_places(store, scenes, stride, count, seed))
    for scene, places in each(places_of, progress, "draw tokens"):
        tokens = token_map(scene).flatten(1).T.cpu().numpy()  # (D, h, w) -> (D, h w) -> (h w, D)
        drawn.append(tokens[np.sort(places)])
    return np.concatenate(drawn).astype(np.float64)


def draw_places(
    store: PixelStore, scenes: Sequence[int], stride: int, count: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw tokens of valid ground, equally many from each scene.

    If there are more scenes than ``count`` (as with small tiles), ``count`` scenes are drawn first.

    Yields:
        A scene, and its tokens ``(n,)`` int64 as indices of the flattened ``(h, w)``.
    """
    rng = np.random.default_rng(seed)
    if len(scenes) > count:
        scenes = np.sort(rng.choice(scenes, count, replace=False)).tolist()
    for scene in scenes:
        valid = token_validity(store, scene, stride).flatten().nonzero()[:, 0].cpu().numpy()
        wanted = min(len(valid), count // len(scenes))
        yield scene, valid[rng.choice(len(valid), wanted, replace=False)]
