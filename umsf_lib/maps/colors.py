"""Colours for clusters without names: blue for water, green for vegetation, where bands tell it.

The means of a cluster over all mapped scenes decide. Normalised differences need no unit:

- Water has an NDWI above 0 (green against near infrared; McFeeters 1996) and is dark in SAR.
  Without near infrared it must be dark in SAR and in optical, and absorb red.
- Vegetation has a high NDVI (near infrared against red; Tucker 1979) or, without near infrared, a
  high GRVI (green against red; Motohka et al. 2010). VARI (Gitelson et al. 2002) is no choice,
  because its denominator passes 0 over water in stretched bands.

The levels of stretched bands mean nothing, so they are held against the median cluster, those of
reflectance against fixed levels. A cluster in doubt gets neither blue nor green.
"""

from __future__ import annotations

from collections.abc import Iterable
from colorsys import hls_to_rgb

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from scipy.optimize import linear_sum_assignment

from ..data.layout import LandClass, Layout
from ..data.scene_set import SceneSet
from ..figures.imagery import Array, Rgb

KINDS = WATER, VEGETATION = "water-like", "vegetation-like"
INDICES = {"ndvi": ("nir", "red"), "ndwi": ("green", "nir"), "grvi": ("green", "red")}
FIXED = {"ndvi": 0.4, "ndwi": 0.0}  # levels for reflectance
MORE = {"ndvi": 0.15, "ndwi": 0.15, "grvi": 0.08}  # than the median cluster, for stretched bands
SNOW = 1.5  # times as bright as the median cluster: snow and cloud can have an NDWI above 0
# Of water in stretched bands: ln intensity less that of the median cluster (-4.3 dB) and, without
# near infrared, brightness as a share of it.
DARK_SAR, DARK = -1.0, 0.8
# Found by a search: any two of these 20 are at least 13 apart in CIELAB for readers who cannot see
# red or green (simulated after Machado et al. 2009), and 28 for others.
BLUES = ("#08306B", "#2171B5", "#9ED0F5")  # from dark to bright
GREENS = ("#0A3D14", "#1E9A48", "#B9EA78")  # from most to least green
OTHERS = (  # from dark to bright in SAR
    *("#EEE6D6", "#CAB877", "#6A6640", "#8B561A", "#473F42", "#868891", "#975964"),
    *("#F29E4B", "#E09C8F", "#80091E", "#FF98C0", "#511F4A", "#9F5391", "#B5AAFC"),
)


def cluster_means(
    scenes: SceneSet, maps: Iterable[tuple[int, Array]], num_clusters: int
) -> pd.DataFrame:
    """Average the bands of each cluster over its valid pixels in some scenes.

    Args:
        scenes: prepared scenes.
        maps: index of a scene, and its cluster ids ``(H, W)``: 0 to K - 1 where it is valid.
        num_clusters: K.

    Returns:
        A row per cluster, NaN where it does not occur: the optical bands as stored, ``sar`` (ln
        intensity of the first SAR band, if there is SAR), and ``share`` of all pixels.
    """
    names = [*scenes.layout.optical.bands, *(["sar"] if scenes.layout.sar else [])]
    sizes, sums = np.zeros(num_clusters), np.zeros((len(names), num_clusters))
    for scene, clusters in maps:
        valid, log_sar = np.asarray(scenes.plane("valid", scene)), scenes.log_sar(scene)
        planes = [*scenes.plane("optical", scene), *([] if log_sar is None else [log_sar])]
        ids = clusters[valid]  # (n,)
        sizes += np.bincount(ids, minlength=num_clusters)
        sums += [np.bincount(ids, plane[valid], num_clusters) for plane in planes]
    means = pd.DataFrame(sums.T, columns=names).div(np.where(sizes, sizes, np.nan), axis=0)
    return means.assign(share=sizes / sizes.sum())


def judged(means: pd.DataFrame, layout: Layout) -> tuple[pd.DataFrame, str]:
    """Find the clusters that look like water or vegetation by the rules of this module.

    Args:
        means: see ``cluster_means``.
        layout: names and scaling of the bands.

    Returns:
        The table with the columns ``brightness`` (of the shown bands; 1: median cluster), ``ndvi``,
        ``ndwi`` and ``grvi`` if the bands allow them, and ``kind`` (``water-like``,
        ``vegetation-like`` or empty); and how it was decided, in words.
    """
    optical = layout.optical
    shown = means[[optical.bands[band] for band in optical.rgb]].mean(axis=1)
    table = means.assign(brightness=shown / shown.median())
    for name, pair in INDICES.items():
        if set(pair) <= set(optical.bands):
            plus, minus = (means[band] for band in pair)
            table[name] = ((plus - minus) / (plus + minus).clip(lower=1e-6)).clip(-1, 1)
    calibrated = optical.scaling == "reflectance"
    water, blue = _water(table, calibrated)
    plants, green = _vegetation(table, calibrated)
    table["kind"] = np.select([water, plants], KINDS, "")
    blues, greens = (f"{(table['kind'] == kind).sum()} of {len(table)}" for kind in KINDS)
    return table, f"blue ({blues} clusters): {blue}; green ({greens}): {green}"


