"""Figures of training: augmented views, despeckling, training curves, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from .imagery import Array, optical_composite, sar_image
from .style import (
    COLORS,
    image_panels,
    new_figure,
    note_figure,
    outline,
    show_picture,
    show_pictures,
    show_scalar,
    spoken,
    styled,
)

_MONITORS = {"std": "embedding std", "mean_cosine": "mean cosine", "top1": "top-1 accuracy"}
_MAX_DOTS = 6  # matched tokens drawn per window; more hide the picture


@styled
def views_figure(
    views: Sequence[Mapping[str, Array]],
    points: Sequence[Sequence[Array]],
    rgb: tuple[int, int, int],
) -> Figure:
    """Show augmented pairs, one window per row, with ground positions that both views see.

    Args:
        views: for each of the two views, sensor -> ``(n, C, h, w)`` standardised bands.
        points: for each view and window, ``(m, 2)`` matched positions, (x, y) in [-1, 1]; at most
            six of them are drawn.
        rgb: 0-based positions of the optical bands to show as red, green and blue.
    """
    sensors, size = list(views[0]), next(iter(views[0].values())).shape[2:]
    rows, columns = len(points[0]), 2 * len(sensors)
    figure, panels = image_panels(rows * columns, columns, size, gap=0.0)
    axes = np.reshape(np.array(panels), (rows, 2, len(sensors)))
    for row, matched in enumerate(zip(*points, strict=True)):
        ends = [_dots(places, size) for places in matched]
        for number, (view, dots) in enumerate(zip(views, ends, strict=True)):
            for ax, sensor in zip(axes[row, number], sensors, strict=True):
                bands = view[sensor][row]
                picture = sar_image(bands[0]) if sensor == "sar" else optical_composite(bands, rgb)
                show_picture(ax, picture, "" if row else f"{spoken(sensor)}, view {number + 1}")
                _draw_dots(ax, dots)
        for color, left, right in zip(COLORS, *ends, strict=False):
            between: Any = {"axesA": axes[row, 0, -1], "axesB": axes[row, 1, 0]}
            line = ConnectionPatch(
                left, right, "data", **between, color=color, shrinkA=6, shrinkB=6
            )
            line.set(linewidth=1.2, in_layout=False)
            axes[row, 1, 0].add_artist(line)
    figure.suptitle("two views of each window: numbers mark the same ground")
    return figure


def _dots(points: Array, size: Sequence[int]) -> list[tuple[float, float]]:
    """Pick at most six of (m, 2) positions in [-1, 1], spread over the list, as (x, y) in pixels.

    The panel's coordinates begin at the corner of the first pixel, like those of the view.
    """
    chosen = np.linspace(0, len(points) - 1, min(len(points), _MAX_DOTS)).round().astype(int)
    return [((x + 1) / 2 * size[1], (y + 1) / 2 * size[0]) for x, y in points[chosen].tolist()]


def _draw_dots(ax: Axes, dots: Sequence[tuple[float, float]]) -> None:
    for number, (x, y) in enumerate(dots):
        ax.plot(x, y, "o", ms=11, mfc=COLORS[number], mec="white", clip_on=False)
        text = ax.text(x, y, str(number + 1), color="white", fontsize=8)
        text.set(ha="center", va="center_baseline")


@styled
def despeckle_figure(
    before: Array,
    after: Array,
    *,
    reference: Array | None = None,
    enl: Mapping[str, float] | None = None,
) -> Figure:
    """Show a SAR image before and after despeckling in the same grey scale, and their ratio.

    Edges in the ratio image are detail that was lost.

    Args:
        before: (h, w) log intensity.
        after: (h, w) despeckled log intensity.
        reference: (h, w) log intensity without speckle, where it is known.
        enl: "before" and "after" (and "reference") -> equivalent number of looks, for the titles.
    """
    named = {"before": before, "after": after}
    if reference is not None:
        named["reference"] = reference
    # one stretch for all: else the estimate's lower contrast would be hidden
    side_by_side = sar_image(np.concatenate(list(named.values()), axis=1))
    pictures = np.split(side_by_side, len(named), axis=1)
    looks = {name: f"{name} (ENL {value:.1f})" for name, value in (enl or {}).items()}
    titles = [looks.get(name, name) for name in named]
    figure, axes = image_panels(len(named) + 1, 4, before.shape)
    show_pictures(axes, dict(zip(titles, pictures, strict=True)))
    ratio, label = np.exp(before - after), "intensity before / after"
    show_scalar(axes[-1], ratio, "ratio image", label, limits=(0, 3), cmap="gray")
    return figure


@styled
def training_figure(
    records: Sequence[Mapping[str, float]],
    losses: Sequence[str],
    *,
    chance: Mapping[str, float] | None = None,
    monitors: Sequence[str] = (),
    healthy: Mapping[str, float] | None = None,
    alarm: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the loss terms with their chance levels, and the collapse monitors beside them.

    Args:
        records: one mapping per logged step with "step" and any of the quantities.
        losses: keys of the loss terms (nats), drawn together.
        chance: description -> loss that needs no learning, e.g. ln(1 + Q): dashed lines.
        monitors: keys that get their own panel each, e.g. "std", "top1".
        healthy: monitor key -> value for random unit embeddings: dashed line.
        alarm: monitor key -> the value beyond which embeddings have collapsed: dotted red line.
    """
    log, healthy, alarm = pd.DataFrame(records).set_index("step"), healthy or {}, alarm or {}
    upper, lower = list(monitors[0::2]), list(monitors[1::2])
    lower += ["."] * (len(upper) - len(lower))  # an empty place
    figure = new_figure(5 + 2.5 * len(upper), 4.6)
    places: Any = [["loss", *upper], ["loss", *lower]]
    axes = figure.subplot_mosaic(places, width_ratios=[1.8] + [1.0] * len(upper))
    for color, name in zip(COLORS, losses, strict=False):
        _draw_curve(axes["loss"], log, name, color)
    for style, (name, level) in zip(("--", ":", "-."), (chance or {}).items(), strict=False):
        axes["loss"].axhline(level, color="0.2", ls=style, lw=1.2, label=f"{name} = {level:.2f}")
    axes["loss"].set(xlabel="step", ylabel="loss (nats)", title="loss terms")
    for name in monitors:
        _draw_curve(axes[name], log, name, COLORS[0])
        title = _MONITORS.get(name, name)
        if name in healthy:
            axes[name].axhline(healthy[name], color="0.2", ls="--", lw=1.2)
            title += f"\n(dashed: random, {healthy[name]:.3f})"
        if name in alarm:
            axes[name].axhline(alarm[name], color="#D55E00", ls=":", lw=1.6)
        axes[name].set(xlabel="step", title=title)
    entries = axes["loss"].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=2)
    return figure


