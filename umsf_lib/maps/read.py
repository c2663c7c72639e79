"""Read map files and draw them: a window of a layer, and its class table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from rasterio.enums import Resampling
from rasterio.windows import Window

from ..config import IGNORE, DataError
from ..data.layout import LandClass
from ..data.rasters import grid_of, opened
from ..figures.imagery import Array, Rgb, error_image, label_image, present_classes
from ..figures.results import ERROR_ENTRIES, show_confidence
from ..figures.style import class_entries, pixel_width_m, show_picture

LAYERS = ("optical", "sar", "label", "prediction", "confidence", "error")
_MAX_SIDE = 1000  # largest side read of a layer, px; panels are not drawn larger


def draw_layer(ax: Axes, path: Path, layer: str, window: Window) -> Sequence[tuple[str, Rgb]]:
    """Draw a window of one layer's file.

    Returns:
        Entries (name, colour) for the legend.

    Raises:
        DataError: the file cannot be read, or a class map lacks names or colours.
    """
    values, pixel_m = read_layer(path, window)
    if layer == "confidence":
        show_confidence(ax, values[0])
        return []
    if layer in ("label", "prediction"):
        classes = class_table(path)
        ids = np.where(np.isin(values[0], [row.id for row in classes]), values[0], IGNORE)
        show_picture(ax, label_image(ids, classes), layer, pixel_m)
        return class_entries(present_classes(ids, classes))
    if layer == "error":
        right = np.zeros_like(values[0])
        show_picture(ax, error_image(values[0], right), layer, pixel_m)
        return ERROR_ENTRIES
    bands = np.resize(values, (3, *values.shape[1:]))  # one band becomes three equal ones
    show_picture(ax, np.moveaxis(bands, 0, -1) / 255, "SAR" if layer == "sar" else layer, pixel_m)
    return []


def read_layer(path: Path, window: Window) -> tuple[Array, float | None]:
    """Read a window of a map file, reduced to the resolution of a panel.

    Returns:
        ``(C, h, w)`` in the file's dtype, and the ground width of these pixels in metres (None
        without a CRS).

    Raises:
        DataError: the file cannot be read.
    """
    step = max(1, math.ceil(max(window.height, window.width) / _MAX_SIDE))
    size = math.ceil(window.height / step), math.ceil(window.width / step)
    with opened(path) as source:
        has_codes = source.dtypes[0] == "uint8" and source.count == 1
        resampling = Resampling.nearest if has_codes else Resampling.average
        values = source.read(window=window, out_shape=(source.count, *size), resampling=resampling)
        pixel_m = pixel_width_m(grid_of(source))
    return values, None if pixel_m is None else pixel_m * window.width / size[1]


def class_table(path: Path) -> list[LandClass]:
    """Read the names and colours of a class map; class ids are the codes in the file.

    Raises:
        DataError: the file has no colour table, or there is no file with its class names.
    """
    names_path = Path(f"{path}.aux.xml")
    try:
        names = [node.text or "" for node in ElementTree.parse(names_path).iter("Category")]
        with opened(path) as source:
            colors = source.colormap(1)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{path} has no colour table, or {names_path.name} beside it no class names "
            f"({error}): run notebooks/06_tsne_and_maps.ipynb again."
        ) from error
    named = [(code, name) for code, name in enumerate(names) if name]
    return [LandClass(id=code, name=name, code=code, rgb=colors[code][:3]) for code, name in named]
