"""Figures of the data: scenes, SAR statistics, classes, split, realism of the simulator."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data.layout import LandClass
from .imagery import Array, is_labelled, label_image, present_classes, sar_image, unit_rgb
from .style import (
    COLORS,
    MARKERS,
    add_legend,
    class_entries,
    image_panels,
    new_panels,
    note_figure,
    show_pictures,
    spoken,
    styled,
)

_ENOUGH = 500_000  # pixels of a histogram; more would not change its outline
_DB = 10 / math.log(10)  # dB per unit of natural log intensity


@styled
def scene_figure(
    optical_rgb: Array,
    sar_log: Array | None,
    label: Array | None,
    *,
    classes: Sequence[LandClass] = (),
    title: str = "",
    pixel_m: float | None = None,
) -> Figure:
    """Show one scene as optical, SAR and label side by side, with legend and scale bar.

    Args:
        optical_rgb: (h, w, 3) in [0, 1], see ``optical_composite``.
        sar_log: (h, w) log intensity; None leaves the panel out.
        label: (h, w) class ids, 255 = ignore; None, or nothing but 255, leaves the panel out.
        classes: the class table; the legend names those that occur.
        title: above all panels.
        pixel_m: ground width of a pixel in metres, for the scale bar.
    """
    panels, shown = {"optical": optical_rgb}, []
    if sar_log is not None:
        panels["SAR (log intensity)"] = sar_image(sar_log)
    if is_labelled(label):
        panels["label"] = label_image(label, classes)
        shown = present_classes(label, classes)
    extra = 0.6 if shown else 0.3
    figure, axes = image_panels(len(panels), 3, optical_rgb.shape, widest=3.4, extra=extra)
    show_pictures(axes, panels, pixel_m)
    add_legend(figure, class_entries(shown))
    figure.suptitle(title)
    return figure


@styled
def histogram_figure(
    log_intensity: Mapping[str, Array],
    *,
    linear_label: str = "intensity (linear)",
    log_label: str = "intensity (dB)",
) -> Figure:
    """Show how SAR values are distributed on a linear scale and, beside it, on a log scale.

    Args:
        log_intensity: band name -> natural log of intensity, any shape; NaN is left out.
        linear_label: axis label with unit of exp(log_intensity).
        log_label: axis label of 10 log10(intensity); "log amplitude (8-bit)" for 8-bit data.
    """
    figure, axes = new_panels(1, 2, 9, 3.2)
    for color, (name, values) in zip(COLORS, log_intensity.items(), strict=False):
        known = values[np.isfinite(values)].astype(np.float64)
        log = known[:: max(1, known.size // _ENOUGH)]
        look: Any = {"stat": "density", "element": "step", "color": color, "alpha": 0.25}
        for ax, shown, tails in zip(
            axes[0], (np.exp(log), log * _DB), ((0, 99), (0.1, 99.9)), strict=True
        ):
            sns.histplot(x=shown, bins=_bin_edges(shown, tails), label=name, ax=ax, **look)
    axes[0, 0].set(xlabel=linear_label, ylabel="density of pixels", title="linear")
    axes[0, 1].set(xlabel=log_label, ylabel="density of pixels", title="logarithmic")
    if len(log_intensity) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _bin_edges(values: Array, tails: tuple[float, float]) -> Array:
    """Divide what lies between two percentiles into 60 bins, 8-bit data into one bin per level."""
    low, high = np.percentile(values, tails)
    levels = np.unique(values[(values >= low) & (values <= high)])
    if not 1 < levels.size <= 256:
        return np.linspace(low, high, 61)
    middles = (levels[1:] + levels[:-1]) / 2  # other edges would beat against the levels
    first, last = 2 * levels[[0, -1]] - middles[[0, -1]]  # as far beyond the outer levels
    return np.array([first, *middles, last])


@styled
def class_shares_figure(shares: Mapping[str, Array], classes: Sequence[LandClass]) -> Figure:
    """Show the share of each class, one panel per group of scenes (train, test, ...).

    Args:
        shares: group name -> (K,) fractions of the labelled pixels; may be empty.
        classes: the class table, in the order of the shares.
    """
    if not shares:
        return note_figure("This data set has no labels, so there are no class shares to show.")
    width, height = min(3.2 * len(shares) + 1.2, 10), 0.3 * len(classes) + 1.2
    figure, axes = new_panels(1, len(shares), width, height, sharey=True, sharex=True)
    names = [row.name for row in classes]
    look: Any = {"palette": [unit_rgb(row.rgb) for row in classes], "saturation": 1}
    look |= {"edgecolor": "0.3", "linewidth": 0.5}
    for ax, (group, values) in zip(axes[0], shares.items(), strict=True):
        percent = 100 * np.asarray(values)
        sns.barplot(x=percent, y=names, hue=names, legend=False, ax=ax, **look)
        for bars in ax.containers:
            ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        ax.set(xlabel="share of labelled pixels (%)", title=group)
        ax.margins(x=0.18)
    figure.suptitle("class shares")
    return figure


@styled
def spectra_figure(
    sensors: Mapping[str, Mapping[str, Array]], label: Array, classes: Sequence[LandClass]
) -> Figure:
    """Show mean and standard deviation of every class in every band, as stored.

    Args:
        sensors: role -> band -> (h, w) values, NaN where missing; each sensor has its own panel,
            since units differ.
        label: (h, w) class ids of the same pixels, 255 = ignore.
        classes: the class table; classes without pixels are left out.
    """
    shown = present_classes(label, classes)
    if not shown:
        return note_figure("This scene has no labels, so there are no class spectra to show.")
    counts = [len(bands) for bands in sensors.values()]
    width = min(3.5 + 1.1 * sum(counts), 11)
    figure, axes = new_panels(1, len(sensors), width, 4, width_ratios=[n + 1 for n in counts])
    for ax, (role, bands) in zip(axes[0], sensors.items(), strict=True):
        _draw_spectra(ax, bands, label, shown)
        ax.set_title(f"{spoken(role)}: class mean ± std")
    axes[0, 0].set_ylabel("value as stored")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", labelspacing=0.9)
    return figure


def _draw_spectra(
    ax: Axes, bands: Mapping[str, Array], label: Array, shown: Sequence[LandClass]
) -> None:
    for index, row in enumerate(shown):
        values = [band[label == row.id] for band in bands.values()]  # C x (pixels of the class,)
        ax.errorbar(
            np.arange(len(bands)) + 0.7 * ((index + 0.5) / len(shown) - 0.5),
            np.array([np.nanmean(v) for v in values]),
            np.array([np.nanstd(v) for v in values]),
            fmt=MARKERS[index % len(MARKERS)],
            color=unit_rgb(row.rgb),
            markeredgecolor="0.2",
            ecolor="0.45",  # class colours such as yellow are too pale for a thin line on white
            elinewidth=1,
            capsize=2,
            label=row.name,
        )
    ax.set_xticks(range(len(bands)), list(bands), rotation=45 if len(bands) > 6 else 0)
    ax.set_xlim(-0.5, len(bands) - 0.5)
    for border in range(1, len(bands)):
        ax.axvline(border - 0.5, color="0.85", linewidth=0.8)


@styled
def split_figure(
    bounds: Mapping[str, tuple[float, float, float, float]],
    split: Mapping[str, str],
    touching: Collection[str] = (),
) -> Figure:
    """Draw where the scenes are, coloured by their part of the split.

    Args:
        bounds: scene -> (west, south, east, north) in degrees; may be empty.
        split: scene -> "train", "val", "test", ...; those without bounds are left out.
        touching: test scenes to mark because they touch a training or validation scene.
    """
    if not bounds:
        return note_figure("The places of these scenes are not known, so there is no map of them.")
    figure, axes = new_panels(1, 1, 9, 4.5)
    ax = axes[0, 0]
    parts = list(dict.fromkeys(split[scene] for scene in split if scene in bounds))
    for part, color, hatch in zip(parts, COLORS, ("", "//", "..", "xx"), strict=False):
        boxes = [bounds[scene] for scene in split if scene in bounds and split[scene] == part]
        for number, (west, south, east, north) in enumerate(boxes):
            box = Rectangle((west, south), east - west, north - south, hatch=hatch)
            box.set(facecolor=(color, 0.35), edgecolor=color)
            box.set_label(f"{part} ({len(boxes)})" if number == 0 else "")
            ax.add_patch(box)
        # a dot keeps scenes visible that are small beside the distance between them
        ax.plot(*_middles(boxes), "o", ms=3, color=color)
    if touching:
        label = f"test, touches a training or validation scene ({len(touching)})"
        marked = _middles([bounds[scene] for scene in touching])
        ax.plot(*marked, "X", ms=9, color="white", markeredgecolor="black", label=label)
    ax.autoscale_view()
    ax.margins(0.05)
    ax.set(xlabel="longitude (°)", ylabel="latitude (°)")
    ax.set_title("where the scenes lie (number of scenes)")
    latitude = _middles(list(bounds.values()))[1].mean()
    ax.set_aspect(1 / math.cos(math.radians(latitude)), adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=len(parts) + 1)
    return figure


def _middles(boxes: Sequence[tuple[float, float, float, float]]) -> Array:
    """Return longitudes and latitudes of the middles, ``(2, n)``."""
    west, south, east, north = np.transpose(boxes)
    return np.array([(west + east) / 2, (south + north) / 2])


@styled
def realism_figure(compared: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Show how far statistics of simulated scenes are from those of real imagery.

    Each dot is a statistic, at its distance from the target in tolerances. The shaded band is
    within tolerance. Dots more than three tolerances away are drawn at the border.

    Args:
        compared: title of a panel -> statistics, each with its ``group``, ``value``, ``target`` and
            ``tolerance``, as ``benchmarks/simulator_realism.py`` records them.
    """
    groups = list(dict.fromkeys(row["group"] for rows in compared.values() for row in rows))
    width, height = min(2.6 + 4.2 * len(compared), 11), 0.32 * len(groups) + 1.2
    figure, axes = new_panels(1, len(compared), width, height, sharey=True)
    for ax, (name, rows) in zip(axes[0], compared.items(), strict=True):
        ax.axvspan(-1, 1, color="0.92")
        ax.axvline(0, color="0.6", lw=0.8)
        within = _draw_deviations(ax, pd.DataFrame(rows), groups)
        ax.set_title(f"{name}: {within.sum()} of {len(within)} within tolerance")
        ax.set(xlabel="distance from the measured value (tolerances)", ylabel="")
        ax.set(xlim=(-3.3, 3.9), xticks=range(-3, 4))
    axes[0, 0].set_yticks(range(len(groups)), groups)
    axes[0, 0].set_ylim(len(groups) - 0.5, -0.5)
    return figure


def _draw_deviations(ax: Axes, table: pd.DataFrame, groups: list[str]) -> pd.Series:
    """Draw the dots, one row per group, and return whether each is within tolerance."""
    away = (table.value - table.target) / table.tolerance  # NaN: a class that is absent
    within = away.abs() <= 1
    same = table.groupby("group").group
    step = (same.cumcount() + 0.5) / same.transform("size") - 0.5  # beside others of the group
    sns.scatterplot(
        x=away.fillna(3).clip(-3, 3),
        y=table.group.map(groups.index) + 0.7 * step,
        hue=within,
        style=within,
        palette={True: COLORS[0], False: COLORS[1]},
        markers={True: "o", False: "D"},
        s=20,
        legend=False,
        ax=ax,
    )
    for group, passed in within.groupby(table.group):
        text = f"{passed.sum()}/{len(passed)}"
        ax.text(3.85, groups.index(group), text, ha="right", va="center", fontsize=8)
    return within
