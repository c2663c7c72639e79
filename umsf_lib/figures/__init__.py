"""Figures: plain arrays and the class table in, a matplotlib ``Figure`` out.

Where there is nothing to draw (no labels, no attention), the figure is a sentence that says so.

No figure is pyplot's: seaborn, too, draws in the axes it is given. In a notebook, run
``%matplotlib inline`` once and end a cell with the figure; a script calls
``figure.savefig(path)``.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    data="class_shares_figure histogram_figure realism_figure scene_figure spectra_figure"
    " split_figure",
    diagrams="diagram_figure",
    imagery="cluster_classes error_image false_color label_image optical_composite"
    " present_classes sar_image stretch",
    learning="attention_figure despeckle_figure training_figure views_figure",
    results="confusion_figure curves_figure intervals_figure map_figure maps_figure"
    " per_class_f1_figure probe_figure scores_figure tsne_figure",
    spatial="neighbours_figure variogram_figure",
    style="pixel_width_m",
)
