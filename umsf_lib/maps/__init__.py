"""Maps: write GeoTIFFs with class names and colours. Start reading at ``stage``.

``browser`` compares the written files of runs and scenes interactively.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    browser="BrowserState browse class_table",
    colors="cluster_means colored judged",
    stage="legend_of load_legend predict_scene write_maps",
)
