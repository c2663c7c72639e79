"""Figures of the results: confusion, t-SNE, maps, scores with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
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
    show_pictures,
    show_scalar,
    styled,
    swatches,
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
    texts = [
        f"{share:.0f} %\n{_short(count)}" if count else ""
        for share, count in zip(percent.flat, counts.flat, strict=True)
    ]
    names = [row.name for row in classes] + ["unmatched"]  # -1 picks the last one
    columns = [f"{cluster} → {names[mapping[cluster]]}" for cluster in order]
    cells = pd.DataFrame(percent, names[:-1], columns)
    figure, ax = _heatmap(cells, np.reshape(texts, counts.shape), 100, "share of the class (%)")
    for column in np.flatnonzero(mapping[order] >= 0):
        corner = (float(column), float(mapping[order[column]]))
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="#D55E00", lw=2, clip_on=False))
    ax.set(xlabel="cluster → matched class", ylabel="class")
    ax.set_title("where the pixels of each class went")
    return figure


def _heatmap(cells: pd.DataFrame, texts: Array, largest: float, label: str) -> tuple[Figure, Axes]:
    """Draw a table from 0 to ``largest`` with a text in every cell that is not NaN."""
    longest = max(len(name) for name in cells.columns)
    turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if longest <= 10:
        longest, turned = 0, {"rotation": 0}
    width, height = min(3 + 0.8 * len(cells.columns), 11), 1.4 + 0.5 * len(cells) + 0.05 * longest
    figure, axes = new_panels(1, 1, width, height)
    ax = axes[0, 0]
    look: Any = {"cmap": "cividis", "annot_kws": {"fontsize": 8}, "cbar_kws": {"label": label}}
    look |= {"xticklabels": True, "yticklabels": True}  # all of them
    sns.heatmap(cells, vmin=0, vmax=largest, annot=texts, fmt="", ax=ax, **look)
    ax.set_xticklabels(cells.columns, **turned)
    ax.tick_params(axis="y", rotation=0)
    for text, value in zip(ax.texts, cells.stack().dropna(), strict=True):
        text.set_color("black" if value > largest / 2 else "white")
    return figure, ax


def _short(count: float) -> str:
    """Write a count in at most four letters: 950, 12k, 3.4M."""
    if count < 1000:
        return str(int(count))
    unit, letter = (1e6, "M") if count >= 999_500 else (1e3, "k")
    return f"{count / unit:.{1 if count < 9.95 * unit else 0}f}{letter}"


@styled
def per_class_f1_figure(f1: Mapping[str, Array], classes: Sequence[LandClass]) -> Figure:
    """Show the F1 of every class and method as a heatmap.

    Args:
        f1: method -> (K,) values in [0, 1], NaN where a class is absent; may be empty.
        classes: K rows of the class table.
    """
    if not f1:
        return note_figure("This data set has no labels, so there is no F1 to show.")
    cells = pd.DataFrame(dict(f1), [row.name for row in classes], dtype=float).T
    figure, ax = _heatmap(cells, cells.map("{:.2f}".format).to_numpy(), 1, "F1 (0 to 1)")
    ax.set_title("F1 per class (empty: class absent)")
    return figure


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
        handles = swatches(class_entries(present_classes(ids, table)))
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)
    return figure


def _scatter(ax: Axes, points: Array, ids: Array, table: Sequence[LandClass]) -> None:
    colors = {row.id: unit_rgb(row.rgb) for row in table}
    known = np.isin(ids, list(colors))
    ax.scatter(points[~known, 0], points[~known, 1], s=3, color="0.7", linewidths=0)
    # all classes in one call, in file order: else the last class would cover the others
    x, y = points[known].T
    look: Any = {"hue": ids[known], "palette": colors, "s": 6, "linewidth": 0, "legend": False}
    sns.scatterplot(x=x, y=y, ax=ax, **look)
    ax.set_facecolor("0.86")  # neither white nor black classes drown in it
    ax.set_aspect("equal", adjustable="datalim")


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
        both = present_classes(np.stack([prediction, label]), classes)
        entries = class_entries(both) + ERROR_ENTRIES
    figure, axes = image_panels(len(panels) + 1, 3, optical_rgb.shape, extra=1.3)
    show_pictures(axes, panels, pixel_m)
    show_confidence(axes[-1], confidence)
    add_legend(figure, entries)
    figure.suptitle(title)
    return figure


def show_confidence(ax: Axes, confidence: Array) -> None:
    """Draw (h, w) largest posteriors in [0, 1] with their scale."""
    label = "largest posterior (0 to 1)"
    show_scalar(ax, confidence, "confidence", label, limits=(0, 1), cmap="cividis")


@styled
def maps_figure(
    pictures: Mapping[str, Array], classes: Sequence[LandClass], *, pixel_m: float | None = None
) -> Figure:
    """Show pictures of one scene side by side, with one legend and one scale bar for all.

    Args:
        pictures: title -> ``(h, w, 3)``, uint8 class colours or float in [0, 1].
        classes: the class table.
        pixel_m: ground width of a pixel in metres, for the scale bar.
    """
    figure, axes = image_panels(len(pictures), 4, next(iter(pictures.values())).shape)
    show_pictures(axes, pictures, pixel_m)
    add_legend(figure, [*class_entries(classes), ("no label or no class", IGNORE_RGB)])
    return figure


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
    table = scores.rename_axis("method").reset_index()
    for ax, color, name in zip(axes[0], COLORS, scores.columns, strict=False):
        _draw_bars(ax, table, name, color=color, alpha=0.75)
        ax.set(xlabel=f"{name.upper()} (0 to 1)", title=name.upper())
        if name in constant:
            line = ax.axvline(constant[name], color="black", ls="--", lw=1.2)
            figure.legend([line], ["constant predictor"], loc="outside lower center")
    return figure


def _draw_bars(ax: Axes, table: pd.DataFrame, score: str, **options: Any) -> None:
    """Draw a bar per row, named by ``method``; values stand beside the panel, clear of lines."""
    sns.barplot(table, x=score, y="method", saturation=1, errorbar=None, ax=ax, **options)
    for value, middle in _ends(ax.patches):
        at = ax.get_yaxis_transform()
        ax.text(1.01, middle, f"{value:.3f}", transform=at, va="center", fontsize=8)
    ax.set(xlim=(min(0, table[score].min()), 1.05), ylabel="")


def _ends(bars: Iterable[Any]) -> list[tuple[float, float]]:
    """Return the value of each horizontal bar and its place on the axis of names."""
    return [(bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in bars]


@styled
def probe_figure(table: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """Show accuracies of classifiers on frozen features, random splits beside splits by scene.

    Args:
        table: one row per (method, protocol), columns ``metric`` and ``metric_std`` for each.
        metrics: column -> title of its panel.
    """
    if table.empty:
        return note_figure("This data set has no labels, so there is nothing to judge features by.")
    methods, protocols = (table.index.unique(level) for level in ("method", "protocol"))
    height = 1.5 + 0.27 * len(methods) * len(protocols)
    figure, axes = new_panels(1, len(metrics), 9.5, height, sharey=True)
    colors = dict(zip(protocols, COLORS, strict=False))
    for ax, (metric, title) in zip(axes[0], metrics.items(), strict=True):
        _draw_bars(ax, table.reset_index(), metric, hue="protocol", palette=colors, legend=False)
        for bars, protocol in zip(list(ax.containers), protocols, strict=True):
            bars.set_label(protocol)
            rows = table.xs(protocol, level="protocol").reindex(methods)
            spread = rows.loc[rows[metric].notna(), f"{metric}_std"]
            values, middles = np.reshape(_ends(bars), (-1, 2)).T
            ax.errorbar(values, middles, xerr=spread, fmt="none", ecolor="black", capsize=2)
        ax.set(xlabel="accuracy (mean and standard deviation of the splits)", title=title)
    entries = axes[0, 0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=len(protocols))
    return figure


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
    rows: list[tuple[str, str]] = []  # (group, name) from top to bottom; a heading has no name
    for group in table.group.unique():
        rows += [(group, "")] if group else []
        rows += [(group, name) for name in table["name"][table.group == group].unique()]
    place = [rows.index(key) for key in zip(table.group, table["name"], strict=True)]
    figure, axes = new_panels(1, len(titles), 10.5, 1.5 + 0.25 * len(rows), sharey=True)
    for ax, (metric, title) in zip(axes[0], titles.items(), strict=True):
        _draw_intervals(ax, table.assign(place=place), metric)
        for dashes, (name, at) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
            if metric in at:
                ax.axvline(at[metric], color="0.2", ls=dashes, lw=1.2, label=name, zorder=0)
        ax.set(title=title, xlabel=label, ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.tick_params(left=False)
    axes[0, 0].set_yticks(range(len(rows)), [name or group for group, name in rows])
    for text, (_, name) in zip(axes[0, 0].get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if name else "bold")
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    entries = axes[0, 0].get_legend_handles_labels()
    if entries[0]:
        figure.legend(*entries, loc="outside lower center", ncols=len(entries[0]))
    return figure


def _draw_intervals(ax: Axes, table: pd.DataFrame, metric: str) -> None:
    """Draw the dots of one score and their intervals, at the height ``place``, by group."""
    colors = dict(zip(table.group.unique(), cycle(COLORS), strict=False))
    rows = table[table.metric == metric]
    known = rows.dropna(subset=["low", "high"])
    shades = [colors[group] for group in known.group]
    ax.hlines(known.place, known.low, known.high, colors=shades, lw=2)
    look: Any = {"hue": "group", "palette": colors, "legend": False, "s": 28, "linewidth": 0}
    sns.scatterplot(rows, x="value", y="place", zorder=3, ax=ax, **look)


@styled
def curves_figure(
    table: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    x: str = "scenes",
    label: str = "training scenes",
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Show scores against a number of scenes, steps or labels, one panel per score.

    Args:
        table: columns ``x``, ``name``, ``metric``, ``mean``, ``std`` (NaN: no bar); the values of
            ``x`` stand at equal distances.
        titles: score -> title of its panel, in order.
        x: the column of numbers.
        label: their axis label.
        lines: name -> score -> value: a horizontal line.
    """
    if table.empty:
        return note_figure("There are no scores to show.")
    figure, axes = new_panels(1, len(titles), 10.5, 3.6)
    ticks = sorted(table[x].unique())
    for ax, (metric, title) in zip(axes[0], titles.items(), strict=True):
        curves = table[table.metric == metric].groupby("name", sort=False)
        for color, (name, curve) in zip(COLORS, curves, strict=False):
            look: Any = {"color": color, "marker": "o", "ms": 4, "label": name}
            ax.errorbar(np.searchsorted(ticks, curve[x]), curve["mean"], curve["std"], **look)
        for dashes, (name, at) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
            if metric in at:
                ax.axhline(at[metric], color="0.2", ls=dashes, lw=1.2, label=name, zorder=0)
        ax.set_xticks(range(len(ticks)), [str(count) for count in ticks])
        ax.set(title=title, xlabel=label)
    entries = axes[0, 0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=len(entries[0]))
    return figure
