"""Figures: plain arrays and the class table in, a matplotlib ``Figure`` out.

Where there is nothing to draw (no labels, no attention), the figure is a sentence that says so.

Nothing here touches pyplot. In a notebook, run ``%matplotlib inline`` once and end a cell with
the figure; a script calls ``figure.savefig(path)``.
"""

from .data import (
    class_shares_figure,
    histogram_figure,
    realism_figure,
    scene_figure,
    spectra_figure,
    split_figure,
)
from .imagery import (
    cluster_classes,
    error_image,
    false_color,
    label_image,
    optical_composite,
    present_classes,
    sar_image,
    stretch,
)
from .learning import (
    attention_figure,
    despeckle_figure,
    training_figure,
    views_figure,
)
from .results import (
    confusion_figure,
    intervals_figure,
    map_figure,
    maps_figure,
    per_class_f1_figure,
    scale_figure,
    scores_figure,
    tsne_figure,
)
from .spatial import neighbours_figure, probe_figure, variogram_figure
from .style import pixel_width_m

__all__ = [
    "attention_figure",
    "class_shares_figure",
    "cluster_classes",
    "confusion_figure",
    "despeckle_figure",
    "error_image",
    "false_color",
    "histogram_figure",
    "intervals_figure",
    "label_image",
    "map_figure",
    "maps_figure",
    "neighbours_figure",
    "optical_composite",
    "per_class_f1_figure",
    "pixel_width_m",
    "realism_figure",
    "present_classes",
    "probe_figure",
    "sar_image",
    "scene_figure",
    "scale_figure",
    "scores_figure",
    "split_figure",
    "spectra_figure",
    "stretch",
    "training_figure",
    "tsne_figure",
    "variogram_figure",
    "views_figure",
]