def _water(table: pd.DataFrame, calibrated: bool) -> tuple[pd.Series[bool], str]:
    echo = table["sar"] - table["sar"].median() if "sar" in table else None
    if "ndwi" in table and (calibrated or echo is not None):
        found, how = _high(table, "ndwi", calibrated)
        found &= table["brightness"] < SNOW
        if echo is None:
            return found, f"{WATER} by {how}"
        return found & (echo < (0 if calibrated else DARK_SAR)), f"{WATER} by {how}, dark in SAR"
    if "grvi" in table and echo is not None:
        absorbs = table["grvi"] > table["grvi"].median()
        found = (echo < DARK_SAR) & (table["brightness"] < DARK) & absorbs
        return found, f"{WATER}, dark in SAR and in optical, as there is no nir"
    return table["share"] < 0, "not given, as water needs green, and nir in reflectance or SAR"


def _vegetation(table: pd.DataFrame, calibrated: bool) -> tuple[pd.Series[bool], str]:
    if "ndvi" in table:
        found, how = _high(table, "ndvi", calibrated)
        return found, f"{VEGETATION} by {how}"
    if "grvi" in table:
        found, how = _high(table, "grvi", False)
        return found, f"{VEGETATION} by {how}, green against red, as there is no nir"
    return table["share"] < 0, "not given, as vegetation needs red, and nir or green"


def _high(table: pd.DataFrame, name: str, calibrated: bool) -> tuple[pd.Series[bool], str]:
    """Compare an index with its fixed level, or with the median cluster."""
    index = table[name]
    if calibrated:
        return index > FIXED[name], f"{name.upper()} above {FIXED[name]:g}"
    limit = index.median() + MORE[name]
    return index > limit, f"{name.upper()} above {limit:.2f} (median cluster + {MORE[name]:g})"


def colored(table: pd.DataFrame) -> tuple[tuple[LandClass, ...], Array]:
    """Order and colour clusters: water, vegetation, then the others from dark to bright in SAR.

    Bright others get light colours.

    Args:
        table: see ``judged``.

    Returns:
        Rows of a class table, numbered in this order and with codes from 1 on; and ``(K,)`` the row
        of each cluster.
    """
    kind, index = table["kind"], "ndvi" if "ndvi" in table else "grvi"
    water = table[kind == WATER].sort_values("brightness")
    plants = table[kind == VEGETATION]
    plants = plants if plants.empty else plants.sort_values(index, ascending=False)
    others = table[kind == ""]
    others = others.sort_values("sar" if "sar" in table else "brightness")  # NaN at the end
    ordered = pd.concat([water, plants, others])
    colors = shades(BLUES, len(water)) + shades(GREENS, len(plants)) + _matched(others)
    rows = []
    for row, (rgb, what) in enumerate(zip(colors, ordered["kind"], strict=True)):
        rows.append(LandClass(row, f"cluster {row}" + (f", {what}" if what else ""), row + 1, rgb))
    return tuple(rows), np.argsort(ordered.index)


def shades(ramp: tuple[str, ...], count: int) -> list[Rgb]:
    """Return ``count`` colours along a ramp of colours, the middle one if it is only one."""
    anchors = np.array([to_rgb(color) for color in ramp])  # (A, 3)
    places = np.linspace(0, 1, count) if count > 1 else np.full(count, 0.5)
    parts = [np.interp(places, np.linspace(0, 1, len(anchors)), part) for part in anchors.T]
    return [_bytes(color) for color in np.transpose(parts)]


def _matched(others: pd.DataFrame) -> list[Rgb]:
    """Give clusters, in order of SAR, colours of about their place in ``OTHERS``; see ``colored``.

    The match is the one with the smallest sum of differences between ranks.
    """
    count = len(others)
    further = [  # purple to orange, spread by the golden ratio
        hls_to_rgb((0.78 + 0.35 * (i * 0.618034 % 1)) % 1, (0.35, 0.65, 0.5)[i % 3], 0.6)
        for i in range(count - len(OTHERS))
    ]
    palette = np.array([to_rgb(color) for color in OTHERS] + further)
    picked = palette[np.linspace(0, len(palette) - 1, count).round().astype(int)]  # (n, 3)
    light = (picked @ (0.3, 0.59, 0.11)).argsort().argsort()
    bright = others["brightness"].to_numpy().argsort().argsort()
    cost = np.abs(bright[:, None] - light)  # (n, n)
    if "sar" in others:
        place = np.arange(count)
        cost += np.abs(place[:, None] - place)
    return [_bytes(color) for color in picked[linear_sum_assignment(cost)[1]]]


def _bytes(color: Array) -> Rgb:
    red, green, blue = (round(255 * part) for part in color.tolist())
    return red, green, blue
