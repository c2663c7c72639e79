"""Figures of spatial contrast: variogram, neighbours, scores of frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import NullLocator

from .imagery import Array
from .style import COLORS, new_panels, note_figure, show_picture, spoken, styled


@styled
def variogram_figure(
    curves: Mapping[str, Sequence[float]],
    distance_m: Sequence[float],
    *,
    radius_m: float | None = None,
    label: str = "semivariance / variance",
) -> Figure:
    """Show how much places differ, as a function of their distance.

    Args:
        curves: name -> one value per distance; NaN is left out.
        distance_m: metres, > 0, increasing.
        radius_m: distance of the farthest neighbour in pretraining: a dotted line.
        label: axis label of the values.
    """
    figure, axes = new_panels(1, 1, 7.5, 3.6)
    ax = axes[0, 0]
    for index, (name, values) in enumerate(curves.items()):
        marker, color = "osD^vP"[index % 6], COLORS[index % len(COLORS)]
        ax.plot(distance_m, values, marker=marker, ms=4, color=color, label=spoken(name))
    if radius_m:
        ax.axvline(radius_m, color="0.2", ls=":", lw=1.4, label=f"R = {radius_m:g} m")
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(distance_m, [f"{distance:.0f}" for distance in distance_m])
    ax.set_ylim(bottom=0)
    ax.set(xlabel="distance (m)", ylabel=label, title="near things are more alike")
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
    figure, axes = new_panels(1, 2, 10, 5.2, width_ratios=[1.15, 1])
    grid: GridSpec = axes[0, 0].get_gridspec()
    axes[0, 1].remove()
    show_picture(axes[0, 0], picture, "anchors, their discs, middles of neighbours", pixel_m)
    axes[0, 0].autoscale(False)  # discs are cut where the scene ends
    strips = grid[0, 1].subgridspec(len(anchors), shown + 1)
    for row, (anchor, near) in enumerate(zip(anchors, neighbours, strict=True)):
        color = COLORS[row % len(COLORS)]
        _draw_disc(axes[0, 0], anchor + size / 2, near + size / 2, size, radius_px, color)
        inside = near[~np.isnan(near).any(axis=1)][:shown]
        for column, corner in enumerate([anchor, *inside]):
            top, left = (int(value) for value in corner)
            crop = picture[top : top + size, left : left + size]
            panel = figure.add_subplot(strips[row, column])
            show_picture(panel, crop, "" if row else ("anchor" if column == 0 else f"{column}"))
            panel.spines[:].set(color=color, linewidth=2.2 if column == 0 else 0.9)
    return figure


def _draw_disc(
    ax: Axes, middle: Array, near: Array, size: int, radius: tuple[float, float], color: str
) -> None:
    row, column = middle
    box = Rectangle((column - size / 2, row - size / 2), size, size, fill=False, ec=color, lw=2)
    disc = Ellipse((column, row), 2 * radius[1], 2 * radius[0], fill=False, ec=color, ls="--")
    ax.add_patch(box)
    ax.add_patch(disc)
    ax.plot(near[:, 1], near[:, 0], "o", ms=3.5, color=color, mec="white", mew=0.4)


@styled
def probe_figure(table: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """Show accuracies of classifiers on frozen features, random splits beside splits by scene.

    Args:
        table: one row per (method, protocol), columns ``metric`` and ``metric_std`` for each.
        metrics: column -> title of its panel.
    """
    if table.empty:
        return note_figure("This data set has no labels, so there is nothing to judge features by.")
    methods = list(dict.fromkeys(table.index.get_level_values("method")))
    protocols = list(dict.fromkeys(table.index.get_level_values("protocol")))
    size = 9.5, 1.5 + 0.27 * len(methods) * len(protocols)
    figure, axes = new_panels(1, len(metrics), *size, sharey=True)
    height = 0.8 / len(protocols)
    for ax, (metric, title) in zip(axes[0], metrics.items(), strict=True):
        for index, protocol in enumerate(protocols):
            rows = table.xs(protocol, level="protocol").reindex(methods)
            place = np.arange(len(methods)) + (index - (len(protocols) - 1) / 2) * height
            bars = ax.barh(
                place,
                rows[metric],
                0.9 * height,
                xerr=rows[f"{metric}_std"],
                color=COLORS[index],
                error_kw={"lw": 1, "capsize": 2},
                label=protocol,
            )
            ax.bar_label(bars, [f" {v:.3f}" for v in rows[metric]], fontsize=8)
        ax.set(xlabel="accuracy (mean and standard deviation of the splits)", title=title)
        ax.set_xlim(0, 1.12)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(protocols))
    return figure
