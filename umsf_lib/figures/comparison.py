"""Figures that compare methods: a dot with its interval for each, and their maps side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..layouts import LandClass
from .imagery import IGNORE_RGB, Array
from .panels import (
    COLORS,
    add_legend,
    class_entries,
    image_panels,
    new_panels,
    note_figure,
    show_picture,
    styled,
)

DASHES = ("--", ":", "-.")
COLUMNS = 4  # of maps


@styled
def intervals_figure(
    table: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    label: str,
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Show a value and its interval for each row, one panel per score.

    Args:
        table: columns ``group``, ``name``, ``metric``, ``value``, ``low``, ``high``, rows of a
            group together; groups with the name "" have no heading; NaN ends leave a bare dot.
        titles: score -> title of its panel, in order.
        label: what the values are.
        lines: name -> score -> value: a vertical line.
    """
    if table.empty:
        return note_figure("There are no scores to show.")
    keys = list(dict.fromkeys(zip(table.group, table.name, strict=True)))
    groups = list(dict.fromkeys(table.group))
    places, headings, place = {}, {}, 0
    for group in groups:
        if group:
            headings[group], place = place, place + 1
        for key in keys:
            if key[0] == group:
                places[key], place = place, place + 1
    figure, axes = new_panels(1, len(titles), 10.5, 1.5 + 0.25 * place, sharey=True)
    for ax, (metric, title) in zip(axes[0], titles.items(), strict=True):
        for _, row in table[table.metric == metric].iterrows():
            color = COLORS[groups.index(row.group) % len(COLORS)]
            _draw_interval(ax, places[row.group, row["name"]], row, color)
        handles = [
            ax.axvline(at[metric], color="0.2", ls=DASHES[index % 3], lw=1.2, label=name, zorder=0)
            for index, (name, at) in enumerate((lines or {}).items())
            if metric in at
        ]
        ax.set(title=title, xlabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.tick_params(left=False)
        if handles and ax is axes[0, 0]:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _name_rows(axes[0, 0], places, headings)
    return figure


def _draw_interval(ax: Axes, place: float, row: pd.Series, color: str) -> None:
    if math.isfinite(row.low) and math.isfinite(row.high):
        ax.plot([row.low, row.high], [place, place], color=color, lw=2, solid_capstyle="butt")
    ax.plot(row.value, place, "o", color=color, ms=5)


def _name_rows(
    ax: Axes, places: Mapping[tuple[str, str], int], headings: Mapping[str, int]
) -> None:
    """Names of rows and, in bold, of groups beside the first panel; first row on top."""
    rows = {at: name for (_, name), at in places.items()} | {at: g for g, at in headings.items()}
    ax.set_yticks(sorted(rows), [rows[at] for at in sorted(rows)])
    for tick, at in zip(ax.yaxis.get_major_ticks(), sorted(rows), strict=True):
        if at in headings.values():
            tick.label1.set_fontweight("bold")
    ax.set_ylim(max(rows) + 0.6, -0.6)


@styled
def scale_figure(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Show scores against the number of training scenes, one panel per score.

    Args:
        table: columns ``scenes``, ``name``, ``metric``, ``mean``, ``std`` (NaN: no bar).
        titles: score -> title of its panel, in order.
    """
    if table.empty:
        return note_figure("There are no scores to show.")
    figure, axes = new_panels(1, len(titles), 10.5, 3.6)
    for ax, (metric, title) in zip(axes[0], titles.items(), strict=True):
        rows = table[table.metric == metric]
        for color, (name, curve) in zip(COLORS, rows.groupby("name", sort=False), strict=False):
            bars = curve["std"].fillna(0)
            ax.errorbar(
                curve.scenes, curve["mean"], bars, color=color, marker="o", ms=4, label=name
            )
        ax.set_xscale("log", base=2)
        ticks = sorted(set(rows.scenes))
        ax.set_xticks(ticks, [str(count) for count in ticks])
        ax.minorticks_off()
        ax.set(title=title, xlabel="training scenes")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@styled
def maps_figure(
    pictures: Mapping[str, Array], classes: Sequence[LandClass], *, pixel_m: float | None = None
) -> Figure:
    """Show pictures of one scene side by side, with one legend for all.

    Args:
        pictures: title -> ``(h, w, 3)``, uint8 class colours or float in [0, 1].
        classes: the class table.
        pixel_m: ground width of a pixel in metres, for a scale bar in the first panel.
    """
    shape = next(iter(pictures.values())).shape
    rows = math.ceil(len(pictures) / COLUMNS)
    figure, axes = image_panels(rows, COLUMNS, shape, width=11)
    places: np.ndarray = axes.ravel()
    for index, (ax, (title, picture)) in enumerate(zip(places, pictures.items(), strict=False)):
        show_picture(ax, picture, title, None if index else pixel_m)
    for ax in places[len(pictures) :]:
        ax.remove()
    add_legend(figure, [*class_entries(classes), ("no label or no class", IGNORE_RGB)])
    return figure
