"""Figures of the results: confusion, t-SNE, whole-scene maps, scores of several methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..data.layout import LandClass
from .imagery import (
    IGNORE_RGB,
    RIGHT_RGB,
    WRONG_RGB,
    Array,
    error_image,
    is_labelled,
    label_image,
    present_classes,
    sar_image,
    unit_rgb,
)
from .style import (
    COLORS,
    add_legend,
    bare,
    class_entries,
    image_panels,
    new_panels,
    note_figure,
    show_picture,
    show_scalar,
    styled,
)

ERROR_ENTRIES = [("right", RIGHT_RGB), ("wrong", WRONG_RGB), ("no label", IGNORE_RGB)]


@styled
def confusion_figure(table: Array, classes: Sequence[LandClass], mapping: Array) -> Figure:
    """Show how the pixels of each class spread over the clusters, in percent and in counts.

    Args:
        table: (K', K) int64 pixels of cluster i and class j; may be empty.
        classes: K rows of the class table.
        mapping: (K',) class id each cluster is matched to, -1 for none; matched cells are framed.
    """
    if not table.size:
        return note_figure("This data set has no labels, so there is nothing to compare with.")
    order = np.argsort(np.where(mapping < 0, len(classes), mapping), kind="stable")
    counts = table[order].T  # (K classes, K' clusters), clusters sorted by their class
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [row.name for row in classes] + ["unmatched"]  # -1 picks the last one
    height = 2.2 + 0.5 * len(classes)
    figure, axes = new_panels(1, 1, min(3 + 0.75 * len(order), 11), height)
    ax = axes[0, 0]
    columns = [f"{cluster} → {names[mapping[cluster]]}" for cluster in order]
    _heatmap(ax, percent, 100, "share of the class (%)", (names[:-1], columns))
    ax.set_xticks(ax.get_xticks(), columns, rotation=45, ha="right", rotation_mode="anchor")
    for row, column in np.argwhere(counts):
        share = percent[row, column]
        _write(ax, row, column, f"{share:.0f} %\n{_short(counts[row, column])}", share > 50)
    for column in np.flatnonzero(mapping[order] >= 0):
        corner = (column - 0.5, mapping[order[column]] - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="#D55E00", lw=2, clip_on=False))
    ax.set(xlabel="cluster → matched class", ylabel="class")
    ax.set_title("where the pixels of each class went")
    return figure


def _heatmap(
    ax: Axes, values: Array, largest: float, label: str, names: tuple[list[str], list[str]]
) -> None:
    image = ax.imshow(
        np.ma.masked_invalid(values), vmin=0, vmax=largest, cmap="cividis", aspect="auto"
    )
    ax.set_yticks(range(len(names[0])), names[0])
    ax.set_xticks(range(len(names[1])), names[1])
    ax.figure.colorbar(image, ax=ax, label=label)


def _write(ax: Axes, row: int, column: int, text: str, bright_cell: bool) -> None:
    color = "black" if bright_cell else "white"
    ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def _short(count: float) -> str:
    """Write a count in at most four letters: 950, 12k, 3.4M."""
    if count < 1000:
        return str(int(count))
    unit, letter = (1e6, "M") if count >= 999_500 else (1e3, "k")
    return f"{count / unit:.{1 if count < 9.95 * unit else 0}f}{letter}"


@styled
def tsne_figure(
    embeddings: Mapping[str, Array],
    cluster: Array,
    label: Array | None,
    *,
    clusters: Sequence[LandClass],
    classes: Sequence[LandClass] = (),
) -> Figure:
    """Draw a t-SNE plot of each kind of token, coloured by cluster and by class.

    Distances between distant groups mean little in t-SNE, and its axes have no unit.

    Args:
        embeddings: "optical", "SAR", "fused", ... -> (M, 2) positions.
        cluster: (M,) cluster ids of the same tokens.
        label: (M,) class ids, 255 = ignore; None, or nothing but 255, leaves the column out.
        clusters: table of names and colours of the clusters.
        classes: the class table.
    """
    columns = [("cluster", cluster, clusters)]
    if is_labelled(label):
        columns.append(("class", label, classes))
    rows = len(embeddings)
    figure, axes = new_panels(rows, len(columns), 3.9 * len(columns), 3.1 * rows + 0.9)
    for row, (name, points) in enumerate(embeddings.items()):
        for ax, (kind, ids, table) in zip(axes[row], columns, strict=True):
            _scatter(ax, points, ids, table)
            bare(ax, f"{name} tokens by {kind}")
    for ax, (_, ids, table) in zip(axes[-1], columns, strict=True):
        _legend_below(ax, present_classes(ids, table))
    return figure


def _scatter(ax: Axes, points: Array, ids: Array, table: Sequence[LandClass]) -> None:
    known = np.isin(ids, [row.id for row in table])
    ax.scatter(points[~known, 0], points[~known, 1], s=3, color="0.7", linewidths=0)
    # all classes in one call, in file order: else the last class would cover the others
    colors = {row.id: unit_rgb(row.rgb) for row in table}
    shown = [colors[i] for i in ids[known].tolist()]
    ax.scatter(points[known, 0], points[known, 1], s=5, c=shown, linewidths=0)
    ax.set_facecolor("0.86")  # neither white nor black classes drown in it
    ax.set_aspect("equal", adjustable="datalim")


def _legend_below(ax: Axes, rows: Sequence[LandClass]) -> None:
    for row in rows:
        ax.scatter(
            [], [], s=50, marker="s", color=unit_rgb(row.rgb), ec="0.3", lw=0.5, label=row.name
        )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)


@styled
def map_figure(
    optical_rgb: Array,
    sar_log: Array | None,
    prediction: Array,
    confidence: Array,
    *,
    classes: Sequence[LandClass],
    label: Array | None = None,
    pixel_m: float | None = None,
    title: str = "",
) -> Figure:
    """Show the map of a whole scene beside its imagery, and its errors where there is a label.

    Args:
        optical_rgb: (h, w, 3) in [0, 1].
        sar_log: (h, w) log intensity; None leaves the panel out.
        prediction: (h, w) class (or cluster) ids, 255 = no data.
        confidence: (h, w) largest posterior, in [0, 1], NaN = no data.
        classes: the class table, or ``cluster_classes`` where the clusters have no names.
        label: (h, w) class ids, 255 = ignore; None, or nothing but 255, leaves out label and
            errors.
        pixel_m: ground width of a pixel in metres, for the scale bar.
        title: above all panels.
    """
    panels = {"optical": optical_rgb}
    if sar_log is not None:
        panels["SAR (log intensity)"] = sar_image(sar_log)
    panels["prediction"] = label_image(prediction, classes)
    entries = class_entries(present_classes(prediction, classes))
    if is_labelled(label):
        panels["label"] = label_image(label, classes)
        panels["errors"] = error_image(prediction, label)
        ids = {row.id for image in (prediction, label) for row in present_classes(image, classes)}
        entries = class_entries([row for row in classes if row.id in ids]) + ERROR_ENTRIES
    columns = 2 if len(panels) == 3 else 3  # two by two, or rows of three
    rows = math.ceil((len(panels) + 1) / columns)
    figure, axes = image_panels(rows, columns, optical_rgb.shape, width=4 + 2 * columns, extra=1.3)
    places = axes.ravel()
    for ax, (name, picture) in zip(places, panels.items(), strict=False):
        show_picture(ax, picture, name, pixel_m if name == "optical" else None)
    show_confidence(places[len(panels)], confidence)
    for ax in places[len(panels) + 1 :]:
        ax.remove()
    add_legend(figure, entries)
    figure.suptitle(title)
    return figure


def show_confidence(ax: Axes, confidence: Array) -> None:
    """Draw (h, w) largest posteriors in [0, 1] with their scale."""
    label = "largest posterior (0 to 1)"
    show_scalar(ax, confidence, "confidence", label, limits=(0, 1), cmap="cividis")


@styled
def scores_figure(scores: pd.DataFrame, *, constant: Mapping[str, float]) -> Figure:
    """Compare methods with each other and with a constant predictor, one panel per score.

    Args:
        scores: one row per method, one column per score ("acc", "nmi"); NaN stays empty.
        constant: score -> value of always predicting the most frequent class: dashed line.
    """
    if scores.empty:
        return note_figure("This data set has no labels, so there are no scores to show.")
    columns, height = len(scores.columns), 1.3 + 0.38 * len(scores)
    figure, axes = new_panels(1, columns, min(2 + 3.6 * columns, 11), height, sharey=True)
    for ax, color, name in zip(axes[0], COLORS, scores.columns, strict=False):
        values = scores[name].to_numpy()
        ax.barh(list(scores.index), values, color=color, alpha=0.75)
        for position in np.flatnonzero(np.isfinite(values)):
            value = values[position]
            # in a column of their own, where no line strikes them out
            ax.text(1.15, position, f"{value:.3f}", va="center", ha="right", fontsize=8)
        title, start = name.upper(), min(0, np.nanmin(values))
        ax.set(xlabel=f"{title} (0 to 1)", title=title, xlim=(start, 1.15))
        if name in constant:
            line = ax.axvline(constant[name], color="black", ls="--", lw=1.2)
            figure.legend([line], ["constant predictor"], loc="outside lower center")
    axes[0, 0].invert_yaxis()
    return figure


@styled
def per_class_f1_figure(f1: Mapping[str, Array], classes: Sequence[LandClass]) -> Figure:
    """Show the F1 of every class and method as a heatmap.

    Args:
        f1: method -> (K,) values in [0, 1]; NaN (class absent) stays empty; may be empty.
        classes: K rows of the class table.
    """
    if not f1:
        return note_figure("This data set has no labels, so there is no F1 to show.")
    values = np.array([np.asarray(row, float) for row in f1.values()])  # (methods, K)
    figure, axes = new_panels(1, 1, min(3 + 0.85 * len(classes), 11), 1.4 + 0.42 * len(f1))
    ax = axes[0, 0]
    _heatmap(ax, values, 1, "F1 (0 to 1)", (list(f1), [row.name for row in classes]))
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        _write(ax, row, column, f"{value:.2f}", value > 0.5)
    ax.set_title("F1 per class (empty: class absent)")
    return figure


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
        table: columns ``group``, ``name``, ``metric``, ``value``, ``low``, ``high``, with rows of a
            group together; group "" has no heading; rows with NaN ends have a dot but no bar.
        titles: score -> title of its panel, in order.
        label: axis label of the values.
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
    """Write the names of rows and, in bold, of groups beside the first panel; first row on top."""
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
