"""Figures of spatial contrast: variogram, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import NullLocator

from .imagery import Array
from .style import COLORS, MARKERS, new_figure, new_panels, outline, show_picture, spoken, styled


@styled
def variogram_figure(
    curves: Mapping[str, Sequence[float]],
    distance_m: Sequence[float],
    *,
    radius_m: float | None = None,
) -> Figure:
    """Show how much places differ, as a function of their distance.

    Args:
        curves: name -> one value per distance; NaN is left out.
        distance_m: metres, > 0, increasing.
        radius_m: distance of the farthest neighbour in pretraining: a dotted line.
    """
    figure, axes = new_panels(1, 1, 7.5, 3.6)
    ax = axes[0, 0]
    looks = zip(cycle(MARKERS), cycle(COLORS), curves.items(), strict=False)
    for marker, color, (name, values) in looks:
        ax.plot(distance_m, values, marker=marker, ms=4, color=color, label=spoken(name))
    if radius_m:
        ax.axvline(radius_m, color="0.2", ls=":", lw=1.4, label=f"R = {radius_m:g} m")
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(distance_m, [f"{distance:.0f}" for distance in distance_m])
    ax.set_ylim(bottom=0)
    ax.set(xlabel="distance (m)", ylabel="semivariance / variance")
    ax.set_title("near things are more alike")
    figure.legend(loc="outside right center")
    return figure


@styled
def neighbours_figure(
    picture: Array,
    anchors: Array,
    neighbours: Array,
    size: int,
    *,
    radius_px: tuple[float, float],
    pixel_m: float | None = None,
) -> Figure:
    """Show anchors and their neighbours on the map, and the windows themselves beside it.

    Args:
        picture: (h, w, 3) the scene.
        anchors: (n, 2) row, column of the windows' first pixels.
        neighbours: (n, k, 2) row, column of their neighbours; NaN for those in another scene.
        size: side of a window, px.
        radius_px: radius of the disc along rows and along columns, px.
        pixel_m: ground width of a pixel in metres, for the scale bar.
    """
    shown = min(5, neighbours.shape[1])  # windows drawn per anchor
    figure = new_figure(10, 5.2)
    grid = figure.add_gridspec(1, 2, width_ratios=[1.15, 1])
    ground = figure.add_subplot(grid[0])
    show_picture(ground, picture, "anchors, their discs, middles of neighbours", pixel_m)
    ground.autoscale(False)  # discs are cut where the scene ends
    strips = grid[1].subgridspec(len(anchors), shown + 1)
    for row, (anchor, near) in enumerate(zip(anchors, neighbours, strict=True)):
        color = COLORS[row % len(COLORS)]
        _draw_disc(ground, anchor + size / 2, near + size / 2, size, radius_px, color)
        inside = near[~np.isnan(near).any(axis=1)][:shown]
        for column, (top, left) in enumerate(np.vstack([anchor, inside]).astype(int)):
            crop = picture[top : top + size, left : left + size]
            panel = figure.add_subplot(strips[row, column])
            show_picture(panel, crop, "" if row else (f"{column}" if column else "anchor"))
            panel.spines[:].set(color=color, linewidth=0.9 if column else 2.2)
    return figure


def _draw_disc(
    ax: Axes, middle: Array, near: Array, size: int, radius: tuple[float, float], color: str
) -> None:
    row, column = middle
    look: Any = {"fill": False, "ec": color, "lw": 2}
    window = Rectangle((column - size / 2, row - size / 2), size, size, **look)
    disc = Ellipse((column, row), 2 * radius[1], 2 * radius[0], ls="--", **look)
    for patch in (window, disc):
        outline(patch, "white")
        ax.add_patch(patch)
    ax.plot(near[:, 1], near[:, 0], "o", ms=5, color=color, mec="white", mew=0.8)
