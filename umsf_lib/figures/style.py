"""Shared parts of the figures: panels, scale bar, legend.

Nothing here uses pyplot: a figure belongs to its caller, and is drawn when a notebook shows it or
when it is saved to a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..data.layout import LandClass
from ..data.rasters import Grid, pixel_size_m
from .imagery import Array, Rgb, unit_rgb

# Okabe and Ito's colour-blind-safe set, the darker ones first so that thin lines stay visible
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
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


def new_panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, Array]:
    """Make an empty figure of ``width`` x ``height`` inches and its (rows, columns) array of axes.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        width: inches; at most 11 fit a notebook page.
        height: inches.
        options: passed to ``Figure.subplots`` (sharey, width_ratios, ...).
    """
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def spoken(name: str) -> str:
    """Write the name of a role or log column as in a title: ``cross_sar`` -> ``cross SAR``."""
    return name.replace("_", " ").replace("sar", "SAR")


@styled
def note_figure(sentence: str) -> Figure:
    """Make a figure of one sentence, for a cell that has nothing to draw."""
    figure = Figure(figsize=(9, 0.5), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))  # IPython shows no figure without axes
    axes.set_axis_off()
    axes.text(0.01, 0.5, sentence, va="center", style="italic")
    return figure


def image_panels(
    rows: int,
    columns: int,
    shape: tuple[int, ...],
    *,
    width: float = 10.0,
    gap: float = 0.3,
    extra: float = 0.7,
) -> tuple[Figure, Array]:
    """Make panels with the height that images of ``shape`` need.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        shape: (h, w, ...) of the images.
        width: inches of the whole figure.
        gap: inches above each row, for panel titles.
        extra: inches for figure title, scales and legend.
    """
    panel_width = width / columns
    panel_height = min(panel_width * shape[0] / shape[1], 1.5 * panel_width)
    return new_panels(rows, columns, width, rows * (panel_height + gap) + extra)


def show_picture(axes: Axes, picture: Array, title: str, pixel_m: float | None = None) -> None:
    """Draw an (h, w, 3) picture without ticks; uint8 ones (label maps) keep their exact colours.

    Axes coordinates are pixels of the given picture, even if a large one is drawn subsampled.

    Args:
        axes: where to draw.
        picture: (h, w, 3) uint8 class colours or float in [0, 1].
        title: title of the panel.
        pixel_m: ground width of one pixel in metres; adds a scale bar.
    """
    height, width = picture.shape[:2]
    step = math.ceil(max(height, width) / _MAX_SIDE)
    axes.imshow(
        picture[::step, ::step],
        extent=(0, width, height, 0),
        interpolation="nearest" if picture.dtype == np.uint8 else None,
    )
    bare(axes, title)
    if pixel_m is not None:
        add_scale_bar(axes, picture.shape, pixel_m)


def show_scalar(
    axes: Axes, values: Array, title: str, label: str, *, limits: tuple[float, float], cmap: str
) -> None:
    """Draw (h, w) values in a colour map, with its scale (unit in ``label``) below the image."""
    height, width = values.shape
    step = math.ceil(max(height, width) / _MAX_SIDE)
    image = axes.imshow(
        np.ma.masked_invalid(values[::step, ::step]),
        extent=(0, width, height, 0),
        vmin=limits[0],
        vmax=limits[1],
        cmap=cmap,
    )
    bare(axes, title)
    # an inset keeps this panel as large as its neighbours without a scale
    scale = axes.inset_axes((0.0, -0.07, 1.0, 0.04))
    ticks = MaxNLocator(2)  # more would run into those of a narrow neighbour
    axes.figure.colorbar(image, cax=scale, orientation="horizontal", label=label, ticks=ticks)


def bare(axes: Axes, title: str) -> None:
    """Remove the ticks of an image panel, and give it a thin frame and a title."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, linewidth=0.5, color="0.4")
    axes.set_title(title)


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
    name.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="black")])


def add_legend(figure: Figure, entries: Sequence[tuple[str, Rgb]]) -> Legend | None:
    """Put a legend of named colours below the panels, in as many columns as the width holds.

    The figure has room for one row and grows for each further row.
    """
    if not entries:
        return None
    handles = [
        Patch(facecolor=unit_rgb(rgb), edgecolor="0.3", linewidth=0.5, label=name)
        for name, rgb in entries
    ]
    # at 9 pt a letter is about 0.075 in wide, the colour box and its gaps 0.5 in
    entry_width = 0.075 * max(len(name) for name, _ in entries) + 0.5
    rows = math.ceil(len(entries) / max(1, int(figure.get_figwidth() / entry_width)))
    columns = math.ceil(len(entries) / rows)  # as even as can be: no orphan in the last row
    figure.set_figheight(figure.get_figheight() + 0.21 * (rows - 1))
    return figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def class_entries(classes: Sequence[LandClass]) -> list[tuple[str, Rgb]]:
    """Turn class rows into legend entries (name, colour)."""
    return [(row.name, row.rgb) for row in classes]
