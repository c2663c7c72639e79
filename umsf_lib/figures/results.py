"""Figures of the results: t-SNE, whole-scene maps, maps of several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    add_legend,
    bare,
    class_entries,
    image_panels,
    new_panels,
    show_pictures,
    show_scalar,
    styled,
    swatches,
)

ERROR_ENTRIES = [("right", RIGHT_RGB), ("wrong", WRONG_RGB), ("no label", IGNORE_RGB)]


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
    """Show pictures of one scene side by side, with one legend for all.

    Args:
        pictures: title -> ``(h, w, 3)``, uint8 class colours or float in [0, 1].
        classes: the class table.
        pixel_m: ground width of a pixel in metres, for a scale bar in the first panel.
    """
    figure, axes = image_panels(len(pictures), 4, next(iter(pictures.values())).shape)
    show_pictures(axes, pictures, pixel_m)
    add_legend(figure, [*class_entries(classes), ("no label or no class", IGNORE_RGB)])
    return figure
