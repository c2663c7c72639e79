"""Figures of the data: scenes, SAR statistics, classes, split, realism of the simulator."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data.layout import LandClass
from .imagery import Array, is_labelled, label_image, present_classes, sar_image, unit_rgb
from .style import (
    COLORS,
    add_legend,
    class_entries,
    image_panels,
    new_panels,
    note_figure,
    show_picture,
    spoken,
    styled,
)

_MARKERS = "osD^vP*XhpdH"
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
    panels = {"optical": optical_rgb}
    if sar_log is not None:
        panels["SAR (log intensity)"] = sar_image(sar_log)
    shown = []
    if is_labelled(label):
        panels["label"] = label_image(label, classes)
        shown = present_classes(label, classes)
    size = {"width": min(3.4 * len(panels), 10), "extra": 0.6 if shown else 0.3}
    figure, axes = image_panels(1, len(panels), optical_rgb.shape, **size)
    for ax, (name, picture) in zip(axes[0], panels.items(), strict=True):
        show_picture(ax, picture, name, pixel_m if name == "optical" else None)
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
        _draw_histogram(axes[0, 0], np.exp(log), (0, 99), name, color)
        _draw_histogram(axes[0, 1], log * _DB, (0.1, 99.9), name, color)
    axes[0, 0].set(xlabel=linear_label, ylabel="density of pixels", title="linear")
    axes[0, 1].set(xlabel=log_label, ylabel="density of pixels", title="logarithmic")
    if len(log_intensity) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _draw_histogram(
    ax: Axes, values: Array, tails: tuple[float, float], name: str, color: str
) -> None:
    low, high = np.percentile(values, tails)
    levels = np.unique(values[(values >= low) & (values <= high)])
    edges: Array = np.linspace(low, high, 61)
    if 1 < levels.size <= 256:  # 8-bit data: one bin per level, or bins would beat against levels
        middles = (levels[1:] + levels[:-1]) / 2
        ends = 2 * levels[[0, -1]] - middles[[0, -1]]  # as far beyond the outer levels
        edges = np.concatenate([ends[:1], middles, ends[1:]])
    density, edges = np.histogram(values, edges, density=True)
    ax.stairs(density, edges, fill=True, fc=(color, 0.25), ec=color, lw=1, label=name)


@styled
def class_shares_figure(
    shares: Mapping[str, Array], classes: Sequence[LandClass], *, title: str = "class shares"
) -> Figure:
    """Show the share of each class, one panel per group of scenes (train, test, ...).

    Args:
        shares: group name -> (K,) fractions of the labelled pixels; may be empty.
        classes: the class table, in the order of the shares.
        title: above all panels.
    """
    if not shares:
        return note_figure("This data set has no labels, so there are no class shares to show.")
    figure, axes = new_panels(
        1,
        len(shares),
        min(3.2 * len(shares) + 1.2, 10),
        0.3 * len(classes) + 1.2,
        sharey=True,
        sharex=True,
    )
    for ax, (name, values) in zip(axes[0], shares.items(), strict=True):
        percent = 100 * np.asarray(values)
        colors = [unit_rgb(row.rgb) for row in classes]
        bars = ax.barh(
            [row.name for row in classes], percent, color=colors, edgecolor="0.3", lw=0.5
        )
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        ax.set(xlabel="share of labelled pixels (%)", title=name)
        ax.margins(x=0.18)
    axes[0, 0].invert_yaxis()
    figure.suptitle(title)
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
    offsets = np.linspace(-0.3, 0.3, len(shown)) if len(shown) > 1 else np.zeros(1)
    for index, (row, offset) in enumerate(zip(shown, offsets, strict=False)):
        values = [band[label == row.id] for band in bands.values()]  # C x (pixels of the class,)
        ax.errorbar(
            np.arange(len(bands)) + offset,
            np.array([np.nanmean(v) for v in values]),
            np.array([np.nanstd(v) for v in values]),
            fmt=_MARKERS[index % len(_MARKERS)],
            color=unit_rgb(row.rgb),
            markeredgecolor="0.2",
            ecolor="0.45",  # class colours such as yellow are too pale for a thin line on white
            elinewidth=1,
            capsize=2,
            label=row.name,
        )
    ax.set_xticks(range(len(bands)), list(bands))
    if len(bands) > 6:
        ax.tick_params(axis="x", rotation=45)
    ax.set_xlim(-0.5, len(bands) - 0.5)
    for border in np.arange(len(bands) - 1) + 0.5:
        ax.axvline(border, color="0.85", linewidth=0.8)


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
        marked = _middles([bounds[scene] for scene in touching])
        label = f"test, touches a training or validation scene ({len(touching)})"
        ax.plot(*marked, "X", ms=9, color="white", markeredgecolor="black", label=label)
    ax.autoscale_view()
    ax.margins(0.05)
    middle = np.mean([south + north for _, south, _, north in bounds.values()]) / 2
    ax.set(
        xlabel="longitude (°)",
        ylabel="latitude (°)",
        title="where the scenes lie (number of scenes)",
    )
    ax.set_aspect(1 / math.cos(math.radians(middle)), adjustable="datalim")
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
    figure, axes = new_panels(
        1, len(compared), min(2.6 + 4.2 * len(compared), 11), 0.32 * len(groups) + 1.2, sharey=True
    )
    for ax, (name, rows) in zip(axes[0], compared.items(), strict=True):
        ax.axvspan(-1, 1, color="0.92")
        ax.axvline(0, color="0.6", lw=0.8)
        for place, group in enumerate(groups):
            _draw_deviations(ax, place, [row for row in rows if row["group"] == group])
        passed = sum(abs(_deviation(row)) <= 1 for row in rows)
        ax.set(xlim=(-3.3, 3.9), title=f"{name}: {passed} of {len(rows)} within tolerance")
        ax.set(xlabel="distance from the measured value (tolerances)", xticks=range(-3, 4))
    axes[0, 0].set_yticks(range(len(groups)), groups)
    axes[0, 0].set_ylim(len(groups) - 0.5, -0.5)
    return figure


def _deviation(row: Mapping[str, Any]) -> float:
    """Return the distance from the target in tolerances; NaN if the class is absent."""
    return float((row["value"] - row["target"]) / row["tolerance"])


def _draw_deviations(ax: Axes, place: int, rows: Sequence[Mapping[str, Any]]) -> None:
    spread = np.linspace(-0.25, 0.25, len(rows)) if len(rows) > 1 else np.zeros(1)
    for row, step in zip(rows, spread, strict=True):
        away = _deviation(row)
        x = np.clip(np.nan_to_num(away, nan=3), -3, 3)  # NaN: a class that is absent
        marker, color = ("o", COLORS[0]) if abs(away) <= 1 else ("D", COLORS[1])
        ax.plot(x, place + step, marker, ms=4, color=color, mec="white", mew=0.4)
    passed = sum(abs(_deviation(row)) <= 1 for row in rows)
    ax.text(3.85, place, f"{passed}/{len(rows)}", ha="right", va="center", fontsize=8)