def _draw_curve(ax: Axes, log: pd.DataFrame, name: str, color: str) -> None:
    """Draw a column and, in front, its running mean over a 25th of its rows."""
    if name not in log:
        return
    values = log[name].dropna()
    width = max(1, len(values) // 25)
    if width > 1:
        ax.plot(values, color=color, lw=0.6, alpha=0.35)
    marker = "o" if len(values) == 1 else ""  # a line of one point would be invisible
    smooth = values.rolling(width).mean().dropna()
    ax.plot(smooth, marker=marker, color=color, lw=1.6, label=spoken(name))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


@styled
def attention_figure(
    optical_rgb: Array,
    attention: Array | None,
    token: tuple[int, int],
    *,
    grid: tuple[int, int],
    gates: Array | None = None,
    sar: Array | None = None,
) -> Figure:
    """Show the attention of one token, one panel per head, and the gate of each token.

    All heads share one scale, from 0 to four times the uniform weight 1/N; its label gives 1/N.

    Args:
        optical_rgb: (h, w, 3) in [0, 1], the window.
        attention: (heads, N) weights of the chosen token, each row sums to 1; None if the network
            has no attention: then a sentence says so.
        token: (row, column) of the chosen token on the token grid.
        grid: (H, W) tokens, H W = N.
        gates: (2, H, W) weight of optical and SAR per token; the optical one is drawn.
        sar: (h, w, 3) in [0, 1], SAR image of the same window; None leaves the panel out.
    """
    if attention is None:
        return note_figure("The network of this run has no attention to show.")
    pictures = {"optical": optical_rgb} | ({} if sar is None else {"SAR": sar})
    maps = {f"head {n}": head.reshape(grid) for n, head in enumerate(attention, start=1)}
    even = 1 / (grid[0] * grid[1])
    look = {name: (f"even: {even:.4f}", (0.0, 4 * even), "viridis") for name in maps}
    if gates is not None:
        maps["gate"], look["gate"] = gates[0], ("weight of optical", (0.0, 1.0), "cividis")
    count, shape = len(pictures) + len(maps), optical_rgb.shape
    figure, axes = image_panels(count, 5, shape, widest=2.0, gap=0.7, extra=0.4)
    show_pictures(axes, pictures)
    for ax, (name, values) in zip(axes[len(pictures) :], maps.items(), strict=True):
        label, limits, cmap = look[name]
        show_scalar(ax, values, name, label, limits=limits, cmap=cmap)
    for ax, image in zip(axes, [*pictures.values(), *maps.values()], strict=True):
        height, width = image.shape[0] / grid[0], image.shape[1] / grid[1]  # of a token
        corner = (token[1] * width, token[0] * height)
        mark = Rectangle(corner, width, height, fill=False, ec="white", lw=1.6)
        outline(mark, "black")
        ax.add_patch(mark)
    figure.suptitle("attention of the marked token")
    return figure
