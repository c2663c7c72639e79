"""Figures of training: augmented views, despeckling, training curves, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from .imagery import Array, optical_composite, sar_image
from .style import (
    COLORS,
    image_panels,
    new_panels,
    note_figure,
    show_picture,
    show_scalar,
    spoken,
    styled,
)

_MONITORS = {
    "std": "embedding std",
    "mean_cosine": "mean cosine",
    "top1": "top-1 accuracy",
}
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
    figure, axes = image_panels(len(points[0]), 2 * len(sensors), size, width=9, gap=0.0)
    ends = [[_some(_pixels(places, size)) for places in view] for view in points]
    for number, (view, dots) in enumerate(zip(views, ends, strict=True)):
        for index, sensor in enumerate(sensors):
            column = axes[:, number * len(sensors) + index]
            for ax, picture, some in zip(
                column, _pictures(view[sensor], rgb, sensor), dots, strict=True
            ):
                show_picture(ax, picture, "")
                _draw_points(ax, some)
            column[0].set_title(f"{spoken(sensor)}, view {number + 1}")
    for row, (left, right) in enumerate(zip(*ends, strict=True)):
        _connect(axes[row, len(sensors) - 1], axes[row, len(sensors)], left, right)
    figure.suptitle("two views of each window: numbers mark the same ground")
    return figure


def _pixels(points: Array, size: Sequence[int]) -> Array:
    """Convert view coordinates (P, 2), (x, y) in [-1, 1], to (row, column) in pixels.

    The panel's coordinates begin at the corner of the first pixel, like those of the view.
    """
    rows_columns: Array = (points[:, ::-1] + 1) / 2 * np.array(size)
    return rows_columns


def _pictures(images: Array, rgb: tuple[int, int, int], sensor: str) -> list[Array]:
    """Convert standardised bands (n, C, h, w) to n pictures (h, w, 3)."""
    if sensor == "sar":
        return [sar_image(image[0]) for image in images]
    return [optical_composite(image, rgb) for image in images]


def _some(points: Array) -> Array:
    """Pick at most six rows, spread over the whole list."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), _MAX_DOTS)).round().astype(int)
    some: Array = points[chosen]
    return some


def _draw_points(ax: Axes, points: Array) -> None:
    for number, (row, column) in enumerate(points):
        ax.plot(column, row, "o", ms=11, mfc=COLORS[number], mec="white", clip_on=False)
        ax.text(
            column,
            row,
            str(number + 1),
            color="white",
            fontsize=8,
            ha="center",
            va="center_baseline",
        )


def _connect(left: Axes, right: Axes, points_left: Array, points_right: Array) -> None:
    for color, a, b in zip(COLORS, points_left, points_right, strict=False):
        line = ConnectionPatch(
            tuple(a[::-1]),
            tuple(b[::-1]),
            "data",
            "data",
            axesA=left,
            axesB=right,
            color=color,
            shrinkA=6,
            shrinkB=6,
        )
        line.set(linewidth=1.2, in_layout=False)
        right.add_artist(line)


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
    figure, axes = image_panels(1, len(named) + 1, before.shape)
    # one stretch for all: else the estimate's lower contrast would be hidden
    side_by_side = sar_image(np.concatenate(list(named.values()), axis=1))
    pictures = np.split(side_by_side, len(named), axis=1)
    for ax, name, picture in zip(axes[0], named, pictures, strict=False):
        looks = f" (ENL {enl[name]:.1f})" if enl and name in enl else ""
        show_picture(ax, picture, name + looks)
    ratio, label = np.exp(before - after), "intensity before / after"
    show_scalar(axes[0, -1], ratio, "ratio image", label, limits=(0, 3), cmap="gray")
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
    figure, loss_axes, monitor_axes = _training_panels(len(monitors))
    for color, name in zip(COLORS, losses, strict=False):
        _draw_curve(loss_axes, records, name, color)
    for style, (name, level) in zip(("--", ":", "-."), (chance or {}).items(), strict=False):
        loss_axes.axhline(level, color="0.2", ls=style, lw=1.2, label=f"{name} = {level:.2f}")
    loss_axes.set(xlabel="step", ylabel="loss (nats)", title="loss terms")
    for ax, name in zip(monitor_axes, monitors, strict=True):
        _draw_curve(ax, records, name, COLORS[0])
        title = _MONITORS.get(name, name)
        if healthy and name in healthy:
            ax.axhline(healthy[name], color="0.2", ls="--", lw=1.2)
            title += f"\n(dashed: random, {healthy[name]:.3f})"
        if alarm and name in alarm:
            ax.axhline(alarm[name], color="#D55E00", ls=":", lw=1.6)
        ax.set(xlabel="step", title=title)
    entries = loss_axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=2)
    return figure


