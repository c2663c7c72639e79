"""Arrays in, colours out: bands and label maps become (h, w, 3) pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ..config import IGNORE, DataError
from ..data.layout import LandClass

Array = npt.NDArray[Any]
Rgb = tuple[int, int, int]

IGNORE_RGB: Rgb = (217, 217, 217)  # pixels without data or without a label
RIGHT_RGB: Rgb = (198, 224, 240)
WRONG_RGB: Rgb = (213, 94, 0)
_ENOUGH = 1_000_000  # pixels for a percentile of a whole scene; smaller images count every one
# Okabe and Ito's colour-blind-safe colours without black, and Tol's wine
_CLUSTER_RGB: tuple[Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (136, 34, 85),
)


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


def false_color(
    optical: Array, nir: int, red: int, green: int, valid: Array | None = None
) -> Array:
    """Show near infrared, red and green as red, green and blue, so that plants look red.

    Arguments and result are those of ``optical_composite``; nir, red, green are 0-based positions.
    """
    return optical_composite(optical, (nir, red, green), valid)


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
    table = np.full((256, 3), IGNORE_RGB, np.uint8)
    for row in classes:
        table[row.id] = row.rgb
    unknown = _values_of(label) - {row.id for row in classes} - {IGNORE}
    if unknown:
        raise DataError(
            f"The label map holds {sorted(unknown)}, but the class table has the ids "
            f"{sorted(row.id for row in classes)}: pass the table that belongs to this map."
        )
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
    return tuple(
        LandClass(id=index, name=f"cluster {index}", code=index + 1, rgb=_cluster_rgb(index))
        for index in range(num_clusters)
    )


def _cluster_rgb(index: int) -> Rgb:
    if index < len(_CLUSTER_RGB):
        return _CLUSTER_RGB[index]
    hue, lightness = index * 0.618034 % 1, (0.3, 0.72, 0.5)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def present_classes(label: Array, classes: Sequence[LandClass]) -> list[LandClass]:
    """Keep the rows of the class table whose id occurs in the label map."""
    ids = _values_of(label)
    return [row for row in classes if row.id in ids]


def _values_of(label: Array) -> set[int]:
    if label.size and label.min() >= 0 and label.max() <= IGNORE:  # counting is faster than sorting
        return set(np.flatnonzero(np.bincount(label.ravel())).tolist())
    return set(np.unique(label).tolist())


def is_labelled(label: Array | None) -> TypeGuard[Array]:
    """Return whether there is a label map with at least one pixel that is not ignored."""
    return label is not None and bool((label != IGNORE).any())


def unit_rgb(rgb: Rgb) -> tuple[float, float, float]:
    """Convert an 8-bit colour to three numbers in [0, 1], as matplotlib expects."""
    red, green, blue = rgb
    return red / 255, green / 255, blue / 255
