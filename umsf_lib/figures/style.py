"""Shared parts of the figures: panels, pictures, scale bar, legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..data.layout import LandClass
from ..data.rasters import Grid, pixel_size_m
from .imagery import Array, Rgb, unit_rgb

# Okabe and Ito's colour-blind-safe set, the darker ones first so that thin lines stay visible
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = "osD^vP*XhpdH"
_MAX_SIDE = 2000  # pixels of a picture that a panel of a few hundred pixels can still profit from
_STYLE: Any = {
    "font.size": 9,
    "figure.titlesize": 11,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
styled = rc_context(_STYLE)  # decorates every function that makes a figure; others keep their style


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure; at most 11 inches of ``width`` fit a notebook page."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def new_panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, Array]:
    """Make a figure of ``width`` x ``height`` inches and its (rows, columns) array of empty axes.

    ``options`` are those of ``Figure.subplots``: sharey, width_ratios, ...
    """
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def image_panels(
    count: int,
    most: int,
    shape: tuple[int, ...],
    *,
    widest: float = 4.0,
    gap: float = 0.3,
    extra: float = 0.7,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels in rows, as high as images of ``shape`` need, row by row.

    Args:
        count: number of panels.
        most: largest number of panels in a row.
        shape: (h, w, ...) of the images.
        widest: inches of a panel, less where a row would be wider than 10.
        gap: inches above each row, for panel titles.
        extra: inches for figure title, scales and legend.
    """
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)  # as even as can be: no orphan in the last row
    width = min(10.0, columns * widest)
    panel_height = width / columns * min(shape[0] / shape[1], 1.5)
    figure, axes = new_panels(rows, columns, width, rows * (panel_height + gap) + extra)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


@styled
def note_figure(sentence: str) -> Figure:
    """Make a figure of one sentence, for a cell that has nothing to draw."""
    figure = Figure(figsize=(9, 0.5), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))  # IPython shows no figure without axes
    axes.set_axis_off()
    axes.text(0.01, 0.5, sentence, va="center", style="italic")
    return figure


def spoken(name: str) -> str:
    """Write the name of a role or log column as in a title: ``cross_sar`` -> ``cross SAR``."""
    return name.replace("_", " ").replace("sar", "SAR")


def show_pictures(
    axes: Sequence[Axes], pictures: Mapping[str, Array], pixel_m: float | None = None
) -> None:
    """Draw pictures (title -> picture) in the first axes; the first picture has the scale bar."""
    for index, (ax, (title, picture)) in enumerate(zip(axes, pictures.items(), strict=False)):
        show_picture(ax, picture, title, None if index else pixel_m)


def show_picture(axes: Axes, picture: Array, title: str, pixel_m: float | None = None) -> None:
    """Draw an (h, w, 3) picture without ticks: float in [0, 1], or uint8 in its exact colours.

    ``pixel_m``, the ground width of a pixel in metres, adds a scale bar.
    """
    exact = picture.dtype == np.uint8
    _show(axes, picture, title, interpolation="nearest" if exact else None)
    if pixel_m is not None:
        add_scale_bar(axes, picture.shape, pixel_m)


def show_scalar(
    axes: Axes, values: Array, title: str, label: str, *, limits: tuple[float, float], cmap: str
) -> None:
    """Draw (h, w) values in a colour map, with its scale (unit in ``label``) below the image."""
    image = _show(axes, values, title, vmin=limits[0], vmax=limits[1], cmap=cmap)
    # an inset keeps this panel as large as its neighbours without a scale
    scale = axes.inset_axes((0.0, -0.07, 1.0, 0.04))
    ticks = MaxNLocator(2)  # more would run into those of a narrow neighbour
    axes.figure.colorbar(image, cax=scale, orientation="horizontal", label=label, ticks=ticks)


def _show(axes: Axes, values: Array, title: str, **options: Any) -> AxesImage:
    """Draw an image in coordinates of its pixels, even if a large one is drawn subsampled."""
    bare(axes, title)
    height, width = values.shape[:2]
    step = math.ceil(max(height, width) / _MAX_SIDE)
    return axes.imshow(values[::step, ::step], extent=(0, width, height, 0), **options)


def bare(axes: Axes, title: str) -> None:
    """Remove the ticks of an image panel, and give it a thin frame and a title."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set(visible=True, linewidth=0.5, color="0.4")


def pixel_width_m(grid: Grid) -> float | None:
    """Return the ground width in metres of a raster's middle pixel; see ``pixel_size_m``."""
    size = pixel_size_m(grid)
    return None if size is None else size[1]


def round_length(limit_m: float) -> float:
    """Find the largest 1, 2 or 5 times a power of ten that is not above ``limit_m`` metres."""
    power = 10.0 ** math.floor(math.log10(limit_m))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= limit_m)


def add_scale_bar(axes: Axes, shape: tuple[int, ...], pixel_m: float) -> None:
    """Draw a scale bar of a round number of metres in the lower left of an image of ``shape``."""
    height, width = shape[:2]
    length_m = round_length(0.35 * width * pixel_m)
    left, top = 0.04 * width, 0.94 * height
    bar = Rectangle((left, top), length_m / pixel_m, 0.02 * height, gid="scale bar")
    bar.set(facecolor="white", edgecolor="black", linewidth=0.8)
    axes.add_patch(bar)
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    name = axes.text(left, top - 0.02 * height, text, color="white", weight="bold", va="bottom")
    outline(name, "black")


def outline(artist: Artist, color: str) -> None:
    """Set a text or line off against any picture below it."""
    artist.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground=color)])


def class_entries(classes: Sequence[LandClass]) -> list[tuple[str, Rgb]]:
    """Turn class rows into legend entries (name, colour)."""
    return [(row.name, row.rgb) for row in classes]


def swatches(entries: Sequence[tuple[str, Rgb]]) -> list[Patch]:
    """Make legend handles of named colours."""
    return [
        Patch(facecolor=unit_rgb(rgb), edgecolor="0.3", linewidth=0.5, label=name)
        for name, rgb in entries
    ]


def add_legend(figure: Figure, entries: Sequence[tuple[str, Rgb]]) -> None:
    """Put a legend of named colours below the panels, in as many columns as the width holds.

    The figure has room for one row and grows for each further row.
    """
    if not entries:
        return
    # at 9 pt a letter is about 0.075 in wide, the colour box and its gaps 0.5 in
    entry_width = 0.075 * max(len(name) for name, _ in entries) + 0.5
    rows = math.ceil(len(entries) / max(1, int(figure.get_figwidth() / entry_width)))
    columns = math.ceil(len(entries) / rows)
    figure.set_figheight(figure.get_figheight() + 0.21 * (rows - 1))
    figure.legend(handles=swatches(entries), loc="outside lower center", ncols=columns)