def _training_panels(num_monitors: int) -> tuple[Figure, Axes, list[Axes]]:
    columns = 1 + math.ceil(num_monitors / 2)
    rows = 2 if num_monitors > 1 else 1
    ratios = [1.8] + [1.0] * (columns - 1)
    figure, axes = new_panels(rows, columns, 5 + 2.5 * (columns - 1), 4.6, width_ratios=ratios)
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, 0]:
        ax.remove()
    side = list(axes[:, 1:].T.ravel())
    for ax in side[num_monitors:]:
        ax.remove()
    return figure, figure.add_subplot(grid[:, 0]), side[:num_monitors]


def _draw_curve(ax: Axes, records: Sequence[Mapping[str, float]], name: str, color: str) -> None:
    pairs = np.array([(record["step"], record[name]) for record in records if name in record])
    if not len(pairs):
        return
    steps, values = pairs.T
    width = max(1, len(values) // 25)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    if width > 1:
        ax.plot(steps, values, color=color, lw=0.6, alpha=0.35)
    marker = "o" if len(values) == 1 else ""  # a line of one point would be invisible
    ax.plot(steps[width - 1 :], smooth, marker=marker, color=color, lw=1.6, label=spoken(name))
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
    title: str = "attention of the marked token",
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
        title: above all panels.
    """
    if attention is None:
        return note_figure("The network of this run has no attention to show.")
    heads = attention.reshape(-1, *grid)  # (heads, H, W)
    pictures = {"optical": optical_rgb} | ({} if sar is None else {"SAR": sar})
    count = len(heads) + len(pictures) + (gates is not None)
    rows = math.ceil(count / 5)
    columns = math.ceil(count / rows)  # as even as can be: no orphan in the last row
    size = {"width": 2.0 * columns, "extra": 0.4 + 0.4 * rows}
    figure, axes = image_panels(rows, columns, optical_rgb.shape, **size)
    panels = iter(axes.ravel())
    step = optical_rgb.shape[0] / grid[0], optical_rgb.shape[1] / grid[1]
    for name, picture in pictures.items():
        ax = next(panels)
        show_picture(ax, picture, name)
        _mark(ax, (token[0] * step[0], token[1] * step[1]), step)
    even = 1 / (grid[0] * grid[1])
    for number, head in enumerate(heads):
        ax = next(panels)
        name, label = f"head {number + 1}", f"even: {even:.4f}"
        show_scalar(ax, head, name, label, limits=(0.0, 4 * even), cmap="viridis")
        _mark(ax, token, (1, 1))
    if gates is not None:
        ax = next(panels)
        show_scalar(ax, gates[0], "gate", "weight of optical", limits=(0, 1), cmap="cividis")
        _mark(ax, token, (1, 1))
    for ax in panels:
        ax.remove()
    figure.suptitle(title)
    return figure


def _mark(ax: Axes, corner: tuple[float, float], size: tuple[float, float]) -> None:
    box = Rectangle((corner[1], corner[0]), size[1], size[0], fill=False, ec="white", lw=1.6)
    box.set_path_effects([patheffects.withStroke(linewidth=3, foreground="black")])
    ax.add_patch(box)
