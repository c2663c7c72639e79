"""Arrays in, colours out: bands and label maps become (h, w, 3) pictures."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_rgb

from ..config import IGNORE, DataError
from ..data.layout import LandClass

Array = npt.NDArray[Any]
Rgb = tuple[int, int, int]

IGNORE_RGB: Rgb = (217, 217, 217)  # pixels without data or without a label
RIGHT_RGB: Rgb = (198, 224, 240)
WRONG_RGB: Rgb = (213, 94, 0)
_ENOUGH = 1_000_000  # pixels for a percentile of a whole scene; smaller images count every one
# Okabe and Ito's colour-blind-safe colours without black, and Tol's wine
_CLUSTERS = "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7 #882255"


def stretch(band: Array, valid: Array | None = None) -> Array:
    """Scale one band so that its 2nd and 98th percentile become 0 and 1.

    Args:
        band: (h, w), any unit; NaN marks missing pixels.
        valid: (h, w) bool, the pixels that count; all of them when absent.

    Returns:
        (h, w) float32 in [0, 1], NaN where missing.
    """
    known = np.isfinite(band) if valid is None else np.isfinite(band) & valid
    if not known.any():
        return np.full(band.shape, np.nan, np.float32)
    values = band[known]
    low, high = np.percentile(values[:: max(1, values.size // _ENOUGH)], (2, 98))
    scaled = (band.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.where(known, np.clip(scaled, 0, 1), np.nan).astype(np.float32)


def optical_composite(
    optical: Array, rgb: tuple[int, int, int], valid: Array | None = None
) -> Array:
    """Show three bands as red, green and blue, each stretched between its 2nd and 98th percentile.

    Args:
        optical: (C, h, w), any unit; NaN marks missing pixels.
        rgb: 0-based positions of the bands to show as red, green and blue.
        valid: (h, w) bool; the others become grey.

    Returns:
        (h, w, 3) float32 in [0, 1].
    """
    bands = {band: stretch(optical[band], valid) for band in set(rgb)}
    picture = np.stack([bands[band] for band in rgb], axis=-1)  # (h, w, 3)
    missing = np.isnan(picture).any(axis=-1)
    picture[missing] = np.array(IGNORE_RGB, np.float32) / 255
    return picture


def false_color(optical: Array, nir: int, red: int, green: int) -> Array:
    """Show near infrared, red and green as red, green and blue, so that plants look red.

    See ``optical_composite``; nir, red, green are 0-based positions of bands.
    """
    return optical_composite(optical, (nir, red, green))


def sar_image(log_intensity: Array, valid: Array | None = None) -> Array:
    """Show one SAR band in grey, stretched between its 2nd and 98th percentile.

    Args:
        log_intensity: (h, w), natural log or dB; a linear scale would show a few bright points.
        valid: (h, w) bool.

    Returns:
        (h, w, 3) float32 in [0, 1].
    """
    return optical_composite(log_intensity[None], (0, 0, 0), valid)


def label_image(label: Array, classes: Sequence[LandClass]) -> Array:
    """Paint class ids in the colours of the class table; ignored pixels are grey.

    Args:
        label: (h, w) integer class ids; 255 (ignore) for pixels without one.
        classes: the class table.

    Returns:
        (h, w, 3) uint8.

    Raises:
        DataError: if the table lacks an id of the map.
    """
    unknown = _ids(label) - {row.id for row in classes} - {IGNORE}
    if unknown:
        raise DataError(
            f"The label map holds {sorted(unknown)}, but the class table has the ids "
            f"{sorted(row.id for row in classes)}: pass the table that belongs to this map."
        )
    table = np.full((256, 3), IGNORE_RGB, np.uint8)
    for row in classes:
        table[row.id] = row.rgb
    return table[label]


def error_image(prediction: Array, label: Array) -> Array:
    """Paint (h, w) predicted ids pale blue where they equal the label, vermilion where they do not.

    Returns (h, w, 3) uint8; pixels where either is 255 (ignore) are grey.
    """
    colors = np.array([RIGHT_RGB, WRONG_RGB, IGNORE_RGB], np.uint8)
    kind = np.where(prediction == label, 0, 1)
    kind[(label == IGNORE) | (prediction == IGNORE)] = 2
    return colors[kind]


def cluster_classes(num_clusters: int) -> tuple[LandClass, ...]:
    """Make a class table for clusters that have no names yet: "cluster 0", "cluster 1", ...

    The first eight colours are safe for colour-blind readers; further hues are spread by the golden
    ratio. File codes are id + 1, which leaves 0 for "no data".
    """
    safe = [to_rgb(color) for color in _CLUSTERS.split()]
    rows = []
    for index in range(num_clusters):
        hue, lightness = index * 0.618034 % 1, (0.3, 0.72, 0.5)[index % 3]
        color = safe[index] if index < len(safe) else hls_to_rgb(hue, lightness, 0.75)
        red, green, blue = (round(255 * part) for part in color)
        rows.append(LandClass(index, f"cluster {index}", index + 1, (red, green, blue)))
    return tuple(rows)


def present_classes(label: Array, classes: Sequence[LandClass]) -> list[LandClass]:
    """Keep the rows of the class table whose id occurs in the label map."""
    ids = _ids(label)
    return [row for row in classes if row.id in ids]


def _ids(label: Array) -> set[int]:
    return set(pd.unique(label.ravel()).tolist())  # unlike numpy's, without sorting a whole scene


def is_labelled(label: Array | None) -> TypeGuard[Array]:
    """Return whether there is a label map with at least one pixel that is not ignored."""
    return label is not None and bool((label != IGNORE).any())


def unit_rgb(rgb: Rgb) -> tuple[float, float, float]:
    """Convert an 8-bit colour to three numbers in [0, 1], as matplotlib expects."""
    red, green, blue = rgb
    return red / 255, green / 255, blue / 255
